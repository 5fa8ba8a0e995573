"""Aggregation against numpy, server steps against two worked steps, clipping against its table."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies.aggregate import AGGREGATES, Mean, UpdateError, clip_update, server_step, trimmed_mean, update_norm
from strategies.records import Weights


def make_update(seed: int, *, scale: float = 1.0, dtype: str = "float32") -> Weights:
    rng = np.random.default_rng(seed)
    return {
        "conv.weight": (scale * rng.normal(size=(3, 2))).astype(dtype),
        "conv.bias": (scale * rng.normal(size=3)).astype(dtype),
        "scale": np.asarray(scale * rng.normal(), dtype=dtype),
    }


LIKE = make_update(0)


def one(*values: float) -> Weights:
    return {"w": np.array(values, dtype=np.float32)}


def assert_equal(first: Weights, second: Weights, *, rtol: float = 0.0) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert first[name].shape == second[name].shape
        np.testing.assert_allclose(
            np.asarray(first[name], np.float64), np.asarray(second[name], np.float64), rtol=rtol, atol=rtol
        )


# ---------------------------------------------------------------------------------------------------------------- mean


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.floats(0.1, 1000), min_size=1, max_size=7), scale=st.sampled_from([1e-6, 1.0, 1e4]))
def test_mean_equals_numpy_average(weights: list[float], scale: float) -> None:
    updates = [make_update(i, scale=scale) for i in range(len(weights))]
    mean = Mean(LIKE)
    for update, weight in zip(updates, weights, strict=True):
        mean.add(update, weight)
    for name, array in mean.result().items():
        stack = np.stack([update[name] for update in updates]).astype(np.float64)
        expected = np.average(stack, axis=0, weights=weights)
        np.testing.assert_allclose(array.astype(np.float64), expected, rtol=1e-6, atol=1e-7 * scale)
        assert array.dtype == np.float32
        assert array.shape == LIKE[name].shape


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 7), seed=st.integers(0, 99), data=st.data())
def test_mean_does_not_follow_the_order_of_arrival(n: int, seed: int, data: st.DataObject) -> None:
    """Updates of very different sizes, in float64: within one float32 rounding of each other in any order."""
    rng = np.random.default_rng(seed)
    entries = [(make_update(i + seed, scale=10.0 ** rng.integers(-4, 4)), float(rng.integers(1, 500))) for i in range(n)]
    first, second = Mean(LIKE), Mean(LIKE)
    for update, weight in entries:
        first.add(update, weight)
    for i in data.draw(st.permutations(range(n))):
        second.add(*entries[i])
    assert_equal(first.result(), second.result(), rtol=2e-7)


@pytest.mark.parametrize("name", AGGREGATES)
def test_the_same_order_gives_the_same_bits(name: str) -> None:
    results = []
    for _ in range(2):
        aggregate = AGGREGATES[name](LIKE)
        for i in range(5):
            aggregate.add(make_update(i), i + 1.0)
        results.append(aggregate.result())
    for key in LIKE:
        assert results[0][key].tobytes() == results[1][key].tobytes()


@pytest.mark.parametrize("name", AGGREGATES)
def test_what_was_added_may_be_changed_afterwards(name: str) -> None:
    aggregate = AGGREGATES[name](LIKE)
    update = make_update(1)
    aggregate.add(update, 2.0)
    update["conv.weight"][:] = 99.0
    assert_equal(aggregate.result(), make_update(1), rtol=1e-6)


def test_mean_holds_one_model_however_many_sites() -> None:
    mean = Mean(LIKE)
    for i in range(20):
        mean.add(make_update(i))
    held = [value for value in vars(mean).values() if isinstance(value, dict | list)]
    assert max(len(value) for value in held) == len(LIKE)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_mean_refuses_weights_that_are_none(weight: float) -> None:
    with pytest.raises(UpdateError, match="weight of the update"):
        Mean(LIKE).add(make_update(1), weight)


def test_mean_of_nothing_is_refused() -> None:
    mean = Mean(LIKE)
    mean.add(make_update(1), 0.0)
    with pytest.raises(UpdateError, match="all updates have weight 0"):
        mean.result()


# -------------------------------------------------------------------------------------------------------------- robust


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 9))
def test_median_equals_numpy(n: int) -> None:
    aggregate = AGGREGATES["median"](LIKE)
    for i in range(n):
        aggregate.add(make_update(i), weight=float(i))  # weights count for nothing
    for name, array in aggregate.result().items():
        stack = np.stack([make_update(i)[name] for i in range(n)]).astype(np.float64)
        np.testing.assert_allclose(array.astype(np.float64), np.median(stack, axis=0), rtol=1e-6)


def test_trimmed_mean_by_hand() -> None:
    """Of 5 with a fifth trimmed one goes at each end, in each number by itself: (2+3+4)/3 and (0+0+9)/3."""
    aggregate = trimmed_mean(one(0, 0), trim=0.2)
    for a, b in [(1, 0), (2, 9), (3, 50), (4, 0), (1000, -70)]:
        aggregate.add(one(a, b))
    assert_equal(aggregate.result(), one(3, 3))


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=12), trim=st.floats(0, 0.49))
def test_trimmed_mean_equals_a_slow_version(values: list[float], trim: float) -> None:
    aggregate = trimmed_mean(one(0), trim=trim)
    for value in values:
        aggregate.add(one(value))
    kept = sorted(values)
    for _ in range(max(1, math.floor(trim * len(values)))):
        if len(kept) > 2:
            kept = kept[1:-1]
    assert aggregate.result()["w"][0] == pytest.approx(sum(kept) / len(kept), abs=1e-5)


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
@pytest.mark.parametrize("sites", [3, 4, 6])
def test_one_wrong_site_moves_robust_rules_little(name: str, sites: int) -> None:
    aggregate = AGGREGATES[name](one(0))
    aggregate.add(one(1e30), weight=1e6)
    for i in range(sites - 1):
        aggregate.add(one(1 + i / 10))
    assert 1 <= float(aggregate.result()["w"][0]) <= 1 + sites / 10


@pytest.mark.parametrize("trim", [-0.1, 0.5, math.nan])
def test_trim_must_leave_something(trim: float) -> None:
    with pytest.raises(ValueError, match="trim is"):
        trimmed_mean(LIKE, trim=trim)


# --------------------------------------------------------------------------------------------------------- bad updates


def _without(name: str) -> Weights:
    return {key: array for key, array in make_update(1).items() if key != name}


def _with(name: str, array: NDArray[np.generic]) -> Weights:
    return {**make_update(1), name: array}


BAD = {
    "missing": (_without("conv.bias"), r"lacks conv\.bias"),
    "extra": (_with("pixels", np.zeros(2, np.float32)), "also has pixels"),
    "shape": (_with("conv.bias", np.zeros((3, 1), np.float32)), r"conv\.bias of the update has shape \(3, 1\)"),
    "nan": (_with("conv.bias", np.array([1, np.nan, 0], np.float32)), r"conv\.bias .* NaN or Inf"),
    "inf": (_with("scale", np.asarray(np.inf, np.float32)), "scale .* NaN or Inf"),
    "integers": (_with("conv.bias", np.zeros(3, np.int64)), r"conv\.bias of the update is int64"),
}


@pytest.mark.parametrize("name", AGGREGATES)
@pytest.mark.parametrize("case", BAD)
def test_bad_updates_are_refused_and_leave_no_trace(name: str, case: str) -> None:
    update, message = BAD[case]
    aggregate = AGGREGATES[name](LIKE)
    aggregate.add(make_update(2), 3.0)
    with pytest.raises(UpdateError, match=message):
        aggregate.add(update, 5.0)
    assert_equal(aggregate.result(), make_update(2), rtol=1e-6)


@pytest.mark.parametrize("name", AGGREGATES)
def test_no_update_is_an_error(name: str) -> None:
    with pytest.raises(UpdateError, match="no update arrived"):
        AGGREGATES[name](LIKE).result()


@pytest.mark.parametrize("name", AGGREGATES)
def test_counters_of_a_network_are_refused_at_once(name: str) -> None:
    with pytest.raises(UpdateError, match="tracked is int64"):
        AGGREGATES[name]({"tracked": np.asarray(3)})


# ------------------------------------------------------------------------------------------------------- server's step


def test_no_optimiser_adds_the_update() -> None:
    weights, state = server_step(one(1, 2), one(0.5, -1), {})
    assert_equal(weights, one(1.5, 1))
    assert state == {}
    halved, _ = server_step(one(1, 2), one(0.5, -1), {}, learning_rate=0.5)
    assert_equal(halved, one(1.25, 1.5))


def test_momentum_over_two_steps_by_hand() -> None:
    """m₁ = Δ₁ = 1, w₁ = 0 + 0.5·1 = 0.5; m₂ = 0.9·1 + 2 = 2.9, w₂ = 0.5 + 0.5·2.9 = 1.95."""
    weights, state = server_step(one(0), one(1), {}, optimiser="momentum", learning_rate=0.5)
    assert_equal(weights, one(0.5))
    weights, state = server_step(weights, one(2), state, optimiser="momentum", learning_rate=0.5)
    assert_equal(weights, one(1.95), rtol=1e-6)
    assert_equal(state, {"momentum/w": np.array([2.9], np.float32)}, rtol=1e-6)


def test_adam_over_two_steps_by_hand() -> None:
    """With η = 0.1, β₁ = 0.9, β₂ = 0.99, τ = 0.001, v₀ = τ² = 1e-6, Δ₁ = 0.01, Δ₂ = −0.02:
    m₁ = 0.001, v₁ = 0.99e-6 + 1e-6 = 1.99e-6, w₁ = 0.1·0.001/(0.00141067 + 0.001) = 0.0414822;
    m₂ = 0.0009 − 0.002 = −0.0011, v₂ = 1.9701e-6 + 4e-6 = 5.9701e-6, w₂ = w₁ − 0.1·0.0011/(0.00244338 + 0.001).
    """
    weights, state = server_step(one(0), one(0.01), {}, optimiser="adam", learning_rate=0.1)
    assert float(weights["w"][0]) == pytest.approx(0.0414822, rel=1e-5)
    weights, state = server_step(weights, one(-0.02), state, optimiser="adam", learning_rate=0.1)
    assert float(weights["w"][0]) == pytest.approx(0.0414822 - 0.0319454, rel=1e-4)
    assert float(state["first/w"][0]) == pytest.approx(-0.0011, rel=1e-5)
    assert float(state["second/w"][0]) == pytest.approx(5.9701e-6, rel=1e-5)


@pytest.mark.parametrize("optimiser", ["none", "momentum", "adam"])
def test_a_step_leaves_its_inputs_and_is_repeatable(optimiser: str) -> None:
    """A coordinator that is killed after a step takes it again from the checkpoint: same bits."""
    weights, update = make_update(0), make_update(1)
    _, state = server_step(weights, update, {}, optimiser=optimiser, learning_rate=0.1)  # type: ignore[arg-type]
    kept = {name: array.copy() for name, array in state.items()}
    runs = [
        server_step(weights, update, given, optimiser=optimiser, learning_rate=0.1)  # type: ignore[arg-type]
        for given in (state, kept)
    ]
    assert_equal(weights, make_update(0))
    assert_equal(update, make_update(1))
    assert_equal(state, kept)
    for first, second in zip(runs[0], runs[1], strict=True):
        assert_equal(first, second)
    assert all(array.dtype == np.float32 for result in runs[0] for array in result.values())


def test_a_step_refuses_what_does_not_fit() -> None:
    with pytest.raises(UpdateError, match="also has x"):
        server_step(one(0), {**one(1), "x": np.zeros(1, np.float32)}, {})
    with pytest.raises(UpdateError, match="w overflows"):
        server_step(one(3e38), one(3e38), {})
    with pytest.raises(UpdateError, match="w overflows"):  # an infinite second moment would freeze w from then on
        server_step(one(0), one(1e30), {}, optimiser="adam")
    with pytest.raises(ValueError, match="server_learning_rate is 0"):
        server_step(one(0), one(1), {}, learning_rate=0.0)
    with pytest.raises(ValueError, match="unknown server optimiser 'sgd'"):
        server_step(one(0), one(1), {}, optimiser="sgd")  # type: ignore[arg-type]
    _, state = server_step(one(0), one(1), {}, optimiser="momentum")
    with pytest.raises(ValueError, match="not one of adam"):
        server_step(one(0), one(1), state, optimiser="adam")


# ------------------------------------------------------------------------------------------------------------ clipping


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    scale=st.sampled_from([1e-8, 1e-3, 1.0, 1e6]),
    max_norm=st.floats(1e-3, 1e3),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_the_clipped_norm_never_exceeds_the_bound(seed: int, scale: float, max_norm: float, dtype: str) -> None:
    update = make_update(seed, scale=scale, dtype=dtype)
    clipped = clip_update(update, max_norm)
    norm, before = update_norm(clipped), update_norm(update)
    assert norm <= max_norm  # as rounded, and without a tolerance: privacy is counted with it
    assert norm == pytest.approx(min(before, max_norm), rel=1e-5)
    for name in update:  # the direction stays
        np.testing.assert_allclose(
            np.asarray(clipped[name], np.float64), np.asarray(update[name], np.float64) * (norm / before), rtol=1e-4
        )


def test_the_norm_is_over_all_parameters_together() -> None:
    update: Weights = {"a": np.array([3.0], np.float32), "b": np.array([[4.0]], np.float32)}
    assert update_norm(update) == 5.0
    clipped = clip_update(update, 1.0)
    assert float(clipped["a"][0]) == pytest.approx(0.6, rel=1e-6)
    assert float(clipped["b"][0, 0]) == pytest.approx(0.8, rel=1e-6)  # each array clipped by itself would be 1 and 1


def test_the_table_of_norms() -> None:
    assert_equal(clip_update(one(0, 0), 1.0), one(0, 0))
    within = clip_update(one(0.3, 0.4), 0.51)
    assert_equal(within, one(0.3, 0.4))
    for value in (math.nan, math.inf):
        with pytest.raises(UpdateError, match="norm of the update is not finite"):
            clip_update(one(value, 1), 1.0)
    for max_norm in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="max_update_norm"):
            clip_update(one(1), max_norm)
