"""What the runs of a comparison say: a line for each arm, and a sentence for each pair. Pure: records in, numbers out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

from simulation.compare.arms import ALL_LABELS, ALWAYS, reference_of
from simulation.compare.readings import (
    Reached,
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
from strategies.comparison import difference, doubt, holm, mean_interval, paired, seed_noise

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
        reach_labels, reach_minutes: share of the full-label Dice to what it took; empty where all labels are no ceiling.
        efficiency: β of Dice over the share of foreground that is annotated; None where none fits.
        worst: Dice of the worst site at the end; None where none is known.
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
    reach_labels: Mapping[float, Reached]
    reach_minutes: Mapping[float, Reached]
    efficiency: float | None
    worst: float | None
    bytes: float
    seconds: float


@dataclass(frozen=True)
class Pair:
    """Two arms, paired by seed (or fold) and test patient: difference of AUBC, p corrected for all pairs, and what that means.

    Attributes:
        count, unit: of how many seeds or folds.
        tested: on how many patients, of all folds together.
    """

    ours: str
    theirs: str
    difference: Interval
    doubt: float
    count: int
    unit: str
    tested: int

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
        return self.doubt < SURE and self._is_enough

    @property
    def _is_enough(self) -> bool:
        """What one patient says of others nobody can tell, however often it is tested."""
        return self.count >= FEWEST and self.tested > 1

    def verdict(self, arm: str) -> str:
        """In a plain sentence, about one of both."""
        other = self.theirs if arm == self.ours else self.ours
        if self.is_clear:
            return f"{arm} is {'better' if self.seen_from(arm)[0] > 0 else 'worse'} than {other}."
        lone = " and one test patient" if self.tested == 1 else ""
        return f"Can't tell {arm} from {other} with {self.count} {self.unit}{'s' * (self.count > 1)}{lone}."

    def no_worse(self, arm: str) -> bool | None:
        """Whether that one is below the other by `WORSE_BY` at most; None where the interval leaves it open, or too few seeds or
        patients do."""
        _, low, high = self.seen_from(arm)
        if not self._is_enough:
            return None
        return True if low >= -WORSE_BY else False if high < -WORSE_BY else None


@dataclass(frozen=True)
class Numbers:
    """A comparison in numbers.

    Attributes:
        by_arm: the runs that count, by arm in the order of arms; those of whole seeds alone, with patients that all tell of.
        lines: by arm.
        unit: what is repeated, "seed" or "fold".
        within, within_minutes: labels, and minutes, that all curves share, over which AUBC is taken; None where they share none.
        pairs, pairs_minutes: by AUBC over labels, and over expert minutes.
        full: fold to the Dice with all labels; None where that has not been run.
        above: arms that end with more than that Dice, so that it is no ceiling, and shares of it say nothing.
        left_out: held-out patients that do not count.
        ended: how many runs have, of whole seeds.
        unassessed: those of them that do not count, because a site told no Dice in some cycle: without its patients the others'
            would be another mean.
        nobody: roles of which some fold has nobody whose Dice is known in every run; then nothing is compared.
    """

    by_arm: Mapping[str, Sequence[Ran]]
    lines: Mapping[str, Line]
    unit: str
    within: tuple[float, float] | None
    within_minutes: tuple[float, float] | None
    pairs: Sequence[Pair]
    pairs_minutes: Sequence[Pair]
    full: Mapping[int, float] | None
    above: Sequence[str]
    left_out: int
    ended: int
    unassessed: Sequence[Ran]
    nobody: Sequence[str]

    def gain(self, line: Line) -> float:
        """How far it is ahead of what it has to beat, by AUBC on validation patients: what a strategy is chosen by."""
        reference = self.lines.get(reference_of(line.arm, self.lines))
        return line.validation - (reference.validation if reference else 0.0)

    def against(self, arm: str, *, minutes: bool = False) -> Pair | None:
        """Its pair with what it has to beat (`arms.reference_of`); None where it is that itself, or either has not been run."""
        reference = reference_of(arm, self.lines)
        return next((pair for pair in (self.pairs_minutes if minutes else self.pairs) if pair.of(arm, reference)), None)


def numbers_of(arms: Sequence[str], runs: Sequence[Ran], *, folds: int) -> Numbers:
    """Of all runs that have ended; `folds` as in `split.folds`, or 1."""
    ended = whole_seeds(runs, folds=max(1, folds))
    unassessed = [ran for ran in ended if any(point.unassessed for point in ran.points)]
    kept, left_out = same_patients(whole_seeds([ran for ran in ended if ran not in unassessed], folds=max(1, folds)))
    nobody = [role for role in ("validation", "test") if not all(getattr(ran.points[0], role) for ran in kept)]
    kept = [] if nobody else kept
    by_arm = {arm: found for arm in arms if (found := [ran for ran in kept if ran.arm == arm])}
    unit = unit_of(kept)
    within = {over: common_range(kept, over=over) for over in ("labels", "minutes")}
    area = partial(patient_aubc, within=within["labels"])
    area_minutes = partial(patient_aubc, over="minutes", within=within["minutes"])
    full = _by_fold(by_arm[ALL_LABELS]) if ALL_LABELS in by_arm else None
    above = [] if full is None else [arm for arm, of in by_arm.items() if _beyond(_by_fold(of), full)]
    goals = {} if full is None or above else {target: {fold: target * dice for fold, dice in full.items()} for target in TARGETS}
    budgets = sorted({point.labels for ran in by_arm.get(ALWAYS[0], ()) for point in ran.points})

    def line(arm: str, of: Sequence[Ran]) -> Line:
        last = [ran.points[-1] for ran in of]
        on_validation = partial(area, role="validation")
        worst = [point.worst_test for point in last if point.worst_test is not None]
        return Line(
            arm=arm,
            seeds=len({ran.seed for ran in of}),
            aubc=mean_of(of, area, unit=unit),
            aubc_minutes=mean_of(of, area_minutes, unit=unit),
            validation=statistics.mean(statistics.mean(on_validation(ran).values()) for ran in of),
            final=mean_of(of, final, unit=unit),
            at={
                budget: mean_of(of, partial(patient_dice_at, budget=budget), unit=unit)
                for budget in budgets
                if all(spans(ran, budget) for ran in of)
            },
            labels=statistics.mean(point.labels for point in last),
            minutes=statistics.mean(point.minutes for point in last),
            reach_labels={target: budget_reached(of, goal, of="labels") for target, goal in goals.items()},
            reach_minutes={target: budget_reached(of, goal, of="minutes") for target, goal in goals.items()},
            efficiency=efficiency(of),
            worst=statistics.mean(worst) if worst else None,
            bytes=statistics.mean(point.bytes for point in last),
            seconds=statistics.mean(ran.seconds for ran in of),
        )

    return Numbers(
        by_arm=by_arm,
        lines={arm: line(arm, of) for arm, of in by_arm.items()},
        unit=unit,
        within=within["labels"],
        within_minutes=within["minutes"],
        pairs=pairs_of(by_arm, area),
        pairs_minutes=pairs_of(by_arm, area_minutes),
        full=full,
        above=above,
        left_out=left_out,
        ended=len(ended),
        unassessed=unassessed,
        nobody=nobody,
    )


def pairs_of(by_arm: Mapping[str, Sequence[Ran]], read: Read) -> list[Pair]:
    """Every pair of arms that have seeds in common, in order."""
    runs = [ran for of in by_arm.values() for ran in of]
    unit = unit_of(runs)
    overlap = overlap_of(runs, unit=unit)
    found = []
    for ours, theirs in combinations(by_arm, 2):
        both = {ran.seed for ran in by_arm[ours]} & {ran.seed for ran in by_arm[theirs]}
        if both:
            sides = [samples([ran for ran in by_arm[arm] if ran.seed in both], read, unit=unit) for arm in (ours, theirs)]
            tested = {patient for ran in by_arm[ours] if ran.seed in both for patient in ran.points[-1].test}
            found.append((ours, theirs, len(tested), sides))
    most = max((len(sides[0]) for *_, sides in found), default=1)
    noise = seed_noise([paired(*sides) for *_, sides in found], df=(len(by_arm) - 1) * (most - 1))
    doubts = holm([doubt(*sides, noise=noise, overlap=overlap) for *_, sides in found])
    return [
        Pair(ours, theirs, difference(*sides, noise=noise, overlap=overlap), unsure, len(sides[0]), unit, tested)
        for (ours, theirs, tested, sides), unsure in zip(found, doubts, strict=True)
    ]


def mean_of(runs: Sequence[Ran], read: Read, *, unit: str) -> Interval:
    """Mean of a Dice over an arm's runs, and its interval, which ends at 0 and 1 at the latest."""
    told = samples(runs, read, unit=unit)
    mean, low, high = mean_interval(told, overlap=overlap_of(runs, unit=unit))
    return mean, max(0.0, low), min(1.0, high)


def overlap_of(runs: Sequence[Ran], *, unit: str) -> float:
    """Test patients over training patients, where folds are what is repeated: each patient is tested in one of them, and whom a
    fold neither tests nor validates on it trains on. 0 for seeds, whose folds are taken together.
    """
    folds = {ran.fold: ran.points[-1] for ran in runs}
    if unit != "fold" or len(folds) < 2:
        return 0.0
    everybody = {patient for point in folds.values() for patient in point.test}
    tested = sum(len(point.test) for point in folds.values())
    trained = sum(len(everybody - point.test.keys() - point.validation.keys()) for point in folds.values())
    return tested / max(trained, 1)


def _by_fold(runs: Sequence[Ran]) -> dict[int, float]:
    """Mean test Dice at the end, of each fold."""
    return {
        fold: statistics.mean(statistics.mean(final(ran).values()) for ran in runs if ran.fold == fold)
        for fold in sorted({ran.fold for ran in runs})
    }


def _beyond(dice: Mapping[int, float], full: Mapping[int, float]) -> bool:
    shared = dice.keys() & full.keys()
    return bool(shared) and statistics.mean(dice[fold] - full[fold] for fold in shared) > WORSE_BY
