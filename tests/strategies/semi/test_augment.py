"""Augmentation: labels stay on their pixels, the same generator state repeats, geometry is what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor

from strategies.semi.augment import Intensity, Warp, augment, blur, draw_intensity, draw_warp


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def still(count: int, size: tuple[int, int], *, x: float = 1.0, y: float = 1.0) -> Warp:
    return Warp(theta=torch.tensor([[x, 0.0, 0.0], [0.0, y, 0.0]]).repeat(count, 1, 1), size=size)


def in_pixels(warp: Warp) -> Tensor:
    """The linear part of each map in pixel units, (B, 2, 2)."""
    height, width = warp.size
    scale = torch.tensor([width / 2, height / 2])
    return warp.theta[:, :, :2] * scale[:, None] / scale[None, :]


def slow_warp(image: np.ndarray, warp: Warp, index: int, *, nearest: bool) -> np.ndarray:
    """One image resampled by definition: all its pixels, weighted by how near they are to where `theta` points."""
    height, width = warp.size
    theta, result = warp.theta[index].double().numpy(), np.zeros(warp.size)
    rows, columns = np.arange(height), np.arange(width)
    for row, column in np.ndindex(height, width):
        x, y = theta @ [(2 * column + 1) / width - 1, (2 * row + 1) / height - 1, 1.0]
        row_distance = np.abs(rows - ((y + 1) * height - 1) / 2)
        column_distance = np.abs(columns - ((x + 1) * width - 1) / 2)
        if nearest:
            weights = np.outer(row_distance < 0.5, column_distance < 0.5)
        else:
            weights = np.outer(np.maximum(1 - row_distance, 0), np.maximum(1 - column_distance, 0))
        result[row, column] = (weights * image).sum()
    return result


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_resampling_equals_its_definition_for_every_image_of_the_batch(size: tuple[int, int]) -> None:
    warp = draw_warp(4, size=size, generator=generator(3), quarter_turns=True)
    images, labels = torch.rand(4, 2, *size), torch.randint(0, 4, (4, *size))
    warped, nearest = warp.images(images), warp.labels(labels)
    for index in range(4):
        for channel in range(2):
            expected = slow_warp(images[index, channel].numpy(), warp, index, nearest=False)
            np.testing.assert_allclose(warped[index, channel].numpy(), expected, atol=1e-4)
        expected = slow_warp(labels[index].numpy(), warp, index, nearest=True)
        assert (nearest[index].numpy() == expected).mean() > 0.98, "all but ties between two pixels"


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), height=st.integers(4, 24), width=st.integers(4, 24))
def test_labels_and_images_stay_on_each_other(seed: int, height: int, width: int) -> None:
    """The label painted in the image: the nearest pixel has at least a quarter of a bilinear mixture."""
    labels = torch.randint(0, 2, (3, height, width), generator=generator(seed))
    warp = draw_warp(3, size=(height, width), generator=generator(seed))
    painted, moved = warp.images(labels.unsqueeze(1).float()).squeeze(1), warp.labels(labels)
    assert moved.dtype == torch.int64
    assert (painted[moved == 1] >= 0.25 - 1e-3).all()
    assert (painted[moved == 0] <= 0.75 + 1e-3).all()


def test_augment_keeps_images_and_labels_together() -> None:
    """A bright disc with its label, changed by warp and intensity: bright is still the class and dark is not."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = ((rows - 22) ** 2 + (columns - 38) ** 2 < 12**2).long().repeat(8, 1, 1)
    images = 0.2 + 0.6 * disc.unsqueeze(1).float()
    before = images.clone(), disc.clone()
    seen, labels = augment(images, disc, generator=generator(1))
    assert torch.equal(images, before[0])
    assert torch.equal(disc, before[1])
    assert seen.shape == images.shape
    assert seen.dtype == images.dtype
    assert labels.dtype == torch.int64
    assert 0.0 <= seen.min() <= seen.max() <= 1.0
    for image, label in zip(seen[:, 0], labels, strict=True):
        assert 0.6 * disc[0].sum() < label.sum() < 1.6 * disc[0].sum()
        threshold = (image[label == 1].mean() + image[label == 0].mean()) / 2
        assert ((image > threshold) == (label == 1)).float().mean() > 0.97
    assert not torch.equal(labels[0], labels[1]), "every image has its own map"


