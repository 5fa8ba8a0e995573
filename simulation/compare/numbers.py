"""What the runs of a comparison say: a line for each arm, and a sentence for each pair. Pure: records in, numbers out."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

from simulation.compare.record import Point, Ran
from strategies.comparison import bootstrap, holm, paired_bootstrap, sign_doubt
from strategies.curves import aubc, budget_to_reach, dice_at, foreground_efficiency

WORSE_BY = 0.01
"""A strategy whose Dice is surely no more than this below random_fg's is as good for whoever must choose one (non-inferior)."""

Interval = tuple[float, float, float]
"""Mean, lower and upper end of its 95 % interval."""

SURE = 0.05
"""A difference is called one where its Holm-corrected p is below this."""

FEWEST_SEEDS = 3
"""With fewer no difference is called one: published seed noise is as large as most differences."""

DRAWS = 4000


@dataclass(frozen=True)
class Line:
    """An arm in numbers, each over seeds and test patients.

    Attributes:
        seeds: that have ended.
        aubc: mean Dice over budgets; of an arm with one assessment, its Dice.
        validation: the same on validation patients, which is what a strategy may be chosen by.
        final: Dice at the end.
        labels, minutes: what was paid by then, mean over seeds.
        reach_labels, reach_minutes: share of the full-label Dice to what it took, mean over seeds; None where not all reached it.
        efficiency: β of Dice over the share of foreground that is annotated; None where none fits.
        worst: Dice of the worst site at the end.
        bytes, seconds: of a run.
    """

    arm: str
    seeds: int
    aubc: Interval
    validation: float
    final: Interval
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
    """Two arms, paired by seed and test patient: difference of AUBC, p corrected for all pairs, and what that means."""

    ours: str
    theirs: str
    difference: Interval
    doubt: float
    seeds: int

    def seen_from(self, arm: str) -> Interval:
        """The difference as it is for one of both."""
        mean, low, high = self.difference
        return self.difference if arm == self.ours else (-mean, -high, -low)

    def verdict(self, arm: str) -> str:
        """In a plain sentence, about one of both."""
        other = self.theirs if arm == self.ours else self.ours
        if self.doubt < SURE and self.seeds >= FEWEST_SEEDS:
            return f"{arm} is {'better' if self.seen_from(arm)[0] > 0 else 'worse'} than {other}."
        return f"Can't tell {arm} from {other} with {self.seeds} seed{'s' * (self.seeds > 1)}."

    def no_worse(self, arm: str) -> bool | None:
        """Whether that one is below the other by `WORSE_BY` at most; None where the interval leaves it open."""
        _, low, high = self.seen_from(arm)
        return True if low >= -WORSE_BY else False if high < -WORSE_BY else None


def line_of(
    runs: Sequence[Ran],
    *,
    full_dice: float | None,
    targets: Sequence[float] = (0.9, 0.95),
    within: tuple[float, float] | None = None,
) -> Line:
    """The line of an arm's runs, one for each seed and fold; `within` is the range of labels that all arms share."""
    goals = {target: None if full_dice is None else target * full_dice for target in targets}
    last = [ran.points[-1] for ran in runs]
    efficiencies = [beta for ran in runs if (beta := _efficiency(ran)) is not None]
    return Line(
        arm=runs[0].arm,
        seeds=len({ran.seed for ran in runs}),
        aubc=bootstrap(by_seed(runs, lambda ran: patient_aubc(ran, within=within))),
        validation=statistics.mean(statistics.mean(patient_aubc(ran, role="validation", within=within).values()) for ran in runs),
        final=bootstrap(by_seed(runs, lambda ran: ran.points[-1].test)),
        labels=statistics.mean(point.labels for point in last),
        minutes=statistics.mean(point.minutes for point in last),
        reach_labels={target: _reached(runs, goal, of="labels") for target, goal in goals.items()},
        reach_minutes={target: _reached(runs, goal, of="minutes") for target, goal in goals.items()},
        efficiency=statistics.mean(efficiencies) if len(efficiencies) == len(runs) else None,
        worst=statistics.mean(point.worst_test for point in last),
        bytes=statistics.mean(point.bytes for point in last),
        seconds=statistics.mean(ran.seconds for ran in runs),
    )


def pairs_of(by_arm: Mapping[str, Sequence[Ran]], *, within: tuple[float, float] | None = None) -> list[Pair]:
    """Every pair of arms that have seeds in common, in order."""
    found = []
    for ours, theirs in combinations(by_arm, 2):
        both = {ran.seed for ran in by_arm[ours]} & {ran.seed for ran in by_arm[theirs]}
        if both:
            sides = [
                by_seed([ran for ran in by_arm[arm] if ran.seed in both], lambda ran: patient_aubc(ran, within=within))
                for arm in (ours, theirs)
            ]
            found.append((ours, theirs, sides, len(both)))
    # a p that so many pairs could not bring below SURE, however clear the difference, would be no test
    draws = max(DRAWS, int(40 * len(found) / SURE))
    doubts = holm([sign_doubt(*sides, draws=draws) for _, _, sides, _ in found])
    return [
        Pair(ours, theirs, paired_bootstrap(*sides), doubt, seeds)
        for (ours, theirs, sides, seeds), doubt in zip(found, doubts, strict=True)
    ]


