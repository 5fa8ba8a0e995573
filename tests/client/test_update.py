"""What crosses after a round: the difference, in the weights' own types, never longer than agreed and never NaN or Inf."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from client.update import update_of
from strategies.aggregate import update_norm
from strategies.records import Weights


def test_the_update_is_what_the_round_changed() -> None:
    weights: Weights = {"conv": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), "bias": np.array([0.5], np.float32)}
    student = {"bias": torch.tensor([0.25]), "conv": torch.tensor([[1.5, 2.0], [1.0, 8.0]])}
    update = update_of(student, weights, max_norm=None)
    assert list(update) == ["conv", "bias"]  # in the order that came, whatever the student's
    np.testing.assert_array_equal(update["conv"], [[0.5, 0.0], [-2.0, 4.0]])
    np.testing.assert_array_equal(update["bias"], [-0.25])
    np.testing.assert_array_equal(weights["conv"], [[1.0, 2.0], [3.0, 4.0]])  # and nothing came out otherwise
    assert student["conv"].tolist() == [[1.5, 2.0], [1.0, 8.0]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("max_norm", [None, 0.1])
def test_an_update_has_the_dtype_of_the_weights_that_came(dtype: type[np.floating], max_norm: float | None) -> None:
    weights: Weights = {"w": np.array([1, 2], dtype)}
    update = update_of({"w": torch.tensor([2.0, 4.0])}, weights, max_norm=max_norm)
    assert update["w"].dtype == dtype
    assert update["w"].shape == (2,)


def test_an_update_is_clipped_over_all_arrays_together_and_keeps_its_direction() -> None:
    weights: Weights = {"a": np.zeros(1, np.float32), "b": np.zeros((1, 1), np.float32)}
    student = {"a": torch.tensor([3.0]), "b": torch.tensor([[-4.0]])}  # norm 5
    clipped = update_of(student, weights, max_norm=0.5)
    assert clipped["a"][0] == pytest.approx(0.3, rel=1e-5)
    assert clipped["b"][0, 0] == pytest.approx(-0.4, rel=1e-5)
    assert update_norm(clipped) <= 0.5
    for most in (5.0, 6.0, None):  # short enough
        kept = update_of(student, weights, max_norm=most)
        assert (kept["a"][0], kept["b"][0, 0]) == (3.0, -4.0)


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_update_that_is_not_finite_stays_and_the_array_is_named(value: float, max_norm: float | None) -> None:
    weights: Weights = {"encoder.0": np.zeros(3, np.float32), "decoder.1": np.zeros(3, np.float32)}
    student: dict[str, Tensor] = {"encoder.0": torch.ones(3), "decoder.1": torch.tensor([0.0, value, 0.0])}
    with pytest.raises(FloatingPointError, match=r"the update of decoder\.1 holds NaN or Inf.*lower train\.learning_rate"):
        update_of(student, weights, max_norm=max_norm)


def test_a_difference_too_large_for_its_dtype_is_not_finite_either() -> None:
    with pytest.raises(FloatingPointError, match="the update of w"), np.errstate(over="ignore"):
        update_of({"w": torch.tensor([70000.0])}, {"w": np.zeros(1, np.float16)}, max_norm=None)
