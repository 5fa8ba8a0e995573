"""Metrics against worked cases and slow versions that share nothing with them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies.metrics import aubc, confusion, dice_by_class, expected_calibration_error, hd95_mm

shapes = st.lists(st.integers(1, 5), min_size=2, max_size=3).map(tuple)


def class_map(shape: tuple[int, ...], classes: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, classes + 1, shape).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------- dice


@settings(max_examples=60, deadline=None)
@given(shape=shapes, classes=st.integers(1, 4), seed=st.integers(0, 999))
def test_dice_equals_a_slow_version(shape: tuple[int, ...], classes: int, seed: int) -> None:
    prediction, truth = class_map(shape, classes, seed), class_map(shape, classes, seed + 1)
    expected = []
    for c in range(1, classes + 1):
        p = {i for i, v in np.ndenumerate(prediction) if v == c}
        t = {i for i, v in np.ndenumerate(truth) if v == c}
        expected.append(2 * len(p & t) / (len(p) + len(t)) if p or t else math.nan)
    dice = dice_by_class(prediction, truth, classes=classes)
    assert dice.dtype == np.float64
    np.testing.assert_allclose(dice, expected)
    np.testing.assert_array_equal(dice, dice_by_class(truth, prediction, classes=classes))


def test_dice_of_absent_classes() -> None:
    """Class 1 is right, 2 is missed, 3 is invented, 4 is in neither."""
    truth = np.array([[1, 1, 2, 0]], dtype=np.uint8)
    prediction = np.array([[1, 1, 0, 3]], dtype=np.uint8)
    np.testing.assert_array_equal(dice_by_class(prediction, truth, classes=4), [1.0, 0.0, 0.0, np.nan])


def test_dice_is_of_the_volume_not_the_mean_of_its_slices() -> None:
    truth = np.zeros((2, 2, 4), dtype=np.uint8)
    truth[0] = 1  # 8 voxels, all found
    truth[1, 0, 0] = 1  # 1 voxel, missed
    prediction = truth.copy()
    prediction[1] = 0
    assert dice_by_class(prediction, truth, classes=1)[0] == pytest.approx(2 * 8 / 17)  # by slices it would be 0.5


def test_many_classes_do_not_wrap_around() -> None:
    """Pairs of 8-bit labels need more than 8 bits."""
    truth = np.arange(40, dtype=np.uint8).reshape(4, 10)
    np.testing.assert_array_equal(dice_by_class(truth, truth, classes=39), np.ones(39))


def test_confusion_rows_are_the_truth() -> None:
    truth, prediction = np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])
    np.testing.assert_array_equal(confusion(prediction, truth, classes=2), [[1, 0, 0], [0, 1, 1], [0, 0, 1]])


def test_dice_refuses_what_does_not_fit() -> None:
    fits = np.zeros((2, 3), dtype=np.int64)
    with pytest.raises(ValueError, match=r"\(2, 3\), the truth \(3, 2\)"):
        dice_by_class(fits, fits.T, classes=1)
    with pytest.raises(ValueError, match=r"truth holds values 0\.\.255"):
        dice_by_class(fits, np.array([[0, 0, 0], [0, 0, 255]]), classes=1)
    with pytest.raises(ValueError, match=r"prediction holds values -1\.\.0"):
        dice_by_class(np.array([[0, 0, 0], [0, 0, -1]]), fits, classes=1)


# ---------------------------------------------------------------------------------------------------------------- hd95


def slow_hd95(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: list[float]) -> float:
    """Every surface voxel against every other, and percentiles by their definition."""

    def surface(mask: NDArray[np.bool_]) -> list[tuple[float, ...]]:
        found = []
        for index in itertools.product(*(range(n) for n in mask.shape)):
            if not mask[index]:
                continue
            for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
                if mask.shape[axis] == 1:
                    continue
                near = list(index)
                near[axis] += step
                if not 0 <= near[axis] < mask.shape[axis] or not mask[tuple(near)]:
                    found.append(tuple(i * s for i, s in zip(index, spacing, strict=True)))
                    break
        return found

    def percentile(values: list[float]) -> float:
        ranked = sorted(values)
        place = 0.95 * (len(ranked) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ranked) - 1)
        return ranked[low] + (place - low) * (ranked[high] - ranked[low])

    a, b = surface(prediction), surface(truth)
    return max(
        percentile([min(math.dist(x, y) for y in b) for x in a]),
        percentile([min(math.dist(x, y) for y in a) for x in b]),
    )


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(2, 5), min_size=2, max_size=3).map(tuple),
    seed=st.integers(0, 999),
    density=st.sampled_from([0.2, 0.8, 1.0]),
    single=st.booleans(),
)
def test_hd95_equals_a_slow_version(shape: tuple[int, ...], seed: int, density: float, single: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = (1, *shape[-2:]) if single else shape
    prediction, truth = rng.random(shape) < density, rng.random(shape) < density
    prediction.flat[0] = truth.flat[-1] = True
    spacing = rng.uniform(0.3, 4.0, len(shape)).tolist()
    expected = slow_hd95(prediction, truth, spacing)
    assert hd95_mm(prediction, truth, spacing_mm=spacing) == pytest.approx(expected)


def test_hd95_is_in_millimetres_along_each_axis() -> None:
    """A block moved by two rows of 3 mm, then by two columns of 0.5 mm. Its many inner voxels count for nothing."""
    block = np.zeros((40, 40), dtype=bool)
    block[4:34, 4:34] = True
    assert hd95_mm(np.roll(block, 2, axis=0), block, spacing_mm=(3.0, 0.5)) == pytest.approx(6.0)
    assert hd95_mm(np.roll(block, 2, axis=1), block, spacing_mm=(3.0, 0.5)) == pytest.approx(1.0)
    assert hd95_mm(block, block, spacing_mm=(3.0, 0.5)) == 0.0


def test_hd95_sees_a_hole_inside() -> None:
    whole = np.zeros((9, 9), dtype=bool)
    whole[1:8, 1:8] = True
    hollow = whole.copy()
    hollow[3:6, 3:6] = False
    distance = hd95_mm(hollow, whole, spacing_mm=(1.0, 1.0))
    assert distance is not None
    assert distance > 0


def test_hd95_of_a_one_slice_volume_is_that_of_the_slice() -> None:
    rng = np.random.default_rng(0)
    prediction, truth = rng.random((1, 20, 20)) < 0.8, rng.random((1, 20, 20)) < 0.8
    flat = hd95_mm(prediction[0], truth[0], spacing_mm=(1.0, 2.0))
    assert hd95_mm(prediction, truth, spacing_mm=(5.0, 1.0, 2.0)) == flat
    single = np.ones((1, 1, 1), dtype=bool)
    assert hd95_mm(single, single, spacing_mm=(1.0, 1.0, 1.0)) == 0.0


def test_hd95_is_none_where_there_is_no_such_distance() -> None:
    full, empty = np.ones((3, 3), dtype=bool), np.zeros((3, 3), dtype=bool)
    assert hd95_mm(full, full, spacing_mm=None) is None
    assert hd95_mm(full, empty, spacing_mm=(1.0, 1.0)) is None
    assert hd95_mm(empty, full, spacing_mm=(1.0, 1.0)) is None
    assert hd95_mm(empty, empty, spacing_mm=(1.0, 1.0)) is None


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, 1.0, 1.0), (1.0, 0.0), (1.0, -1.0), (1.0, math.nan)])
def test_hd95_refuses_a_spacing_that_does_not_fit(spacing: tuple[float, ...]) -> None:
    full = np.ones((3, 3), dtype=bool)
    with pytest.raises(ValueError, match="2 positive numbers"):
        hd95_mm(full, full, spacing_mm=spacing)


# --------------------------------------------------------------------------------------------------------- calibration


def test_calibration_by_hand() -> None:
    """Of 5 bins .9 (right) and .85 (wrong) share one: |1/2 − .875|; .6 (right) has its own: |1 − .6|; weight 2 to 1."""
    foreground = np.array([0.9, 0.15, 0.6])  # of class 1; the second is class 0 with .85
    probabilities = np.stack([1 - foreground, foreground])[None]
    truth = np.array([[1, 1, 1]])
    expected = 2 / 3 * abs(0.5 - 0.875) + 1 / 3 * abs(1 - 0.6)
    assert expected_calibration_error(probabilities, truth, bins=5) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), bins=st.integers(1, 20), classes=st.integers(1, 3), seed=st.integers(0, 999))
def test_calibration_equals_a_slow_version(n: int, bins: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes + 1, 0.5), size=(2, n)).transpose(0, 2, 1)
    always_right = probabilities.max(axis=1) < rng.choice([0.0, 0.6, 1.0])  # too modest there, boastful above
    truth = np.where(always_right, probabilities.argmax(axis=1), rng.integers(0, classes + 1, (2, n)))
    total = 0.0
    for k in range(bins):
        inside = [
            (max(p), float(np.argmax(p) == t))
            for p, t in zip(probabilities.transpose(0, 2, 1).reshape(-1, classes + 1), truth.ravel(), strict=True)
            if k / bins < max(p) <= (k + 1) / bins
        ]
        if inside:
            gap = sum(right for _, right in inside) / len(inside) - sum(c for c, _ in inside) / len(inside)
            total += len(inside) / (2 * n) * abs(gap)
    assert expected_calibration_error(probabilities, truth, bins=bins) == pytest.approx(total, abs=1e-9)


def test_modesty_and_boasting_in_different_bins_do_not_cancel() -> None:
    """Two bins, confidence .4 and right, .9 and wrong: (|1 − .4| + |0 − .9|) / 2; one bin for both would say .15."""
    probabilities = np.array([[[0.4, 0.9], [0.3, 0.05], [0.3, 0.05]]])
    assert expected_calibration_error(probabilities, np.array([[0, 1]]), bins=2) == pytest.approx(0.75)


def test_a_calibrated_model_has_no_error_and_a_boastful_one_has() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1.0, 200_000)
    truth = (rng.random(p.size) < p).astype(np.int64)[None]
    assert expected_calibration_error(np.stack([1 - p, p])[None], truth) < 0.01
    sure = np.stack([np.zeros_like(p), np.ones_like(p)])[None]
    assert expected_calibration_error(sure, truth) == pytest.approx(0.25, abs=0.01)


def test_calibration_refuses_what_does_not_fit() -> None:
    good = np.full((2, 3, 4), 1 / 3)
    with pytest.raises(ValueError, match="are not"):
        expected_calibration_error(good, np.zeros((2, 5), dtype=np.int64))
    with pytest.raises(ValueError, match="logits"):
        expected_calibration_error(good * 9, np.zeros((2, 4), dtype=np.int64))
    with pytest.raises(ValueError, match="logits"):
        expected_calibration_error(good * np.nan, np.zeros((2, 4), dtype=np.int64))
    with pytest.raises(ValueError, match="no pixels"):
        expected_calibration_error(np.zeros((0, 3, 4)), np.zeros((0, 4), dtype=np.int64))
    with pytest.raises(ValueError, match="bins is 0"):
        expected_calibration_error(good, np.zeros((2, 4), dtype=np.int64), bins=0)


# ---------------------------------------------------------------------------------------------------------------- aubc


def test_aubc_by_hand() -> None:
    """(10 · 0.5 + 30 · 0.7) / 40 for trapezoids of unequal width."""
    assert aubc([0, 10, 40], [0.4, 0.6, 0.8]) == pytest.approx((10 * 0.5 + 30 * 0.7) / 40)


@given(
    points=st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=2, max_size=9),
    factor=st.integers(1, 7),
    offset=st.integers(0, 9),
)
def test_aubc_is_a_mean_that_ignores_the_unit_of_labels(points: list[tuple[int, float]], factor: int, offset: int) -> None:
    labels = list(itertools.accumulate(step for step, _ in points))
    dice = [d for _, d in points]
    area = aubc(labels, dice)
    assert min(dice) - 1e-9 <= area <= max(dice) + 1e-9
    assert aubc([factor * n + offset for n in labels], dice) == pytest.approx(area)
    expected = np.trapezoid(dice, labels) / (labels[-1] - labels[0])
    assert area == pytest.approx(float(expected))


def test_aubc_refuses_what_is_no_curve() -> None:
    with pytest.raises(ValueError, match="at least two points"):
        aubc([1], [0.5])
    with pytest.raises(ValueError, match="2 budgets and 1 Dice"):
        aubc([1, 2], [0.5])
    with pytest.raises(ValueError, match="must rise"):
        aubc([1, 3, 3], [0.5, 0.6, 0.7])
    with pytest.raises(ValueError, match="no number"):
        aubc([1, 2], [0.5, math.nan])
