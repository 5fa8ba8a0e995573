"""Pixel maps against values worked by hand and slow loops, and what reduces them to a number a case."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from strategies.query.reduce import mean_over_pixels, predicts_foreground, with_border
from strategies.query.uncertainty import bald, entropy


def probabilities(seed: int, *shape: int, sharpness: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(sharpness * torch.randn(*shape, generator=generator), dim=2)


shapes = st.tuples(st.integers(2, 4), st.integers(1, 3), st.integers(2, 4), st.integers(1, 4), st.integers(1, 4))


def test_entropy_by_hand() -> None:
    pixels = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]]).T.reshape(1, 1, 2, 1, 3)
    expected = [math.log(2), 0.0, -0.25 * math.log(0.25) - 0.75 * math.log(0.75)]
    assert entropy(pixels).flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_entropy_of_passes_is_that_of_their_mean() -> None:
    """Two sure passes that contradict each other are as unsure as can be; the mean of their entropies would be 0."""
    passes = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(2, 1, 2, 1, 1)
    assert entropy(passes).item() == pytest.approx(math.log(2))


def test_bald_by_hand() -> None:
    """Contradicting sure passes: ln 2. Agreeing unsure passes: 0, since nothing about the weights would be learned."""
    contradict = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(2, 1, 2, 1, 1)
    agree = torch.full((2, 1, 2, 1, 1), 0.5)
    assert bald(contradict).item() == pytest.approx(math.log(2))
    assert bald(agree).item() == 0.0


@settings(max_examples=30, deadline=None)
@given(shape=shapes, seed=st.integers(0, 10_000))
def test_maps_equal_a_slow_loop(shape: tuple[int, ...], seed: int) -> None:
    p = probabilities(seed, *shape)
    passes, cases, classes, rows, columns = shape

    def slow_entropy(values: list[float]) -> float:
        return -sum(v * math.log(v) for v in values if v > 0)

    for b in range(cases):
        for r in range(rows):
            for c in range(columns):
                each = [[p[m, b, k, r, c].item() for k in range(classes)] for m in range(passes)]
                mean = [sum(member[k] for member in each) / passes for k in range(classes)]
                h = slow_entropy(mean)
                assert entropy(p)[b, r, c].item() == pytest.approx(h, abs=1e-5)
                expected = h - sum(slow_entropy(member) for member in each) / passes
                assert bald(p)[b, r, c].item() == pytest.approx(expected, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(shape=shapes, seed=st.integers(0, 10_000), sharpness=st.sampled_from([0.0, 1.0, 30.0]))
def test_ranges_and_shapes(shape: tuple[int, ...], seed: int, sharpness: float) -> None:
    """0 ≤ bald ≤ entropy ≤ ln(classes), also where probabilities are exactly 0 or all alike."""
    p = probabilities(seed, *shape, sharpness=sharpness)
    h, disagreement = entropy(p), bald(p)
    assert h.shape == disagreement.shape == (shape[1], *shape[3:])
    assert (disagreement >= 0).all()
    assert (disagreement <= h + 1e-5).all()
    assert (h <= math.log(shape[2]) + 1e-5).all()


def test_bald_is_never_negative_by_rounding() -> None:
    """Seven times the same pass: the difference of two equal entropies, half of them rounded to just below 0."""
    same = probabilities(0, 1, 2, 3, 32, 32).expand(7, -1, -1, -1, -1)
    assert (bald(same) >= 0).all()
    assert bald(same).max() < 1e-5


def test_bald_needs_passes() -> None:
    with pytest.raises(ValueError, match=r"only one.*query\.passes"):
        bald(probabilities(0, 1, 2, 3, 4, 4))


def test_a_missing_pass_axis_is_an_error() -> None:
    with pytest.raises(ValueError, match="passes, cases, classes"):
        entropy(torch.full((2, 3, 4, 4), 1 / 3))


def test_nan_is_not_hidden() -> None:
    p = probabilities(0, 2, 1, 3, 2, 2)
    p[0, 0, 0, 0, 0] = float("nan")
    assert torch.isnan(entropy(p)[0, 0, 0])
    assert torch.isnan(bald(p)[0, 0, 0])
    assert np.isnan(mean_over_pixels(bald(p))[0])


def test_a_case_is_the_mean_of_its_pixels() -> None:
    maps = torch.tensor([[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, 4.0]]])
    scores = mean_over_pixels(maps)
    assert scores.dtype == np.float64
    assert scores.tolist() == [3.0, 1.0]


def test_foreground_is_what_the_mean_prediction_says() -> None:
    p = torch.zeros(2, 3, 3, 2, 2)
    p[:, :, 0] = 1.0
    p[:, 1, :, 0, 0] = torch.tensor([0.1, 0.2, 0.7])  # one pixel of class 2
    p[0, 2, :, 1, 1] = torch.tensor([0.45, 0.55, 0.0])  # only one of two passes sees it
    assert predicts_foreground(p).tolist() == [False, True, False]


def test_border_is_the_next_slice_of_the_same_image() -> None:
    images = ["a", "a", "a", "a", "b", "b"]
    indices = [0, 1, 2, 3, 2, 4]
    foreground = np.array([False, False, True, False, False, False])
    expected = [False, True, True, True, False, False]  # slice 2 and 4 of image b have no neighbour of their own image
    assert with_border(foreground, images=images, indices=indices).tolist() == expected
