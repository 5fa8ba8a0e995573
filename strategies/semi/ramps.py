"""Weights that change with time. Time is the local steps since the start of the run, `round_index × local_steps +
step`.

It comes with the message, so that a ramp goes on where it was in the next round, and after a restart.
"""

from __future__ import annotations

import math


def ramp_up(step: float, *, length: float, peak: float = 1.0) -> float:
    """λ(t) = peak · exp(−5 (1 − min(t, T)/T)²) (Laine and Aila, ICLR 2017): 0.0067 · peak at 0, peak from `length` on.

    Args:
        step: t; times before 0 count as 0.
        length: T > 0, steps until the peak.
        peak: λmax.

    Raises:
        ValueError: for a length that is not above 0.
    """
    if not length > 0:
        raise ValueError(f"a ramp needs a length above 0 steps, not {length}")
    missing = 1.0 - min(max(step, 0.0), length) / length
    return peak * math.exp(-5.0 * missing * missing)


def ramp_down(step: float, *, total: float, length: float, peak: float = 1.0) -> float:
    """The mirror of `ramp_up`, λ(T_max − t): peak until `total − length`, then down to 0.0067 · peak at `total` and
    after."""
    return ramp_up(total - step, length=length, peak=peak)


def line(step: float, *, total: float, start: float) -> float:
    """Straight from `start` at 0 to 1 at `total` > 0 and after; times before 0 count as 0."""
    return 1.0 + (start - 1.0) * (1.0 - min(max(step, 0.0), total) / total)


def ema_decay(step: int, *, highest: float = 0.99) -> float:
    """α = min(1 − 1/(t + 1), 0.99), the share that the teacher keeps of itself: 0 at t = 0, so it begins as the
    student."""
    return min(1.0 - 1.0 / (step + 1), highest)
