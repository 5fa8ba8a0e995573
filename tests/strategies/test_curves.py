"""Numbers of a learning curve, by hand and against a slow sum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.curves import aubc, budget_to_reach, dice_at, foreground_efficiency

BUDGETS, DICE = [10, 20, 40], [0.4, 0.6, 0.7]


def test_the_area_is_the_mean_dice_over_budgets() -> None:
    assert aubc(BUDGETS, DICE) == pytest.approx((10 * 0.5 + 20 * 0.65) / 30)
    assert aubc([5], [0.3]) == 0.3
    fine = np.linspace(10, 40, 30_001)
    assert aubc(BUDGETS, DICE) == pytest.approx(np.interp(fine, BUDGETS, DICE).mean(), abs=1e-5)


@given(st.floats(1, 1000), st.floats(0.1, 10), st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_the_area_does_not_depend_on_units_and_lies_between_the_ends(start: float, factor: float, dice: list[float]) -> None:
    budgets = [start + n * n + n for n in range(len(dice))]
    area = aubc(budgets, dice)
    assert min(dice) - 1e-9 <= area <= max(dice) + 1e-9
    assert aubc([factor * budget for budget in budgets], dice) == pytest.approx(area)


def test_dice_is_read_between_points_and_not_beyond() -> None:
    assert dice_at(BUDGETS, DICE, 15) == pytest.approx(0.5)
    assert dice_at(BUDGETS, DICE, 40) == pytest.approx(0.7)
    assert dice_at(BUDGETS, DICE, 9) is None
    assert dice_at(BUDGETS, DICE, 41) is None


def test_the_budget_is_that_of_the_first_crossing() -> None:
    assert budget_to_reach(BUDGETS, DICE, 0.65) == pytest.approx(30)
    assert budget_to_reach(BUDGETS, DICE, 0.6) == pytest.approx(20)
    assert budget_to_reach(BUDGETS, DICE, 0.3) == 10
    assert budget_to_reach(BUDGETS, DICE, 0.71) is None
    assert budget_to_reach([1, 2, 3, 4], [0.1, 0.5, 0.3, 0.9], 0.4) == pytest.approx(1.75), "though it falls again after it"


@pytest.mark.parametrize("beta", [2.0, 12.0])
def test_foreground_efficiency_is_the_rate_that_the_curve_was_made_with(beta: float) -> None:
    shares = np.linspace(0.01, 0.5, 8)
    dice = 0.85 - 0.5 * np.exp(-beta * (shares - shares[0]))
    assert foreground_efficiency(shares.tolist(), dice.tolist()) == pytest.approx(beta, rel=1e-3)


def test_what_does_not_rise_has_no_rate() -> None:
    assert foreground_efficiency([0.1, 0.2, 0.3, 0.4], [0.6, 0.5, 0.4, 0.3]) is None
    assert foreground_efficiency([0.1, 0.2, 0.3], [0.3, 0.4, 0.5]) is None


@pytest.mark.parametrize(("budgets", "dice"), [([], []), ([1, 1], [0.1, 0.2]), ([1, 2], [0.1]), ([1, 2], [0.1, float("nan")])])
def test_what_is_no_curve_is_refused(budgets: list[float], dice: list[float]) -> None:
    with pytest.raises(ValueError, match="ascending budgets"):
        aubc(budgets, dice)
