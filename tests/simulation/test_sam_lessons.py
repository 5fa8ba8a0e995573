"""Prompts ask for the object that they mean, and the loss is least for the right answer."""

import torch
from torch.nn import functional as F

from simulation.sam_lessons import (
    MIN_AREA_PX,
    MIN_SEEN,
    POINTS,
    _boxes,
    ask,
    asks_anything,
    corrections,
    grouping_loss,
    sketch_loss,
    tight_boxes,
)
from simulation.sam_shapes import OBJECTS, Scenes, draw
from strategies.sam_losses import answer_losses


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
        assert ((box - tight).abs() <= 0.36 * extent + 5).all()
        for (x, y), kind in zip(points.long().tolist(), labels.tolist(), strict=True):
            assert kind == -1 or bool(mask[y, x]) == bool(kind)
    assert 0.45 < exact / count < 0.75
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


def test_tight_boxes_touch_the_mask_on_every_side() -> None:
    masks = torch.zeros(2, 32, 32)
    masks[0, 3:9, 20:21] = 1
    masks[1] = 1
    assert tight_boxes(masks).tolist() == [[20, 3, 21, 9], [0, 0, 32, 32]]


def test_the_grouping_loss_is_least_when_objects_are_told_apart_and_does_not_ask_about_borders() -> None:
    labels = torch.zeros(2, 96, 96, dtype=torch.int64)
    labels[:, 8:40, 8:40], labels[:, 48:88, 52:92] = 1, 2
    scenes = Scenes(torch.rand(2, 1, 96, 96), labels, torch.ones(2, OBJECTS))
    told = F.one_hot(F.avg_pool2d(labels[:, None].float(), 4)[:, 0].long(), 3).movedim(-1, 1).float()
    right = grouping_loss(told, scenes, generator(0))
    alike = grouping_loss(torch.ones_like(told), scenes, generator(0))
    mixed = grouping_loss(told.roll(1, dims=1) * torch.randn(2, 3, 24, 24), scenes, generator(0))
    assert right < 0.1 < mixed
    assert right < 0.1 < alike
    features = torch.randn(2, 8, 24, 24, generator=generator(1)).requires_grad_()
    grouping_loss(features, scenes, generator(2)).backward()
    assert features.grad is not None
    assert (features.grad != 0).any()
    shifted = Scenes(scenes.images, labels.roll(2, dims=1), scenes.seen)  # borders now run through cells
    assert torch.isfinite(grouping_loss(features, shifted, generator(2)))


def test_the_grouping_loss_of_a_scene_without_objects_is_nothing() -> None:
    empty = Scenes(torch.rand(1, 1, 96, 96), torch.zeros(1, 96, 96, dtype=torch.int64), torch.zeros(1, OBJECTS))
    assert float(grouping_loss(torch.randn(1, 8, 24, 24), empty, generator(0))) == 0


def test_a_careless_box_of_a_thin_object_is_still_a_box() -> None:
    masks = torch.zeros(200, 64, 64)
    masks[:, 10:40, 30:31] = 1
    boxes = _boxes(masks, generator(0))
    assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
    loss, _ = answer_losses(torch.zeros(200, 4, 32, 32), torch.zeros(200, 4), masks, boxes)
    assert loss.isfinite()
