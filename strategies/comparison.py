"""Whether one method is better than another, from runs with the same seeds on the same patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def paired_bootstrap(
    ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]], *, draws: int = 4000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean difference of two methods and its 95 % interval, resampling seeds and patients, both sides alike.

    Args:
        ours, theirs: one mapping for each seed, patient to Dice; the same seeds and the same patients.
    """
    return _resampled(_differences(ours, theirs), draws, seed)


def sign_doubt(
    ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]], *, draws: int = 4000, seed: int = 0
) -> float:
    """Two-sided bootstrap p of a difference of 0: twice the share of resampled means on the other side of 0, at most 1.

    Never below 2 / (draws + 1): so many draws can't tell smaller ones.

    Args:
        ours, theirs: as `paired_bootstrap` takes them.
    """
    means = _means(_differences(ours, theirs), draws, seed)
    other_side = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return min(1.0, 2 * (other_side + 1) / (draws + 1))


def holm(doubts: Sequence[float]) -> list[float]:
    """p values corrected for their number, each at least as large as before (Holm 1979); in their order."""
    order = np.argsort(doubts, kind="stable")
    corrected = np.empty(len(order))
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * doubts[index]))
        corrected[index] = highest
    return [float(value) for value in corrected]


def bootstrap(runs: Sequence[Mapping[str, float]], *, draws: int = 4000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of a method and its 95 % interval, resampling seeds and patients.

    Args:
        runs: one mapping for each seed, patient to Dice; the same patients.
    """
    patients = sorted(runs[0])
    if any(sorted(run) != patients for run in runs):
        raise ValueError("a mean over seeds and patients needs the same patients in each run")
    return _resampled(np.array([[run[p] for p in patients] for run in runs]), draws, seed)


def _differences(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
    """(seeds, patients)."""
    patients = sorted(ours[0])
    if len(ours) != len(theirs) or any(sorted(one) != patients for one in (*ours, *theirs)):
        raise ValueError("a paired comparison needs the same seeds and patients on both sides")
    return np.array([[a[p] - b[p] for p in patients] for a, b in zip(ours, theirs, strict=True)])


def _resampled(values: NDArray[np.float64], draws: int, seed: int) -> tuple[float, float, float]:
    """Mean of values (seeds, patients), and percentiles 2.5 and 97.5 of the mean over resampled rows and columns."""
    low, high = np.percentile(_means(values, draws, seed), (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


def _means(values: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """(draws,) means of values (seeds, patients) over resampled rows and columns."""
    rng = np.random.default_rng(seed)
    weights = [_times(rng.integers(0, n, (draws, n)), n) for n in values.shape]
    return np.asarray(np.einsum("dr,rc,dc->d", weights[0], values, weights[1], optimize=True) / values.size)


def _times(drawn: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """(draws, n): how often each of n was drawn, from what was drawn, (draws, any)."""
    rows = np.arange(len(drawn))[:, None] * n
    return np.bincount((rows + drawn).ravel(), minlength=len(drawn) * n).reshape(len(drawn), n).astype(np.float64)
