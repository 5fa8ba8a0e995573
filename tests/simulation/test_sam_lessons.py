"""Prompts ask for the object that they mean, and the loss is least for the right answer."""

import torch
from torch.nn import functional as F

from simulation.sam_lessons import (
    MIN_AREA_PX,
    MIN_SEEN,
    POINTS,
    ask,
    asks_anything,
    corrections,
    losses,
    rough_logits,
    sketch_loss,
    tight_boxes,
    true_iou,
)
from simulation.sam_shapes import OBJECTS, Scenes, draw


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_prompts_ask_for_the_object_they_mean() -> None:
    scenes = draw(generator(0), batch=8)
    asked = ask(scenes, generator(1), prompts_per_image=6)
    count = len(asked.image_index)
    assert asked.points.shape == (count, POINTS, 2)
    assert asked.boxes.min() >= 0
    assert asked.boxes.max() <= 128
    exact = 0
    for mask, image, box, points, labels in zip(
        asked.masks > 0, asked.image_index, asked.boxes, asked.points, asked.point_labels, strict=True
    ):
        (label,) = scenes.labels[image][mask].unique().tolist()
        assert torch.equal(mask, scenes.labels[image] == label)
        assert mask.sum() >= MIN_AREA_PX
        assert scenes.seen[image, label - 1] >= MIN_SEEN
        rows, columns = torch.where(mask)
        tight = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        exact += int(torch.equal(box, tight.float()))
        extent = (tight[2:] - tight[:2]).repeat(2)
        assert ((box - tight).abs() <= 0.25 * extent + 5).all()
        for (x, y), kind in zip(points.long().tolist(), labels.tolist(), strict=True):
            assert kind == -1 or bool(mask[y, x]) == bool(kind)
    assert 0.1 < exact / count < 0.5
    used = asked.point_labels >= 0
    assert 0.2 < used.float().mean() < 0.9


def test_a_scene_without_objects_is_not_asked_about() -> None:
    scenes = draw(generator(0), batch=3)
    labels = scenes.labels.clone()
    labels[1] = 0
    all_seen = torch.ones(3, OBJECTS)
    asked = ask(Scenes(scenes.images, labels, all_seen), generator(1), prompts_per_image=2)
    assert asked.image_index.tolist() == [0, 0, 2, 2]
    assert asks_anything(Scenes(scenes.images, labels, all_seen))
    labels[:] = 0
    labels[0, 0, : MIN_AREA_PX - 1] = 1
    assert not asks_anything(Scenes(scenes.images, labels, all_seen))


def test_a_mask_that_fills_the_image_gets_no_click_outside() -> None:
    scenes = draw(generator(0), batch=1)
    full = Scenes(scenes.images, torch.ones_like(scenes.labels), torch.ones(1, OBJECTS))
    asked = ask(full, generator(1), prompts_per_image=50)
    assert set(asked.point_labels.unique().tolist()) == {-1, 1}


def test_the_loss_is_least_for_the_right_mask_and_the_right_confidence() -> None:
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    masks = ((y - 50) ** 2 + (x - 70) ** 2 < 20**2).float()[None]
    boxes = torch.tensor([[50.0, 30.0, 90.0, 70.0]])
    right = (F.avg_pool2d(masks[:, None], 2) - 0.5).mul(30).expand(-1, 4, -1, -1)
    sure = torch.ones(1, 4)
    best, dice = losses(right, sure, masks, boxes)
    assert best < 0.1
    assert dice > 0.98
    for logits, iou in ((right.roll(6, 3), sure), (-right, sure), (right, sure * 0.2), (torch.zeros_like(right), sure)):
        worse, _ = losses(logits, iou, masks, boxes)
        assert worse > best + 0.2


def test_only_the_best_of_the_three_masks_for_ambiguous_prompts_learns() -> None:
    masks = torch.zeros(1, 128, 128)
    masks[:, 40:80, 40:80] = 1
    boxes = torch.tensor([[40.0, 40.0, 80.0, 80.0]])
    logits = torch.zeros(1, 4, 64, 64)
    logits[:, 2] = (F.avg_pool2d(masks, 2) - 0.5) * 4
    logits.requires_grad_()
    loss, _ = losses(logits, torch.zeros(1, 4), masks, boxes)
    loss.backward()
    assert logits.grad is not None
    size = logits.grad.abs().sum((0, 2, 3))
    assert (size[[0, 2]] > 0).all()
    assert (size[[1, 3]] == 0).all()


