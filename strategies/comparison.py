"""Whether one method is better than another, from runs with the same seeds on the same patients.

Patients are resampled (bootstrap). Seeds are not: with three, ten resamples are all there are, and their percentiles cover the
truth in 80 to 90 of 100 cases instead of 95. What another set of seeds would give is drawn from a t distribution instead, whose
width is how far runs lie apart that differ in nothing but their seed. Few patients err in the same way, if less: what resamples
stray from the mean is widened for it (`_widened`). That makes intervals true, but not the far tails that a p corrected for many
pairs is read from, where four resampled patients who agree seem certain: p is by Student's t in both parts (`doubt`).

Folds in the place of seeds train on much the same patients, so that they lie apart by less than new data would: `overlap`, test
patients over training patients of a fold, makes up for that (Nadeau and Bengio, Machine Learning 2003).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

DRAWS = 4000
"""Resamples of patients."""

QUANTILES = 20_000
"""Of a distribution of means; they reach as far as a p corrected for several hundred pairs."""

Runs = Sequence[Mapping[str, float]]
"""One mapping for each seed, patient to Dice (or another number)."""


@dataclass(frozen=True)
class SeedNoise:
    """How far runs lie apart that differ in nothing but their seed.

    Attributes:
        sd: standard deviation of a run's mean over patients.
        df: degrees of freedom that it was estimated with.
    """

    sd: float
    df: int


def seed_noise(tables: Sequence[NDArray[np.float64]], *, df: int) -> SeedNoise:
    """What several tables (seeds, patients) say of it together: the root of the mean of their variances over seeds.

    Args:
        df: of all of them together; tables of differences between A methods have (A - 1)·(seeds - 1).
    """
    known = [table.mean(axis=1).var(ddof=1) for table in tables if len(table) > 1]
    return SeedNoise(float(np.sqrt(np.mean(known))) if known else 0.0, max(1, df))


def mean_interval(runs: Runs, *, overlap: float = 0.0, seed: int = 0) -> tuple[float, float, float]:
    """Mean of a method over seeds and patients, and its 95 % interval, by its own seeds alone: what a seed does to one method it
    does to others too, so that these say little more.

    Args:
        runs: the same patients with each seed.
        overlap: of folds.
    """
    patients = sorted(runs[0])
    if any(sorted(run) != patients for run in runs):
        raise ValueError("a mean over seeds and patients needs the same patients in each run")
    return _interval(np.array([[run[p] for p in patients] for run in runs]), None, overlap, seed)


def difference(
    ours: Runs, theirs: Runs, *, noise: SeedNoise | None = None, overlap: float = 0.0, seed: int = 0
) -> tuple[float, float, float]:
    """Mean difference of two methods, paired by seed and patient, and its 95 % interval.

    With one seed and without `noise` the interval is that over patients alone.

    Args:
        ours, theirs: the same seeds and the same patients.
        noise: of differences like this one; where this one's own is larger that counts, so that a method whose trainings fail at
            times is not thought as steady as the others. Where its own counts, or nothing else is known, t has one degree of
            freedom less than there are seeds.
        overlap: of folds.
    """
    return _interval(paired(ours, theirs), noise, overlap, seed)


def doubt(ours: Runs, theirs: Runs, *, noise: SeedNoise | None = None, overlap: float = 0.0) -> float:
    """Two-sided p of a difference of 0, in [0, 1]; arguments as `difference` takes them. Of one patient it is that of seeds."""
    values = paired(ours, theirs)
    patients, mean = values.shape[1], values.mean()
    spread = values.mean(axis=0).std(ddof=1) / np.sqrt(patients) if patients > 1 else 0.0
    means = mean + spread * _quantiles(max(1, patients - 1))
    sd, df = _of_seeds(values, noise, overlap)
    if sd:
        below = float(stats.t.cdf(-means / sd, df).mean())
    else:
        below = float(((means < 0).sum() + 0.5 * (means == 0).sum() + 0.5) / (len(means) + 1))
    return min(1.0, 2 * min(below, 1 - below))


@cache
def _quantiles(df: int) -> NDArray[np.float64]:
    """Of Student's t, evenly spaced."""
    return np.asarray(stats.t.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES, df))


def holm(doubts: Sequence[float]) -> list[float]:
    """p values corrected for their number, each at least as large as before (Holm 1979); in their order."""
    order = np.argsort(doubts, kind="stable")
    corrected = np.empty(len(order))
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * doubts[index]))
        corrected[index] = highest
    return [float(value) for value in corrected]


def paired(ours: Runs, theirs: Runs) -> NDArray[np.float64]:
    """Differences (seeds, patients).

    Raises:
        ValueError: not the same seeds and patients.
    """
    patients = sorted(ours[0])
    if len(ours) != len(theirs) or any(sorted(one) != patients for one in (*ours, *theirs)):
        raise ValueError("a paired comparison needs the same seeds and patients on both sides")
    return np.array([[a[p] - b[p] for p in patients] for a, b in zip(ours, theirs, strict=True)])


def _interval(values: NDArray[np.float64], noise: SeedNoise | None, overlap: float, seed: int) -> tuple[float, float, float]:
    patients = values.shape[1]
    drawn = np.random.default_rng(seed).integers(0, patients, (DRAWS, patients))
    means = _widened(values.mean(axis=0)[drawn].mean(axis=1), values.mean(), patients)
    sd, df = _of_seeds(values, noise, overlap)
    moved = np.random.default_rng([seed, 1]).standard_t(df, len(means)) if sd else np.zeros(len(means))
    low, high = np.percentile(means + sd * moved, (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


def _of_seeds(values: NDArray[np.float64], noise: SeedNoise | None, overlap: float) -> tuple[float, int]:
    """Standard error of a mean for want of more seeds, and its degrees of freedom."""
    seeds = len(values)
    sd, df = float(values.mean(axis=1).std(ddof=1)) if seeds > 1 else 0.0, max(1, seeds - 1)
    if noise is not None and noise.sd > sd:
        sd, df = noise.sd, noise.df
    return sd * float(np.sqrt(1 / seeds + overlap)), df


def _widened(means: NDArray[np.float64], mean: float, patients: int) -> NDArray[np.float64]:
    """Resampled means, as far from the mean as Student's t would have it: resamples lack the factor of √(n / (n - 1)), and know
    nothing of their spread being an estimate.
    """
    if patients == 1:
        return means
    factor = np.sqrt(patients / (patients - 1)) * stats.t.ppf(0.975, patients - 1) / stats.norm.ppf(0.975)
    return np.asarray(mean + factor * (means - mean))
