"""What is read off the runs of an arm: areas by patient, curves, budgets. Pure: records in, numbers out."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from simulation.compare.record import Point, Ran
from strategies.curves import aubc, budget_to_reach, dice_at, foreground_efficiency

Read = Callable[[Ran], Mapping[str, float]]
"""A number for each test patient of a run."""


def unit_of(runs: Sequence[Ran]) -> str:
    """What is repeated: "seed", or "fold" where there are more of these."""
    return "fold" if len({ran.fold for ran in runs}) > len({ran.seed for ran in runs}) else "seed"


def samples(runs: Sequence[Ran], read: Read, *, unit: str) -> list[dict[str, float]]:
    """What `read` tells, for each repetition in ascending order; `unit` is the whole comparison's.

    By seed: of each test patient; the folds of a seed have different patients and are taken together. By fold: no patient is
    tested in two, so that each is one number, the mean over its patients and seeds.
    """
    if unit == "fold":
        folds = sorted({ran.fold for ran in runs})
        return [{"fold": statistics.mean(statistics.mean(read(r).values()) for r in runs if r.fold == f)} for f in folds]
    found: dict[int, dict[str, float]] = {}
    for ran in sorted(runs, key=lambda ran: (ran.seed, ran.fold)):
        found.setdefault(ran.seed, {}).update(read(ran))
    return list(found.values())


def final(ran: Ran) -> Mapping[str, float]:
    """Test Dice at the end."""
    return ran.points[-1].test


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
    """The budgets that all runs have in common; None where there are none. Runs that paid for no label after their first have no
    range, and don't count."""
    curves = [budgets for ran in runs if len(budgets := _rising(ran, over=over)[0]) > 1]
    low, high = max((c[0] for c in curves), default=0.0), min((c[-1] for c in curves), default=0.0)
    return (low, high) if low < high else None


def _rising(ran: Ran, *, over: str) -> tuple[list[float], list[list[int]]]:
    """Different budgets, ascending, and the cycles that had each: a cycle may bring no label."""
    cycles: dict[float, list[int]] = {}
    for n, point in enumerate(ran.points):
        cycles.setdefault(float(getattr(point, over)), []).append(n)
    budgets = sorted(cycles)
    return budgets, [cycles[budget] for budget in budgets]


def mean_curve(ran: Ran, *, over: str = "labels") -> tuple[list[float], list[float]]:
    """Budgets and the mean test Dice at each."""
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


def patient_dice_at(ran: Ran, *, budget: float) -> dict[str, float]:
    """Each test patient's Dice at a number of labels; between two assessments on the line through both."""
    budgets, points = _rising(ran, over="labels")
    found = {}
    for patient in ran.points[0].test:
        dice = [statistics.mean(ran.points[n].test[patient] for n in same) for same in points]
        found[patient] = float(np.interp(budget, budgets, dice))
    return found


def spans(ran: Ran, budget: float) -> bool:
    """Whether a run was assessed with fewer labels and with more, or with just so many."""
    return min(point.labels for point in ran.points) <= budget <= max(point.labels for point in ran.points)


@dataclass(frozen=True)
class Reached:
    """What it took to come to a Dice, mean over runs; where some never did they count with all that they had, so that it took
    more than that.
    """

    budget: float
    by_all: bool


def budget_reached(runs: Sequence[Ran], goals: Mapping[int, float], *, of: str) -> Reached:
    """Labels, or minutes, at which runs reached the Dice that is the goal of their fold."""
    each = [budget_to_reach(*mean_curve(ran, over=of), goals[ran.fold]) for ran in runs]
    spent = [getattr(ran.points[-1], of) if budget is None else budget for budget, ran in zip(each, runs, strict=True)]
    return Reached(statistics.mean(spent), None not in each)


def efficiency(runs: Sequence[Ran]) -> float | None:
    """β of Dice over the share of foreground that is annotated, of the mean curve: single runs are too uneven to fit one to."""
    cycles = range(min(len(ran.points) for ran in runs))
    shares = [statistics.mean(ran.points[n].foreground for ran in runs) for n in cycles]
    return foreground_efficiency(shares, [statistics.mean(mean_dice(ran.points[n]) for ran in runs) for n in cycles])