def test_the_generator_decides_everything_and_nothing_else_is_touched() -> None:
    images, labels = torch.rand(3, 1, 16, 16), torch.randint(0, 3, (3, 16, 16))
    state = torch.get_rng_state()
    first, second = (augment(images, labels, generator=generator(5)) for _ in range(2))
    other = augment(images, labels, generator=generator(6))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])
    running = generator(5)
    augment(images, labels, generator=running)
    assert not torch.equal(augment(images, labels, generator=running)[0], first[0]), "the state moves on"


def test_identity_and_mirrors_are_exact() -> None:
    images, labels = torch.rand(2, 1, 8, 12), torch.randint(0, 5, (2, 8, 12))
    for x, y, axes in [(1.0, 1.0, []), (-1.0, 1.0, [-1]), (1.0, -1.0, [-2])]:
        warp = still(2, (8, 12), x=x, y=y)
        torch.testing.assert_close(warp.images(images), images.flip(axes), atol=1e-5, rtol=0)
        assert torch.equal(warp.labels(labels), labels.flip(axes))
        assert warp.valid.all()


def test_what_comes_from_outside_is_background_and_not_valid() -> None:
    """Half the size: the image fills the middle, and around it there is nothing."""
    warp = still(1, (16, 16), x=2.0, y=2.0)
    valid = warp.valid[0]
    assert valid[4:12, 4:12].all()
    assert valid.sum() == 64
    probs = warp.probs(torch.rand(1, 3, 16, 16).softmax(1))
    torch.testing.assert_close(probs.sum(1)[0][valid], torch.ones(64))
    assert (warp.labels(torch.ones(1, 16, 16, dtype=torch.int64))[0] == valid.long()).all()
    unknown = warp.labels(torch.ones(1, 16, 16, dtype=torch.uint8), outside=255)
    assert unknown.dtype == torch.uint8
    assert (unknown[0] == torch.where(valid, 1, 255)).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), height=st.integers(8, 64), width=st.integers(8, 64), flip=st.booleans())
def test_maps_turn_and_zoom_within_their_limits_and_never_shear(seed: int, height: int, width: int, flip: bool) -> None:
    warp = draw_warp(8, size=(height, width), generator=generator(seed), flip=flip, degrees=20.0, scale=0.15, shift=0.05)
    matrix = in_pixels(warp).double()
    gram = matrix.mT @ matrix
    zoom = gram[:, 0, 0].rsqrt()
    torch.testing.assert_close(gram, torch.eye(2, dtype=torch.float64) / zoom[:, None, None] ** 2, atol=1e-5, rtol=0)
    assert (zoom >= 0.85 - 1e-4).all()
    assert (zoom <= 1.15 + 1e-4).all()
    assert (warp.theta[:, :, 2].abs() <= 2 * 0.05 + 1e-6).all()
    assert (matrix[:, 1, 1].abs() * zoom >= math.cos(math.radians(20.0)) - 1e-4).all()
    if not flip:
        assert (torch.linalg.det(matrix) > 0).all()
        assert (matrix[:, 0, 0] > 0).all()


def test_rotation_zoom_and_shift_use_their_whole_range() -> None:
    warp = draw_warp(300, size=(32, 32), generator=generator(1), flip=False, degrees=20.0, scale=0.15, shift=0.05)
    matrix = in_pixels(warp)
    degrees = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]).rad2deg()
    zoom = torch.linalg.det(matrix).rsqrt()
    for drawn, low, high in [
        (degrees, -20.0, 20.0),
        (zoom, 0.85, 1.15),
        (warp.theta[:, 0, 2], -0.1, 0.1),
        (warp.theta[:, 1, 2], -0.1, 0.1),
    ]:
        margin = 0.05 * (high - low)
        assert low - 1e-3 <= drawn.min() < low + margin
        assert high - margin < drawn.max() <= high + 1e-3


