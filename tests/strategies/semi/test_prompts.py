"""Prompts say where the specialist believes an object lies: boxes that fit, clicks on the right side, background never."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor

from strategies.semi.prompts import Prompts, jittered, mask_prompts, prompts_from

FIELDS = ("image_index", "class_index", "boxes", "points", "point_labels", "components")


def disc(size: int, row: float, column: float, radius: float) -> Tensor:
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


def probabilities(class_map: Tensor, classes: int, sure: float = 0.97) -> Tensor:
    """(B, H, W) classes to probabilities that give `sure` to each pixel's class."""
    one_hot = torch.nn.functional.one_hot(class_map.long(), classes + 1).movedim(-1, 1).float()
    return one_hot * (sure - (1 - sure) / classes) + (1 - sure) / classes


def clicked(prompts: Prompts, which: int, kind: int) -> list[tuple[int, int]]:
    """(row, column) of the pixels that a prompt's clicks of a kind lie in."""
    chosen = prompts.points[which][prompts.point_labels[which] == kind]
    return [(int(y), int(x)) for x, y in chosen.tolist()]


def test_a_disc_gets_a_tight_box_clicks_inside_and_clicks_outside() -> None:
    mask = disc(96, 40, 60, 14)
    prompts = prompts_from(probabilities(mask[None], 1), padding_px=2, positives=3, negatives=4, border_px=8)
    assert len(prompts) == 1
    assert prompts.boxes[0].tolist() == [60 - 14 - 2, 40 - 14 - 2, 60 + 14 + 2, 40 + 14 + 2]
    assert prompts.class_index.tolist() == [1]
    assert torch.equal(prompts.components[0], mask)
    inside, outside = clicked(prompts, 0, 1), clicked(prompts, 0, 0)
    assert len(inside) == 3
    assert len(outside) == 4
    assert all(mask[place] for place in inside)
    assert not any(mask[place] for place in outside)
    assert abs(inside[0][0] - 40) <= 1  # the first click is the deepest point
    assert abs(inside[0][1] - 60) <= 1
    near = disc(96, 40, 60, 14 + 8 + 1)
    assert all(near[place] for place in outside)


def test_background_never_becomes_a_prompt() -> None:
    assert len(prompts_from(probabilities(torch.zeros(2, 64, 64), 3))) == 0
    mostly = torch.ones(1, 64, 64)
    mostly[0, :8] = 0
    prompts = prompts_from(probabilities(mostly, 1))
    assert prompts.boxes.tolist() == [[0, 6, 64, 64]]
    assert prompts.point_labels[0].tolist().count(1) == 1


def test_each_class_and_each_component_is_asked_for_by_itself_largest_first() -> None:
    class_map = torch.zeros(2, 96, 96)
    class_map[0][disc(96, 20, 20, 6)] = 2
    class_map[0][disc(96, 60, 60, 16)] = 1
    class_map[0][disc(96, 60, 60, 9)] = 2  # a lumen in its wall
    class_map[1][disc(96, 50, 30, 10)] = 3
    prompts = prompts_from(probabilities(class_map, 3), padding_px=0)
    assert prompts.image_index.tolist() == [0, 0, 0, 1]
    assert prompts.class_index.tolist() == [1, 2, 2, 3]
    assert prompts.boxes.tolist() == [[44, 44, 76, 76], [51, 51, 69, 69], [14, 14, 26, 26], [20, 40, 40, 60]]
    for number in range(len(prompts)):
        own = class_map[prompts.image_index[number]] == prompts.class_index[number]
        assert (own | ~prompts.components[number]).all()
        assert all(own[place] for place in clicked(prompts, number, 1))
        assert not any(own[place] for place in clicked(prompts, number, 0))


def test_specks_and_components_beyond_the_most_are_dropped() -> None:
    class_map = torch.zeros(1, 96, 96)
    for column, radius in ((15, 8), (40, 6), (60, 4), (80, 1.5)):
        class_map[0][disc(96, 50, column, radius)] = 1
    probs = probabilities(class_map, 1)
    assert prompts_from(probs, padding_px=0, max_components=9, min_area_px=16).boxes[:, 0].tolist() == [7, 34, 56]
    assert prompts_from(probs, padding_px=0, max_components=2, min_area_px=16).boxes[:, 0].tolist() == [7, 34]
    assert len(prompts_from(probs, min_area_px=1000)) == 0
    assert len(prompts_from(probs, max_components=9, min_area_px=1)) == 4
    assert len(prompts_from(probs, max_components=9)) == 3, "specks are dropped where nothing is said"
    assert len(prompts_from(probs)) == 2, "and two are kept"


