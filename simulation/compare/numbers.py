"""What the runs of a comparison say: a line for each arm, and a sentence for each pair. Pure: records in, numbers out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from simulation.compare.record import Point, Ran
from strategies.comparison import bootstrap, holm, paired_bootstrap, sign_doubt
from strategies.curves import aubc, budget_to_reach, dice_at, foreground_efficiency

Interval = tuple[float, float, float]
"""Mean, lower and upper end of its 95 % interval."""

SURE = 0.05
"""A difference is called one where its Holm-corrected p is below this."""


@dataclass(frozen=True)
class Line:
    """An arm in numbers, each over seeds and test patients.

    Attributes:
        seeds: that have ended.
        aubc: mean Dice over budgets; of an arm with one assessment, its Dice.
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
        if self.doubt < SURE:
            word = "better" if self.difference[0] > 0 else "worse"
            return f"{self.ours} is {word} than {self.theirs}."
        return f"Can't tell {self.ours} from {self.theirs} with {self.seeds} seed{'s' * (self.seeds > 1)}."


def line_of(runs: Sequence[Ran], *, full_dice: float | None, targets: Sequence[float] = (0.9, 0.95)) -> Line:
    """The line of an arm's runs, one for each seed."""
    goals = {target: None if full_dice is None else target * full_dice for target in targets}
    last = [ran.points[-1] for ran in runs]
    efficiencies = [beta for ran in runs if (beta := _efficiency(ran)) is not None]
    return Line(
        arm=runs[0].arm,
        seeds=len(runs),
        aubc=bootstrap([patient_aubc(ran) for ran in runs]),
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


def pairs_of(by_arm: Mapping[str, Sequence[Ran]]) -> list[Pair]:
    """Every pair of arms that have seeds in common, in order."""
    found = []
    for ours, theirs in combinations(by_arm, 2):
        mine, other = ({ran.seed: patient_aubc(ran) for ran in by_arm[arm]} for arm in (ours, theirs))
        both = sorted(mine.keys() & other.keys())
        if both:
            sides = [mine[seed] for seed in both], [other[seed] for seed in both]
            found.append((ours, theirs, paired_bootstrap(*sides), sign_doubt(*sides), len(both)))
    doubts = holm([doubt for *_, doubt, _ in found])
    return [
        Pair(ours, theirs, difference, doubt, seeds)
        for (ours, theirs, difference, _, seeds), doubt in zip(found, doubts, strict=True)
    ]


def patient_aubc(ran: Ran, *, role: str = "test", over: str = "labels") -> dict[str, float]:
    """Area under each held-out patient's own curve, so that runs can be paired by patient."""
    budgets = [float(getattr(point, over)) for point in ran.points]
    patients = getattr(ran.points[0], role)
    return {patient: aubc(budgets, [getattr(point, role)[patient] for point in ran.points]) for patient in patients}


def mean_dice(point: Point, *, role: str = "test") -> float:
    """Over patients."""
    patients: dict[str, float] = getattr(point, role)
    return statistics.mean(patients.values())


def at_budgets(runs: Sequence[Ran], budgets: Sequence[float]) -> dict[float, float | None]:
    """Mean Dice of an arm's runs at fixed numbers of labels; None where a run does not come so far."""
    found: dict[float, float | None] = {}
    for budget in budgets:
        read = [dice_at([p.labels for p in ran.points], [mean_dice(p) for p in ran.points], budget) for ran in runs]
        known = [dice for dice in read if dice is not None]
        found[budget] = statistics.mean(known) if len(known) == len(runs) else None
    return found


def _reached(runs: Sequence[Ran], goal: float | None, *, of: str) -> float | None:
    if goal is None:
        return None
    each = [budget_to_reach([getattr(p, of) for p in r.points], [mean_dice(p) for p in r.points], goal) for r in runs]
    known = [budget for budget in each if budget is not None]
    return statistics.mean(known) if len(known) == len(runs) else None


def _efficiency(ran: Ran) -> float | None:
    return foreground_efficiency([point.foreground for point in ran.points], [mean_dice(point) for point in ran.points])