def test_the_sketch_loss_is_least_for_the_true_borders_and_the_picture_itself() -> None:
    scenes = draw(generator(0), batch=2)
    edges = torch.zeros_like(scenes.labels, dtype=torch.bool)
    edges[:, 1:] |= scenes.labels[:, 1:] != scenes.labels[:, :-1]
    edges[:, :, 1:] |= scenes.labels[:, :, 1:] != scenes.labels[:, :, :-1]
    borders = F.max_pool2d(edges[:, None].float(), 2)
    picture = F.avg_pool2d(scenes.images, 2)
    right = F.pixel_unshuffle(torch.cat([borders * 40 - 20, picture], 1), 4)
    best = sketch_loss(right, scenes)
    assert best < 1e-3
    assert sketch_loss(right.roll(1, 0), scenes) > best + 0.1
    blank = F.pixel_unshuffle(torch.cat([torch.full_like(borders, -20), picture], 1), 4)
    assert sketch_loss(blank, scenes) > best + 0.1


def test_true_iou_is_that_of_the_mask_at_full_size() -> None:
    masks = torch.zeros(1, 128, 128)
    masks[0, 32:64, 32:96] = 1
    answers = torch.stack([masks[0], masks[0].roll(32, 1), 1 - masks[0], torch.ones(128, 128)])
    logits = F.avg_pool2d(answers[None], 2) - 0.5
    assert torch.allclose(true_iou(logits, masks), torch.tensor([[1.0, 1 / 3, 0.0, 0.125]]))


def test_a_correction_clicks_where_the_answer_is_wrong_most_deeply() -> None:
    masks = torch.zeros(3, 128, 128)
    masks[:, 32:64, 32:96] = 1
    missed, too_much, right = masks.clone()
    missed[32:64, 64:96] = 0
    missed[10:12, 10:12] = 1  # a small mistake elsewhere
    too_much[80:120, 40:80] = 1
    logits = F.avg_pool2d(torch.stack([missed, too_much, right])[:, None], 2) - 0.5
    points, labels = corrections(logits, masks)
    assert points.shape == (3, POINTS, 2)
    assert labels.tolist() == [[1, -1, -1], [0, -1, -1], [-1, -1, -1]]
    (x, y), (other_x, other_y) = points[:2, 0].tolist()
    assert 64 + 5 < x < 96 - 5
    assert 32 + 5 < y < 64 - 5
    assert 40 + 5 < other_x < 80 - 5
    assert 80 + 5 < other_y < 120 - 5


def test_rough_masks_are_about_right_and_never_twice_the_same() -> None:
    scenes = draw(generator(3), batch=8)
    masks = ask(scenes, generator(1), prompts_per_image=4).masks
    masks = masks[masks.mean((1, 2)) > 0.03]
    rough = rough_logits(masks, generator(2), side=64)
    assert rough.shape == (len(masks), 1, 64, 64)
    iou = true_iou(rough, masks)
    assert 0.4 < iou.mean() < 0.95
    assert (iou > 0.2).float().mean() > 0.8
    assert torch.equal(rough, rough_logits(masks, generator(2), side=64))
    assert not torch.equal(rough, rough_logits(masks, generator(4), side=64))


def test_tight_boxes_touch_the_mask_on_every_side() -> None:
    masks = torch.zeros(2, 32, 32)
    masks[0, 3:9, 20:21] = 1
    masks[1] = 1
    assert tight_boxes(masks).tolist() == [[20, 3, 21, 9], [0, 0, 32, 32]]


def test_a_small_object_weighs_as_much_as_a_large_one() -> None:
    """The loss of finding nothing is about the same, whatever share of the picture the object is."""
    found = []
    for half in (4, 12, 40):
        masks = torch.zeros(1, 128, 128)
        masks[:, 64 - half : 64 + half, 64 - half : 64 + half] = 1
        boxes = torch.tensor([[64.0 - half, 64.0 - half, 64.0 + half, 64.0 + half]])
        loss, _ = losses(torch.full((1, 4, 64, 64), -4.0), torch.zeros(1, 4), masks, boxes)
        found.append(float(loss))
    assert max(found) < 1.8 * min(found)
