"""What the runs of a comparison say: a line for each arm, and a sentence for each pair. Pure: records in, numbers out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from simulation.compare.record import Point, Ran
from strategies.comparison import bootstrap, holm, paired_bootstrap, sign_doubt
from strategies.curves import aubc, budget_to_reach, dice_at, foreground_efficiency

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

    @property
    def verdict(self) -> str:
        """In a plain sentence."""
        if self.doubt < SURE and self.seeds >= FEWEST_SEEDS:
            word = "better" if self.difference[0] > 0 else "worse"
            return f"{self.ours} is {word} than {self.theirs}."
        return f"Can't tell {self.ours} from {self.theirs} with {self.seeds} seed{'s' * (self.seeds > 1)}."


def line_of(
    runs: Sequence[Ran],
    *,
    full_dice: float | None,
    targets: Sequence[float] = (0.9, 0.95),
    within: tuple[float, float] | None = None,
) -> Line:
    """The line of an arm's runs, one for each seed; `within` is the range of labels that all arms share."""
    goals = {target: None if full_dice is None else target * full_dice for target in targets}
    last = [ran.points[-1] for ran in runs]
    efficiencies = [beta for ran in runs if (beta := _efficiency(ran)) is not None]
    return Line(
        arm=runs[0].arm,
        seeds=len(runs),
        aubc=bootstrap([patient_aubc(ran, within=within) for ran in runs]),
        validation=statistics.mean(statistics.mean(patient_aubc(ran, role="validation", within=within).values()) for ran in runs),
        final=bootstrap([point.test for point in last]),
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
        mine, other = ({ran.seed: patient_aubc(ran, within=within) for ran in by_arm[arm]} for arm in (ours, theirs))
        both = sorted(mine.keys() & other.keys())
        if both:
            sides = [mine[seed] for seed in both], [other[seed] for seed in both]
            found.append((ours, theirs, sides, len(both)))
    # a p that so many pairs could not bring below SURE, however clear the difference, would be no test
    draws = max(DRAWS, int(40 * len(found) / SURE))
    doubts = holm([sign_doubt(*sides, draws=draws) for _, _, sides, _ in found])
    return [
        Pair(ours, theirs, paired_bootstrap(*sides), doubt, seeds)
        for (ours, theirs, sides, seeds), doubt in zip(found, doubts, strict=True)
    ]


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
    """The runs with those held-out patients alone whose Dice every run tells in every cycle, and how many were left out.

    A patient without a structure has a Dice in some cycles alone: 0 where the model finds one all the same, else none.
    """
    kept: dict[str, set[str]] = {}
    left_out = 0
    for role in ("validation", "test"):
        sets = [set(getattr(point, role)) for ran in runs for point in ran.points]
        kept[role] = set.intersection(*sets) if sets else set()
        left_out += len(set.union(*sets) - kept[role]) if sets else 0

    def cut(point: Point) -> Point:
        validation, test = (
            {p: d for p, d in of.items() if p in kept[role]}
            for role, of in (("validation", point.validation), ("test", point.test))
        )
        return replace(point, validation=validation, test=test)

    return [replace(ran, points=tuple(map(cut, ran.points))) for ran in runs], left_out


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
