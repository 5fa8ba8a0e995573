"""Simulated experts: errors of the promised size and kind, answers when scheduled."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.ndimage import label

from simulation.experts import expert_mask, schedule

Mask = NDArray[np.uint8]


def organs() -> Mask:
    """Four slices: an empty one, and a disc within a ring beside a block that touches the rim."""
    rows, columns = np.mgrid[:96, :96]
    radius = np.hypot(rows - 40, columns - 40)
    plane = np.select([radius < 14, radius < 22, (rows > 60) & (columns > 70)], [1, 2, 3], 0)
    return np.stack([np.zeros_like(plane), plane, plane, plane]).astype(np.uint8)


def dice(a: Mask, b: Mask) -> float:
    return float(np.mean([2 * np.sum((a == c) & (b == c)) / (np.sum(a == c) + np.sum(b == c)) for c in (1, 2, 3)]))


def drawn(boundary_px: float, seed: int = 0) -> Mask:
    return expert_mask(organs(), boundary_px=boundary_px, rng=np.random.default_rng(seed))


@given(mask=arrays(np.uint8, (2, 12, 9), elements=st.integers(0, 3)), boundary_px=st.sampled_from([0.0, 0.3, 2.0, 9.0]))
def test_labels_are_never_invented_and_the_input_is_left_alone(mask: Mask, boundary_px: float) -> None:
    before = mask.copy()
    after = expert_mask(mask, boundary_px=boundary_px, rng=np.random.default_rng(1))
    assert after.shape == mask.shape
    assert after.dtype == np.uint8
    np.testing.assert_array_equal(mask, before)
    for index in range(len(mask)):
        assert set(np.unique(after[index])) <= set(np.unique(mask[index]))
    if boundary_px == 0:
        np.testing.assert_array_equal(after, mask)
        assert after is not mask


def test_no_foreground_stays_no_foreground() -> None:
    assert not drawn(4.0)[0].any()


def test_slices_without_a_boundary_stay_as_they_are() -> None:
    full = np.full((1, 20, 20), 2, np.uint8)
    np.testing.assert_array_equal(expert_mask(full, boundary_px=3.0, rng=np.random.default_rng(0)), full)


def test_larger_errors_cost_more_dice_on_average() -> None:
    truth = organs()
    means = [float(np.mean([dice(drawn(size, seed), truth) for seed in range(12)])) for size in (0, 0.5, 1, 2, 4)]
    assert means[0] == 1.0
    assert all(a > b for a, b in pairwise(means)), means
    assert means[2] > 0.85, "an error of a pixel is small beside these organs"


def edge_shift(boundary_px: float) -> NDArray[np.float64]:
    """How far a straight edge moves, in pixels, in each of 60 slices and at each of 80 rows."""
    half = np.zeros((60, 80, 80), np.uint8)
    half[:, :, :40] = 1
    moved = expert_mask(half, boundary_px=boundary_px, rng=np.random.default_rng(0))
    return np.asarray((moved == 1).sum(axis=2) - 40.0)


@pytest.mark.parametrize("boundary_px", [1.0, 2.0, 4.0])
def test_the_boundary_moves_by_the_promised_distance(boundary_px: float) -> None:
    shift = edge_shift(boundary_px)
    assert np.sqrt((shift**2).mean()) == pytest.approx(boundary_px, rel=0.2)
    assert abs(shift.mean()) < 0.25 * boundary_px, "experts err to both sides"


def test_errors_are_smooth() -> None:
    assert np.abs(np.diff(edge_shift(2.0), axis=1)).max() <= 3, "neighbouring rows differ little"
    pieces = [label(drawn(2.0, seed)[1] == 1)[1] for seed in range(10)]
    assert np.mean(pieces) < 1.5, "a disc stays about one piece"


def test_the_same_generator_draws_the_same_and_slices_err_apart() -> None:
    np.testing.assert_array_equal(drawn(2.0, 3), drawn(2.0, 3))
    assert (drawn(2.0, 3) != drawn(2.0, 4)).any()
    assert (drawn(2.0)[1] != drawn(2.0)[2]).any()


@pytest.mark.parametrize("boundary_px", [-1.0, float("nan"), float("inf")])
def test_sizes_that_mean_nothing_are_refused(boundary_px: float) -> None:
    with pytest.raises(ValueError, match="boundary_px"):
        expert_mask(organs(), boundary_px=boundary_px, rng=np.random.default_rng(0))


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(slices, rows, columns\) uint8"):
        expert_mask(organs()[0], boundary_px=1.0, rng=np.random.default_rng(0))


# ------------------------------------------------------------------------------------------------------------ schedule


@given(cases=st.sets(st.text(max_size=5), max_size=20), delay=st.integers(0, 4), seed=st.integers(0, 2**32))
def test_every_case_has_a_delay_in_range_whatever_the_order(cases: set[str], delay: int, seed: int) -> None:
    plan = schedule(sorted(cases), delay=delay, absence=0.3, cycles=5, rng=np.random.default_rng(seed))
    assert set(plan["delay"]) == cases
    assert all(0 <= wait <= delay for wait in plan["delay"].values())
    assert set(plan["absent_cycles"]) <= {1, 2, 3, 4, 5}
    turned = schedule(sorted(cases, reverse=True), delay=delay, absence=0.3, cycles=5, rng=np.random.default_rng(seed))
    assert turned == plan


def test_all_delays_occur_about_equally() -> None:
    plan = schedule([str(i) for i in range(3000)], delay=2, absence=0, cycles=1, rng=np.random.default_rng(0))
    assert np.bincount(list(plan["delay"].values())) / 3000 == pytest.approx([1 / 3] * 3, abs=0.04)


def test_absences_follow_their_probability_and_spare_the_cold_start() -> None:
    def away(absence: float) -> list[int]:
        return schedule([], delay=0, absence=absence, cycles=2000, rng=np.random.default_rng(0))["absent_cycles"]

    assert away(0.0) == []
    assert away(1.0) == list(range(1, 2001))
    assert len(away(0.25)) / 2000 == pytest.approx(0.25, abs=0.04)


def test_absences_do_not_depend_on_the_number_of_cases() -> None:
    plans = [schedule(map(str, range(n)), delay=3, absence=0.5, cycles=9, rng=np.random.default_rng(1)) for n in (0, 5, 50)]
    assert len({tuple(plan["absent_cycles"]) for plan in plans}) == 1


@pytest.mark.parametrize(("delay", "absence"), [(-1, 0.0), (0, -0.1), (0, 1.5)])
def test_impossible_schedules_are_refused(delay: int, absence: float) -> None:
    with pytest.raises(ValueError, match="absence"):
        schedule(["a"], delay=delay, absence=absence, cycles=1, rng=np.random.default_rng(0))
