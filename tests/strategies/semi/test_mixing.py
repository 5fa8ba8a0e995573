"""Pasted rectangles: where they lie, how large they are, who is whose partner."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.semi.mixing import CUT_ASPECT, CUT_SHARE, Paste, draw_cutmix, draw_partners, draw_rectangles, paste


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 13), st.data())
def test_a_rectangle_has_the_size_asked_for_and_lies_in_the_image(
    seed: int, height: int, width: int, data: st.DataObject
) -> None:
    tall, wide = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    heights, widths = torch.tensor([tall, 1]), torch.tensor([wide, width])
    for mask, h, w in zip(
        draw_rectangles(heights, widths, size=(height, width), generator=generator(seed)), (tall, 1), (wide, width), strict=True
    ):
        rows, columns = torch.where(mask)
        assert mask.sum() == h * w
        assert [int(places.max() - places.min()) + 1 for places in (rows, columns)] == [h, w]


def test_rectangles_lie_at_every_place_where_they_fit() -> None:
    count = 600
    masks = draw_rectangles(torch.full((count,), 2), torch.full((count,), 3), size=(4, 5), generator=generator())
    corners = [tuple(torch.nonzero(mask)[0].tolist()) for mask in masks]
    assert set(corners) == {(row, column) for row in range(3) for column in range(3)}
    assert min(corners.count(place) for place in set(corners)) > count / 9 / 2


@pytest.mark.parametrize("count", [2, 3, 8])
def test_every_image_gives_once_and_never_to_itself(count: int) -> None:
    seen = set()
    for seed in range(40):
        partners = draw_partners(count, generator=generator(seed)).tolist()
        assert sorted(partners) == list(range(count))
        assert all(partner != image for image, partner in enumerate(partners))
        seen.add(partners[0])
    assert seen == set(range(1, count))


def test_an_image_alone_is_its_own_partner() -> None:
    assert draw_partners(1, generator=generator()).tolist() == [0]


def test_images_labels_and_masks_are_pasted_alike() -> None:
    inside = torch.zeros(2, 3, 3, dtype=torch.bool)
    inside[0, 0] = inside[1, :, 2] = True
    cut = Paste(torch.tensor([1, 0]), inside)
    labels = torch.stack([torch.full((3, 3), 5), torch.full((3, 3), 7)])
    expected = torch.tensor([[[7, 7, 7], [5, 5, 5], [5, 5, 5]], [[7, 7, 5]] * 3])
    assert torch.equal(cut.apply(labels), expected)
    images = torch.stack([labels, 10 * labels], dim=1).float()
    assert torch.equal(cut.apply(images), torch.stack([expected, 10 * expected], dim=1).float())
    assert torch.equal(cut.apply(labels == 7), expected == 7)
    assert torch.equal(paste(labels, -labels, inside), torch.where(inside, labels, -labels))


def test_cutmix_has_the_areas_and_the_frequency_of_the_paper_s_code() -> None:
    cut = draw_cutmix(2000, size=(64, 96), generator=generator())
    drawn = cut.inside.flatten(1).any(1)
    assert 0.45 < drawn.float().mean() < 0.55
    share = cut.inside[drawn].float().mean((1, 2))
    assert CUT_SHARE[0] * 0.8 < share.min() < 0.04
    assert 0.36 < share.max() < CUT_SHARE[1] * 1.05
    heights, widths = cut.inside[drawn].any(2).sum(1), cut.inside[drawn].any(1).sum(1)
    aspect = heights / widths
    assert CUT_ASPECT[0] * 0.8 < aspect.min() < 0.5
    assert 2 < aspect.max() < CUT_ASPECT[1] * 1.25