def test_flips_come_in_every_combination_and_can_be_switched_off() -> None:
    signs = in_pixels(draw_warp(200, size=(32, 32), generator=generator(2)))
    found = {(bool(m[0, 0] > 0), bool(m[1, 1] > 0)) for m in signs}
    assert len(found) == 4
    labels = torch.zeros(20, 32, 32, dtype=torch.int64)
    labels[:, 14:18, 2:8] = 1  # on the left; without flips it stays there
    _, kept = augment(torch.zeros(20, 1, 32, 32), labels, generator=generator(2), flip=False)
    assert (kept[:, :, 16:] == 0).all()
    _, turned = augment(torch.zeros(20, 1, 32, 32), labels, generator=generator(2))
    assert (turned[:, :, 16:] == 1).any()


def test_quarter_turns_reach_all_four_sides() -> None:
    labels = torch.zeros(60, 32, 32, dtype=torch.int64)
    labels[:, 14:18, 2:8] = 1
    moved = draw_warp(60, size=(32, 32), generator=generator(4), flip=False, quarter_turns=True).labels(labels)
    centres = [torch.nonzero(label).float().mean(0) - 15.5 for label in moved]
    assert {int(torch.atan2(*c).div(math.pi / 2).round()) % 4 for c in centres} == {0, 1, 2, 3}


def test_a_warp_refuses_another_size_or_count() -> None:
    warp = draw_warp(2, size=(16, 16), generator=generator())
    with pytest.raises(ValueError, match=r"\(2, 16, 16\)"):
        warp.images(torch.rand(2, 1, 16, 32))
    with pytest.raises(ValueError, match=r"\(2, 16, 16\)"):
        warp.labels(torch.zeros(1, 16, 16, dtype=torch.int64))


def test_intensity_of_a_case_worked_by_hand() -> None:
    """0.25 and 1 with exponent ½ are 0.5 and 1, mean 0.75; distances halved 0.625 and 0.875; 0.1 brighter; cut at 1."""
    change = Intensity(
        gamma=torch.tensor([0.5]),
        contrast=torch.tensor([0.5]),
        brightness=torch.tensor([0.1]),
        noise=torch.tensor([0.0, 0.5]).view(1, 1, 1, 2),
    )
    result = change.images(torch.tensor([0.25, 1.0]).view(1, 1, 1, 2))
    torch.testing.assert_close(result.flatten(), torch.tensor([0.725, 1.0]))


def test_intensity_of_nothing_is_nothing() -> None:
    images = torch.rand(2, 3, 8, 8)
    change = draw_intensity(images.shape, generator=generator(), gamma=1.0, contrast=0.0, brightness=0.0, noise=0.0)
    torch.testing.assert_close(change.images(images), images)


def test_intensity_keeps_the_order_of_grey_values_and_differs_between_images() -> None:
    ramp = torch.linspace(0.2, 0.8, 64).view(1, 1, 8, 8).repeat(6, 1, 1, 1)
    before = ramp.clone()
    seen = draw_intensity(ramp.shape, generator=generator(1), noise=0.0).images(ramp).flatten(1)
    assert torch.equal(ramp, before), "the caller's images stay as they are"
    assert (seen.diff(dim=1) >= 0).all()
    assert len({tuple(row.tolist()) for row in seen}) == 6


def test_blur_is_a_gaussian_of_each_image_s_own_width() -> None:
    images, sigma = torch.rand(4, 2, 9, 24, generator=generator()), torch.tensor([0.0, 0.3, 1.0, 2.0])
    blurred = blur(images, sigma)
    assert torch.equal(blurred[0], images[0])
    for image, result, width in zip(images[1:], blurred[1:], sigma[1:].tolist(), strict=True):
        for channel, found in zip(image, result, strict=True):
            expected = gaussian_filter(channel.double().numpy(), width, mode="nearest", radius=6)
            np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    with pytest.raises(ValueError, match="at most 2 px"):
        blur(images, sigma + 0.1)
