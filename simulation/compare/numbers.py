"""What the runs of a comparison say: a line for each arm, and a sentence for each pair. Pure: records in, numbers out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np

from simulation.compare.arms import ALL_LABELS, ALWAYS
from simulation.compare.readings import (
    Read,
    budget_reached,
    common_range,
    efficiency,
    final,
    patient_aubc,
    patient_dice_at,
    same_patients,
    samples,
    spans,
    unit_of,
    whole_seeds,
)
from simulation.compare.record import Ran
from strategies.comparison import SeedNoise, difference, doubt, holm, mean_interval, paired, seed_noise

TARGETS = (0.9, 0.95)
"""Shares of the Dice with all labels."""

WORSE_BY = 0.01
"""A strategy whose Dice is surely no more than this below random_fg's is as good for whoever must choose one (non-inferior)."""

Interval = tuple[float, float, float]
"""Mean, lower and upper end of its 95 % interval."""

SURE = 0.05
"""A difference is called one where its Holm-corrected p is below this."""

FEWEST = 3
"""With fewer seeds (or folds) no difference is called one: published seed noise is as large as most differences."""


@dataclass(frozen=True)
class Line:
    """An arm in numbers, each over seeds and test patients.

    Attributes:
        seeds: that have ended.
        aubc: mean Dice over budgets in labels; of an arm with one assessment, its Dice.
        aubc_minutes: mean Dice over budgets in expert minutes.
        validation: `aubc` on validation patients, which is what a strategy may be chosen by.
        final: Dice at the end.
        at: number of labels to the Dice then, of an arm that has come so far with every seed; the budgets are those of `random`.
        labels, minutes: what was paid by then, mean over seeds.
        reach_labels, reach_minutes: share of the full-label Dice to what it took, mean over seeds; None where not all reached it.
        efficiency: β of Dice over the share of foreground that is annotated; None where none fits.
        worst: Dice of the worst site at the end.
        bytes, seconds: of a run.
    """

    arm: str
    seeds: int
    aubc: Interval
    aubc_minutes: Interval
    validation: float
    final: Interval
    at: Mapping[float, Interval]
    labels: float
    minutes: float
    reach_labels: Mapping[float, float | None]
    reach_minutes: Mapping[float, float | None]
    efficiency: float | None
    worst: float
    bytes: float
    seconds: float


@dataclass(frozen=True)
class Pair:
    """Two arms, paired by seed (or fold) and test patient: difference of AUBC, p corrected for all pairs, and what that means.

    Attributes:
        count, unit: of how many seeds or folds.
    """

    ours: str
    theirs: str
    difference: Interval
    doubt: float
    count: int
    unit: str = "seed"

    def seen_from(self, arm: str) -> Interval:
        """The difference as it is for one of both."""
        mean, low, high = self.difference
        return self.difference if arm == self.ours else (-mean, -high, -low)

    def of(self, one: str, other: str) -> bool:
        """Whether it is the pair of these two."""
        return {one, other} == {self.ours, self.theirs}

    @property
    def is_clear(self) -> bool:
        """Whether the two can be told apart."""
        return self.doubt < SURE and self.count >= FEWEST

    def verdict(self, arm: str) -> str:
        """In a plain sentence, about one of both."""
        other = self.theirs if arm == self.ours else self.ours
        if self.is_clear:
            return f"{arm} is {'better' if self.seen_from(arm)[0] > 0 else 'worse'} than {other}."
        return f"Can't tell {arm} from {other} with {self.count} {self.unit}{'s' * (self.count > 1)}."

    def no_worse(self, arm: str) -> bool | None:
        """Whether that one is below the other by `WORSE_BY` at most; None where the interval, or too few seeds, leave it open."""
        _, low, high = self.seen_from(arm)
        if self.count < FEWEST:
            return None
        return True if low >= -WORSE_BY else False if high < -WORSE_BY else None


@dataclass(frozen=True)
class Numbers:
    """A comparison in numbers.

    Attributes:
        by_arm: the runs that count, by arm in the order of arms; those of whole seeds alone, with patients that all tell of.
        lines: by arm.
        pairs, pairs_minutes: by AUBC over labels, and over expert minutes.
        full: fold to the Dice with all labels; None where that has not been run.
        above: arms that end with more than that Dice, so that it is no ceiling, and shares of it say nothing.
        left_out: held-out patients that do not count.
    """

    by_arm: Mapping[str, Sequence[Ran]]
    lines: Mapping[str, Line]
    pairs: Sequence[Pair]
    pairs_minutes: Sequence[Pair]
    full: Mapping[int, float] | None
    above: Sequence[str]
    left_out: int