def by_seed(runs: Sequence[Ran], read: Callable[[Ran], Mapping[str, float]]) -> list[dict[str, float]]:
    """What `read` tells of each test patient, seed by seed in ascending order: the folds of a seed have different patients."""
    found: dict[int, dict[str, float]] = {}
    for ran in sorted(runs, key=lambda ran: (ran.seed, ran.fold)):
        found.setdefault(ran.seed, {}).update(read(ran))
    return list(found.values())


def patient_aubc(
    ran: Ran, *, role: str = "test", over: str = "labels", within: tuple[float, float] | None = None
) -> dict[str, float]:
    """Area under each held-out patient's own curve, so that runs can be paired by patient.

    `within` is a range of budgets that all curves share; a run of one point has its Dice.
    """
    budgets, points = _rising(ran, over=over)
    found = {}
    for patient in getattr(ran.points[0], role):
        dice = [statistics.mean(getattr(ran.points[n], role)[patient] for n in same) for same in points]
        if within is not None and len(budgets) > 1 and within[0] < within[1]:
            inner = [b for b in budgets if within[0] < b < within[1]]
            cut = [within[0], *inner, within[1]]
            found[patient] = aubc(cut, [read for b in cut if (read := dice_at(budgets, dice, b)) is not None])
        else:
            found[patient] = aubc(budgets, dice)
    return found


def common_range(runs: Sequence[Ran], *, over: str = "labels") -> tuple[float, float] | None:
    """The budgets that all runs of more than one point have in common; None where there are none."""
    curves = [_rising(ran, over=over)[0] for ran in runs if len(ran.points) > 1]
    low, high = max((c[0] for c in curves), default=0.0), min((c[-1] for c in curves), default=0.0)
    return (low, high) if low < high else None


def _rising(ran: Ran, *, over: str) -> tuple[list[float], list[list[int]]]:
    """Different budgets, ascending, and the cycles that had each: a cycle may bring no label."""
    cycles: dict[float, list[int]] = {}
    for n, point in enumerate(ran.points):
        cycles.setdefault(float(getattr(point, over)), []).append(n)
    budgets = sorted(cycles)
    return budgets, [cycles[budget] for budget in budgets]


def _mean_curve(ran: Ran, *, over: str = "labels") -> tuple[list[float], list[float]]:
    budgets, points = _rising(ran, over=over)
    return budgets, [statistics.mean(mean_dice(ran.points[n]) for n in same) for same in points]


def same_patients(runs: Sequence[Ran]) -> tuple[list[Ran], int]:
    """The runs with those held-out patients alone whose Dice every run of their fold tells in every cycle, and how many were left
    out.

    A patient without a structure has a Dice in some cycles alone: 0 where the model finds one all the same, else none.
    """
    kept: dict[tuple[int, str], set[str]] = {}
    left_out = 0
    for fold, role in product({ran.fold for ran in runs}, ("validation", "test")):
        sets = [set(getattr(point, role)) for ran in runs if ran.fold == fold for point in ran.points]
        kept[fold, role] = set.intersection(*sets)
        left_out += len(set.union(*sets) - kept[fold, role])

    def cut(point: Point, fold: int) -> Point:
        validation, test = (
            {p: d for p, d in of.items() if p in kept[fold, role]}
            for role, of in (("validation", point.validation), ("test", point.test))
        )
        return replace(point, validation=validation, test=test)

    return [replace(ran, points=tuple(cut(point, ran.fold) for point in ran.points)) for ran in runs], left_out


def whole_seeds(runs: Sequence[Ran], *, folds: int) -> list[Ran]:
    """Those of which every fold has ended with that arm and seed: a part of them has other patients than the rest."""
    done = Counter((ran.arm, ran.seed) for ran in runs)
    return [ran for ran in runs if done[ran.arm, ran.seed] == folds]


def mean_dice(point: Point, *, role: str = "test") -> float:
    """Over patients."""
    patients: dict[str, float] = getattr(point, role)
    return statistics.mean(patients.values())


def at_budgets(runs: Sequence[Ran], budgets: Sequence[float]) -> dict[float, float | None]:
    """Mean Dice of an arm's runs at fixed numbers of labels; None where a run does not come so far."""
    found: dict[float, float | None] = {}
    for budget in budgets:
        read = [dice_at(*_mean_curve(ran), budget) for ran in runs]
        known = [dice for dice in read if dice is not None]
        found[budget] = statistics.mean(known) if len(known) == len(runs) else None
    return found


def _reached(runs: Sequence[Ran], goal: float | None, *, of: str) -> float | None:
    if goal is None:
        return None
    each = [budget_to_reach(*_mean_curve(ran, over=of), goal) for ran in runs]
    known = [budget for budget in each if budget is not None]
    return statistics.mean(known) if len(known) == len(runs) else None


def _efficiency(ran: Ran) -> float | None:
    return foreground_efficiency([point.foreground for point in ran.points], [mean_dice(point) for point in ran.points])