def test_outside_clicks_need_confidence_that_the_pixel_is_not_of_the_class() -> None:
    mask = disc(64, 32, 32, 10)
    unsure = probabilities(mask[None], 1, sure=0.7)
    assert prompts_from(unsure, confidence=0.9).point_labels.tolist() == [[1, -1, -1]]
    halves = unsure.clone()
    halves[0, 0, :, :32], halves[0, 1, :, :32] = torch.where(mask[:, :32], 0.3, 0.95), torch.where(mask[:, :32], 0.7, 0.05)
    prompts = prompts_from(halves, confidence=0.9)
    assert prompts.point_labels.tolist() == [[1, 0, 0]]
    assert all(column < 32 for _, column in clicked(prompts, 0, 0))


def test_no_box_or_click_leaves_the_image() -> None:
    class_map = torch.zeros(1, 64, 64)
    class_map[0, :10, 50:] = 1
    prompts = prompts_from(probabilities(class_map, 1), padding_px=5, negatives=3)
    assert prompts.boxes.tolist() == [[45, 0, 64, 15]]
    placed = prompts.points[prompts.point_labels >= 0]
    assert ((placed > 0) & (placed < 64)).all()


def test_permuting_the_batch_permutes_the_prompts() -> None:
    probs = _random_probabilities(seed=3, images=5, classes=2, size=48)
    order = [3, 0, 4, 2, 1]
    straight, permuted = prompts_from(probs), prompts_from(probs[order])
    for place, image in enumerate(order):
        one, other = straight.select(straight.image_index == image), permuted.select(permuted.image_index == place)
        assert len(one) > 0
        for field in FIELDS[1:]:
            assert torch.equal(getattr(one, field), getattr(other, field))


def test_a_batch_gives_what_its_images_give_one_by_one() -> None:
    probs = _random_probabilities(seed=4, images=4, classes=3, size=48)
    together = prompts_from(probs)
    alone = [prompts_from(image[None]) for image in probs]
    for field in FIELDS[1:]:
        assert torch.equal(getattr(together, field), torch.cat([getattr(one, field) for one in alone]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(1, 3), size=st.sampled_from([16, 33, 64]))
def test_every_prompt_keeps_its_promises(seed: int, classes: int, size: int) -> None:
    probs = _random_probabilities(seed=seed, images=2, classes=classes, size=size)
    prompts = prompts_from(probs, padding_px=1, positives=2, negatives=3, confidence=0.6, min_area_px=5)
    assert prompts.points.shape == (len(prompts), 5, 2)
    winner = probs.argmax(1)
    for number in range(len(prompts)):
        component = prompts.components[number]
        image, class_ = int(prompts.image_index[number]), int(prompts.class_index[number])
        assert class_ >= 1
        assert (winner[image][component] == class_).all()
        assert component.sum() >= 5
        rows, columns = torch.where(component)
        left, top, right, bottom = prompts.boxes[number].tolist()
        assert left == max(int(columns.min()) - 1, 0)
        assert right == min(int(columns.max()) + 2, size)
        assert top == max(int(rows.min()) - 1, 0)
        assert bottom == min(int(rows.max()) + 2, size)
        inside, outside = clicked(prompts, number, 1), clicked(prompts, number, 0)
        assert inside
        assert all(component[place] for place in inside)
        assert not any(component[place] for place in outside)
        assert all(probs[image, class_][place] <= 0.4 + 1e-6 for place in outside)


def test_logits_are_refused_not_thresholded() -> None:
    with pytest.raises(ValueError, match="softmax"):
        prompts_from(torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="background"):
        prompts_from(torch.rand(1, 1, 32, 32))


def test_there_is_no_way_in_for_a_label() -> None:
    assert [name for name in inspect.signature(prompts_from).parameters if "label" in name or "truth" in name] == []


def _random_probabilities(*, seed: int, images: int, classes: int, size: int) -> Tensor:
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=(images, classes + 1, size, size)), sigma=(0, 0, 3, 3))
    return torch.from_numpy(smooth * 30).float().softmax(1)


def test_jitter_moves_what_is_there_a_little_and_stays_in_the_image() -> None:
    masks = torch.stack([disc(96, 40, 60, 14), disc(96, 12, 14, 11)])
    prompts = prompts_from(probabilities(masks, 1), positives=2, negatives=1)
    hidden = Prompts(**{field: getattr(prompts, field) for field in FIELDS})
    hidden.point_labels[1, 2], hidden.points[1, 2] = -1, 0.0
    moved = jittered(hidden, size=(96, 96), generators=[torch.Generator().manual_seed(n) for n in range(2)], share=0.1)
    sides = (hidden.boxes[:, 2:] - hidden.boxes[:, :2]).repeat(1, 2)
    change = (moved.boxes - hidden.boxes).abs()
    assert (change <= 0.1 * sides + 1e-4).all()
    assert (change > 0).sum() >= 6
    there = hidden.point_labels >= 0
    assert (moved.points[there] != hidden.points[there]).any(1).all()
    assert (moved.points[~there] == 0).all()
    assert (moved.boxes >= 0).all()
    assert (moved.boxes <= 96).all()
    for field in ("image_index", "class_index", "point_labels", "components"):
        assert torch.equal(getattr(moved, field), getattr(hidden, field))
    again = jittered(hidden, size=(96, 96), generators=[torch.Generator().manual_seed(n) for n in range(2)], share=0.1)
    assert torch.equal(moved.boxes, again.boxes)


