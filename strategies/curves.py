"""What a learning curve says: Dice against what was paid for it, cases or minutes, as numbers that can be compared.

A curve is two lists of equal length: budgets, ascending, and the Dice after each. Between two points it is a straight line;
beyond its ends it says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import curve_fit

FEWEST_FOR_A_FIT = 4
LEAST_RISE = 0.02
"""Below it a curve counts as flat: what is fitted to noise is a steep beginning as often as not."""


def aubc(budgets: Sequence[float], dice: Sequence[float]) -> float:
    """Area under the budget curve over its width: the mean Dice over budgets, by trapezoids. A single point is its Dice."""
    x, y = _curve(budgets, dice)
    return float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 else float(y[0])


def dice_at(budgets: Sequence[float], dice: Sequence[float], budget: float) -> float | None:
    """Dice at a budget; None beyond the ends of the curve."""
    x, y = _curve(budgets, dice)
    return float(np.interp(budget, x, y)) if x[0] <= budget <= x[-1] else None


def budget_to_reach(budgets: Sequence[float], dice: Sequence[float], target: float) -> float | None:
    """The smallest budget at which the curve is at `target` or above; None where it never is."""
    x, y = _curve(budgets, dice)
    above = np.flatnonzero(y >= target)
    if not len(above):
        return None
    n = int(above[0])
    if n == 0:
        return float(x[0])
    return float(x[n - 1] + (x[n] - x[n - 1]) * (target - y[n - 1]) / (y[n] - y[n - 1]))


def foreground_efficiency(shares: Sequence[float], dice: Sequence[float]) -> float | None:
    """β of y = c − a·exp(−β (x − x₀)), x being the share of all foreground that is annotated: how fast that pays (nnActive).

    None with fewer than `FEWEST_FOR_A_FIT` points, where the curve rises by less than `LEAST_RISE` to its end, where no such
    curve fits, and where the points leave β open: its standard error is as large as itself, or it is as steep as it may be.
    """
    x, y = np.asarray(shares, dtype=np.float64), np.asarray(dice, dtype=np.float64)
    if len(np.unique(x)) < FEWEST_FOR_A_FIT or y[-1] - y[0] < LEAST_RISE:
        return None

    def rise(x: np.ndarray, c: float, a: float, beta: float) -> np.ndarray:
        return np.asarray(c - a * np.exp(-beta * (x - shares[0])))

    width = x[-1] - x[0]
    steepest = 1e4 / width
    try:
        (_, _, beta), covariance = curve_fit(
            rise, x, y, p0=(y.max(), y.max() - y[0], 3 / width), bounds=((0, 0, 0), (1.5, 1.5, steepest)), max_nfev=10_000
        )
    except RuntimeError:
        return None
    error = np.sqrt(covariance[2, 2])
    return float(beta) if error < beta < 0.99 * steepest else None


def _curve(budgets: Sequence[float], dice: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(budgets, dtype=np.float64), np.asarray(dice, dtype=np.float64)
    if len(x) != len(y) or len(x) == 0 or not (np.diff(x) > 0).all() or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"a curve needs ascending budgets with a finite Dice each, not {list(budgets)} and {list(dice)}")
    return x, y