def numbers_of(arms: Sequence[str], runs: Sequence[Ran], *, folds: int) -> Numbers:
    """Of all runs that have ended; `folds` as in `split.folds`, or 1."""
    kept, left_out = same_patients(whole_seeds(runs, folds=max(1, folds)))
    by_arm = {arm: found for arm in arms if (found := [ran for ran in kept if ran.arm == arm])}
    within = {over: common_range(kept, over=over) for over in ("labels", "minutes")}
    area = partial(patient_aubc, within=within["labels"])
    area_minutes = partial(patient_aubc, over="minutes", within=within["minutes"])
    full = _by_fold(by_arm[ALL_LABELS]) if ALL_LABELS in by_arm else None
    above = [] if full is None else [arm for arm, ended in by_arm.items() if _beyond(_by_fold(ended), full)]
    budgets = sorted({point.labels for ran in by_arm.get(ALWAYS[0], ()) for point in ran.points})
    at = {budget: _at_budget(by_arm, budget) for budget in budgets}
    noise = {read: _noise_of_means(by_arm, read) for read in (area, area_minutes, final)}

    def line(arm: str, ended: Sequence[Ran]) -> Line:
        last = [ran.points[-1] for ran in ended]
        goals = {
            target: None if full is None or above else {fold: target * dice for fold, dice in full.items()} for target in TARGETS
        }
        on_validation = partial(area, role="validation")
        means = {read: _mean(ended, read, noise[read]) for read in noise}
        return Line(
            arm=arm,
            seeds=len({ran.seed for ran in ended}),
            aubc=means[area],
            aubc_minutes=means[area_minutes],
            validation=statistics.mean(statistics.mean(on_validation(ran).values()) for ran in ended),
            final=means[final],
            at={budget: told[arm] for budget, told in at.items() if arm in told},
            labels=statistics.mean(point.labels for point in last),
            minutes=statistics.mean(point.minutes for point in last),
            reach_labels={target: budget_reached(ended, goal, of="labels") for target, goal in goals.items()},
            reach_minutes={target: budget_reached(ended, goal, of="minutes") for target, goal in goals.items()},
            efficiency=efficiency(ended),
            worst=statistics.mean(point.worst_test for point in last),
            bytes=statistics.mean(point.bytes for point in last),
            seconds=statistics.mean(ran.seconds for ran in ended),
        )

    return Numbers(
        by_arm=by_arm,
        lines={arm: line(arm, ended) for arm, ended in by_arm.items()},
        pairs=pairs_of(by_arm, area),
        pairs_minutes=pairs_of(by_arm, area_minutes),
        full=full,
        above=above,
        left_out=left_out,
    )


def pairs_of(by_arm: Mapping[str, Sequence[Ran]], read: Read) -> list[Pair]:
    """Every pair of arms that have seeds in common, in order."""
    found = []
    for ours, theirs in combinations(by_arm, 2):
        both = {ran.seed for ran in by_arm[ours]} & {ran.seed for ran in by_arm[theirs]}
        if both:
            sides = [[ran for ran in by_arm[arm] if ran.seed in both] for arm in (ours, theirs)]
            found.append((ours, theirs, unit_of(sides[0]), [samples(side, read) for side in sides]))
    most = max((len(sides[0]) for *_, sides in found), default=1)
    noise = seed_noise([paired(*sides) for *_, sides in found], df=(len(by_arm) - 1) * (most - 1))
    doubts = holm([doubt(*sides, noise=noise) for *_, sides in found])
    return [
        Pair(ours, theirs, difference(*sides, noise=noise), unsure, len(sides[0]), unit)
        for (ours, theirs, unit, sides), unsure in zip(found, doubts, strict=True)
    ]


def interval_beside(runs: Sequence[Ran], by_arm: Mapping[str, Sequence[Ran]], read: Read) -> Interval:
    """Mean of an arm's runs and its interval, knowing how far the seeds of all arms lie apart."""
    return _mean(runs, read, _noise_of_means(by_arm, read))


def _at_budget(by_arm: Mapping[str, Sequence[Ran]], budget: float) -> dict[str, Interval]:
    """Dice of the arms that have come so far."""
    there = {arm: runs for arm, runs in by_arm.items() if all(spans(ran, budget) for ran in runs)}
    read = partial(patient_dice_at, budget=budget)
    noise = _noise_of_means(there, read)
    return {arm: _mean(runs, read, noise) for arm, runs in there.items()}


def _mean(runs: Sequence[Ran], read: Read, noise: SeedNoise) -> Interval:
    """Of a Dice, whose interval ends at 0 and 1 at the latest."""
    mean, low, high = mean_interval(samples(runs, read), noise=noise)
    return mean, max(0.0, low), min(1.0, high)


def _noise_of_means(by_arm: Mapping[str, Sequence[Ran]], read: Read) -> SeedNoise:
    tables = [np.array([list(run.values()) for run in samples(ended, read)]) for ended in by_arm.values()]
    return seed_noise(tables, df=sum(len(table) - 1 for table in tables))


def _by_fold(runs: Sequence[Ran]) -> dict[int, float]:
    """Mean test Dice at the end, of each fold."""
    return {
        fold: statistics.mean(statistics.mean(final(ran).values()) for ran in runs if ran.fold == fold)
        for fold in sorted({ran.fold for ran in runs})
    }


def _beyond(dice: Mapping[int, float], full: Mapping[int, float]) -> bool:
    shared = dice.keys() & full.keys()
    return bool(shared) and statistics.mean(dice[fold] - full[fold] for fold in shared) > WORSE_BY