def often(times: int, *, box: list[float], clicks: list[list[float]], size: tuple[int, int]) -> Prompts:
    """The same prompt about the same image, many times."""
    return Prompts(
        image_index=torch.zeros(times, dtype=torch.int64),
        class_index=torch.ones(times, dtype=torch.int64),
        boxes=torch.tensor(box).repeat(times, 1),
        points=torch.tensor(clicks).repeat(times, 1, 1),
        point_labels=torch.ones(times, len(clicks), dtype=torch.int64),
        components=torch.zeros(times, *size, dtype=torch.bool),
    )


def test_jitter_takes_no_click_over_the_border_of_an_image_that_is_wider_than_high() -> None:
    prompts = often(100, box=[0, 0, 80, 40], clicks=[[0.5, 0.5], [79.5, 39.5]], size=(40, 80))
    points = jittered(prompts, size=(40, 80), generators=[torch.Generator().manual_seed(0)], share=0.1).points
    lowest, highest = points.amin(0), points.amax(0)
    assert lowest[0].tolist() == [0, 0]
    assert highest[1].tolist() == [80, 40]
    assert (lowest[1] > torch.tensor([70, 35])).all()
    assert (highest[0] < torch.tensor([10, 5])).all()


def test_jitter_goes_either_way_alike_by_a_share_of_the_side_and_at_least_a_pixel() -> None:
    """5 % of a width of 100 is 5 px; of a height of 10 it would be half a pixel."""
    prompts = often(2000, box=[50, 95, 150, 105], clicks=[[100, 100]], size=(200, 200))
    moved = jittered(prompts, size=(200, 200), generators=[torch.Generator().manual_seed(0)], share=0.05)
    moves = torch.cat([moved.boxes - prompts.boxes, (moved.points - prompts.points)[:, 0]], 1)
    moves = moves / torch.tensor([5.0, 1.0]).repeat(3)
    for move in moves.T:
        assert float(move.mean()) == pytest.approx(0, abs=0.07)
        assert float((move > 0).float().mean()) == pytest.approx(0.5, abs=0.06)
        assert -1.001 < float(move.min()) < -0.98
        assert 0.98 < float(move.max()) < 1.001


def test_a_mask_prompt_says_what_the_prediction_says_of_its_object_and_of_nothing_else() -> None:
    left, right = disc(64, 32, 16, 9), disc(64, 32, 48, 7)
    probs = probabilities((left | right)[None], 1, sure=0.9)
    prompts = prompts_from(probs, padding_px=0)
    masks = mask_prompts(prompts, probs, margin_px=2)
    odds = float(torch.tensor(0.9).logit())
    for mask, mine, other in ((masks[0], left, right), (masks[1], right, left)):
        assert torch.allclose(mask[mine], torch.tensor(odds), atol=1e-4)
        assert (mask[other] == -8).all()
        assert torch.equal(mask > 0, mine)
    assert float(masks[0, 32, 16 - 9 - 2]) == pytest.approx(-odds, abs=1e-4)
    assert float(masks[0, 32, 16 - 9 - 3]) == -8
    certain = mask_prompts(prompts, probabilities((left | right)[None], 1, sure=1.0))
    assert certain.abs().max() == 8


def test_mask_prompts_are_of_the_image_that_was_asked_about() -> None:
    """The published code hands the first image's to all."""
    one, other = disc(64, 20, 20, 8), disc(64, 44, 44, 8)
    probs = probabilities(torch.stack([one, other]), 1)
    masks = mask_prompts(prompts_from(probs), probs)
    assert torch.equal(masks > 0, torch.stack([one, other]))


def test_mask_prompts_take_the_class_that_was_asked_for() -> None:
    first, second = disc(64, 20, 20, 8), disc(64, 44, 44, 8)
    probs = probabilities((first.int() + 2 * second.int())[None], 2)
    masks = mask_prompts(prompts_from(probs), probs)
    assert torch.equal(masks[0] > 0, first)
    assert torch.equal(masks[1] > 0, second)
