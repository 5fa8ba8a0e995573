"""Pixel maps against values worked by hand and slow loops, and what reduces them to a number a case."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from strategies.query.parse import parse_query
from strategies.query.reduce import mean_over_pixels, predicted_pixels, with_border
from strategies.query.uncertainty import bald, entropy, least_confidence, margin, vote_entropy
from strategies.records import Scores


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


def test_least_confidence_and_margin_by_hand() -> None:
    """The mean of two passes is (.5, .3, .2): doubt .5, and the two best are .2 apart."""
    passes = torch.tensor([[0.6, 0.1, 0.3], [0.4, 0.5, 0.1]]).reshape(2, 1, 3, 1, 1)
    assert least_confidence(passes).item() == pytest.approx(0.5)
    assert margin(passes).item() == pytest.approx(0.8)


def test_vote_entropy_by_hand() -> None:
    """Three members vote 0, 0 and 2; how sure they are does not matter."""
    members = torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.3, 0.3], [0.3, 0.3, 0.4]]).reshape(3, 1, 3, 1, 1)
    expected = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)
    assert vote_entropy(members).item() == pytest.approx(expected, abs=1e-6)
    assert vote_entropy(members[:2]).item() == pytest.approx(0.0, abs=1e-6)


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
                first, second = sorted(mean, reverse=True)[:2]
                assert least_confidence(p)[b, r, c].item() == pytest.approx(1 - first, abs=1e-5)
                assert margin(p)[b, r, c].item() == pytest.approx(1 - first + second, abs=1e-5)
                votes = [member.index(max(member)) for member in each]
                expected = slow_entropy([votes.count(k) / passes for k in range(classes)])
                assert vote_entropy(p)[b, r, c].item() == pytest.approx(expected, abs=1e-5)


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


@pytest.mark.parametrize("members", range(2, 65))
def test_members_who_agree_have_a_vote_entropy_of_nothing_and_can_be_drawn_by_it(members: int) -> None:
    """However many they are, and so for one model's passes as for two models'."""
    unanimous = probabilities(1, 1, 3, 3, 4, 4).expand(members, -1, -1, -1, -1)
    assert (vote_entropy(unanimous) == 0).all()
    divided = probabilities(2, members, 3, 3, 4, 4)
    pool = torch.cat([unanimous[:, :1], divided[:, 1:]], dim=1)
    values = mean_over_pixels(vote_entropy(pool), torch.ones(3, 4, 4, dtype=torch.bool))
    choose = parse_query("vote_entropy+power", passes=members).choose
    assert len(choose(Scores(list("abc"), ["p"] * 3, values=values), 3, np.random.default_rng(0)).choices) == 3


@pytest.mark.parametrize("pixel", [bald, vote_entropy])
def test_who_compares_passes_needs_two(pixel: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"only one.*query\.passes"):
        pixel(probabilities(0, 1, 2, 3, 4, 4))


def test_a_missing_pass_axis_is_an_error() -> None:
    with pytest.raises(ValueError, match="passes, cases, classes"):
        entropy(torch.full((2, 3, 4, 4), 1 / 3))


def test_nan_is_not_hidden() -> None:
    p = probabilities(0, 2, 1, 3, 2, 2)
    p[0, 0, 0, 0, 0] = float("nan")
    for pixel in (entropy, bald, least_confidence, margin, vote_entropy):
        assert torch.isnan(pixel(p)[0, 0, 0])
        assert np.isnan(mean_over_pixels(pixel(p), torch.ones(1, 2, 2, dtype=torch.bool))[0])


def test_a_case_is_the_mean_of_its_pixels_and_padding_does_not_count() -> None:
    maps = torch.tensor([[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [8.0, 4.0]]])
    inside = torch.tensor([[[True, True], [True, True]], [[True, False], [False, True]]])
    maps[1, 0, 1] = float("nan")  # in the padding
    scores = mean_over_pixels(maps, inside)
    assert scores.dtype == np.float64
    assert scores.tolist() == [3.0, 2.0]
    by_class = mean_over_pixels(torch.stack([maps, 2 * maps], 1), inside)
    assert by_class.tolist() == [[3.0, 6.0], [2.0, 4.0]]


def test_pixels_are_counted_where_the_mean_prediction_leads_and_not_in_the_padding() -> None:
    p = torch.zeros(2, 3, 3, 2, 2)
    p[:, :, 0] = 1.0
    p[:, 1, :, 0, 0] = torch.tensor([0.1, 0.2, 0.7])  # one pixel of class 2
    p[:, 1, :, 0, 1] = torch.tensor([0.1, 0.7, 0.2])  # one of class 1, in the padding
    p[0, 2, :, 1, 1] = torch.tensor([0.45, 0.55, 0.0])  # only one of two passes sees it
    inside = torch.ones(3, 2, 2, dtype=torch.bool)
    inside[1, :, 1] = False
    assert predicted_pixels(p, inside).tolist() == [[0, 0], [0, 1], [0, 0]]


def test_border_is_the_next_slice_of_the_same_image() -> None:
    images = ["a", "a", "a", "a", "b", "b"]
    indices = [0, 1, 2, 3, 2, 4]
    foreground = np.array([False, False, True, False, False, False])
    expected = [False, True, True, True, False, False]  # slice 2 and 4 of image b have no neighbour of their own image
    assert with_border(foreground, images=images, indices=indices).tolist() == expected


def test_border_is_also_next_to_slices_that_have_left_the_pool() -> None:
    nothing = np.zeros(3, dtype=bool)
    found = with_border(nothing, images=["a", "a", "b"], indices=[1, 4, 3], elsewhere=[("a", 2), ("c", 4)])
    assert found.tolist() == [True, False, False]
