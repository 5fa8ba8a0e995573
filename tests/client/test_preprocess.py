"""The network's grid and back: nothing is lost but what the resolution cannot hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.preprocess import from_network, geometry, inside, mask_to_network, to_network


def place_of(rows: int, columns: int, *, size_px: int = 64, mm: tuple[float, float] | None = None, to_mm: float | None = None):  # type: ignore[no-untyped-def]
    return geometry(rows=rows, columns=columns, in_plane_mm=mm, spacing_mm=to_mm, size_px=size_px)


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 200), st.integers(4, 200), st.sampled_from([32, 64, 96]))
def test_every_image_fits_and_keeps_its_shape(rows: int, columns: int, size_px: int) -> None:
    place = place_of(rows, columns, size_px=size_px)
    assert max(place.height, place.width) == size_px
    assert place.top + place.height <= size_px
    assert place.left + place.width <= size_px
    assert place.height / place.width == pytest.approx(rows / columns, rel=0.6 / min(place.height, place.width) + 0.02)


def test_pixels_become_square_and_of_the_asked_size() -> None:
    place = place_of(100, 50, size_px=128, mm=(1.0, 2.0), to_mm=2.0)
    assert (place.height, place.width) == (50, 50)


def test_an_image_too_large_at_the_asked_size_is_scaled_to_fit() -> None:
    place = place_of(400, 200, size_px=128, mm=(1.0, 1.0), to_mm=1.0)
    assert (place.height, place.width) == (128, 64)


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 60), st.integers(20, 60), st.integers(0, 2**31))
def test_a_mask_comes_back_where_it_was(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns]
    centre = rng.uniform(0.35, 0.65, 2) * (rows, columns)
    mask = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (0.3 * min(rows, columns)) ** 2).astype(np.uint8)
    place = place_of(rows, columns, size_px=128)
    on_network = torch.from_numpy(mask_to_network(mask, place)).long()
    one_hot = torch.nn.functional.one_hot(on_network, 2).permute(2, 0, 1)[None].float()
    back = from_network(one_hot, place).argmax(dim=1)[0].numpy()
    assert back.shape == mask.shape
    overlap = 2 * (back & mask).sum() / (back.sum() + mask.sum())
    assert overlap > 0.97


def test_intensities_are_zero_to_one_whatever_the_units() -> None:
    voxels = np.random.default_rng(0).normal(300, 40, (3, 20, 30)).astype(np.float32)
    place = place_of(20, 30)
    one = to_network(voxels, place, channels=1, low_percentile=0.5, high_percentile=99.5)
    other = to_network(voxels * 7 - 900, place, channels=1, low_percentile=0.5, high_percentile=99.5)
    np.testing.assert_allclose(one, other, atol=2e-3)
    rows, columns = inside(place)
    assert 0 <= one.min() < one[:, :, rows, columns].mean() < one.max() <= 1
    outside = one.copy()
    outside[:, :, rows, columns] = 0
    assert not outside.any(), "the padding is black"


def test_a_constant_image_becomes_zeros_not_nan() -> None:
    out = to_network(np.full((1, 8, 8), 5.0, np.float32), place_of(8, 8), channels=1, low_percentile=1, high_percentile=99)
    assert not out.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_image_with_nan_is_refused(bad: float) -> None:
    voxels = np.ones((1, 8, 8), np.float32)
    voxels[0, 3, 3] = bad
    with pytest.raises(FloatingPointError, match="NaN or Inf"):
        to_network(voxels, place_of(8, 8), channels=1, low_percentile=1, high_percentile=99)


def test_colour_is_kept_or_averaged() -> None:
    voxels = np.zeros((1, 16, 16, 3), np.float32)
    voxels[..., 0] = np.linspace(0, 1, 16)
    colour = to_network(voxels, place_of(16, 16), channels=3, low_percentile=0, high_percentile=100)
    grey = to_network(voxels, place_of(16, 16), channels=1, low_percentile=0, high_percentile=100)
    assert colour.shape == (1, 3, 64, 64)
    assert grey.shape == (1, 1, 64, 64)
    assert colour[0, 0].max() > 0.9
    assert not colour[0, 1].any()
