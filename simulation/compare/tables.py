"""The numbers of a comparison as CSV: a row for each arm, for each pair, and for each run and cycle."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from functools import partial

from simulation.compare.numbers import TARGETS, Numbers
from simulation.compare.readings import common_range, mean_dice, patient_aubc

Row = Mapping[str, object]


def as_csv(rows: Sequence[Row]) -> str:
    """The first row's keys are the columns of all; nothing for None."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]) if rows else ["strategy"], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def arm_rows(numbers: Numbers) -> list[Row]:
    """Everything that is told of an arm, with the ends of its 95 % intervals."""
    rows: list[Row] = []
    budgets = sorted({labels for line in numbers.lines.values() for labels in line.at})
    for arm, line in numbers.lines.items():
        row: dict[str, object] = {"strategy": arm, "seeds": line.seeds}
        for name, interval in (("aubc", line.aubc), ("aubc_minutes", line.aubc_minutes), ("final_dice", line.final)):
            row |= {name: _digits(interval[0]), f"{name}_low": _digits(interval[1]), f"{name}_high": _digits(interval[2])}
        row |= {"aubc_validation": _digits(line.validation), "worst_site_dice": _digits(line.worst)}
        for target in TARGETS:
            for what, reached in (("labels", line.reach_labels.get(target)), ("minutes", line.reach_minutes.get(target))):
                row[f"{what}_to_{100 * target:.0f}_percent"] = None if reached is None else _digits(reached.budget, 1)
                row[f"{what}_to_{100 * target:.0f}_percent_by_all"] = None if reached is None else reached.by_all
        row |= {"labels": line.labels, "minutes": _digits(line.minutes, 2), "foreground_efficiency": _digits(line.efficiency, 2)}
        row |= {"bytes": round(line.bytes), "seconds": _digits(line.seconds, 1)}
        for labels in budgets:
            for end, name in enumerate(("", "_low", "_high")):
                row[f"dice_at_{labels:g}{name}"] = _digits(line.at[labels][end]) if labels in line.at else None
        rows.append(row)
    return rows


def pair_rows(numbers: Numbers) -> list[Row]:
    """Differences of AUBC (strategy minus against), over labels and over expert minutes; p is Holm-corrected."""
    return [
        {
            "strategy": pair.ours,
            "against": pair.theirs,
            "over": over,
            **{name: _digits(value) for name, value in zip(("difference", "low", "high"), pair.difference, strict=True)},
            "p": _digits(pair.doubt, 6),
            "count": pair.count,
            "of": pair.unit,
            "verdict": pair.verdict(pair.ours),
        }
        for over, pairs in (("labels", numbers.pairs), ("minutes", numbers.pairs_minutes))
        for pair in pairs
    ]


def run_rows(numbers: Numbers) -> list[Row]:
    """A row for each run and cycle."""
    runs = [ran for ended in numbers.by_arm.values() for ran in ended]
    area = partial(patient_aubc, within=common_range(runs))
    rows: list[Row] = []
    for ran in runs:
        areas = {f"aubc_{role}": _digits(statistics.mean(area(ran, role=role).values())) for role in ("validation", "test")}
        for cycle, point in enumerate(ran.points, start=1):
            row: dict[str, object] = {"strategy": ran.arm, "seed": ran.seed, "fold": ran.fold, "cycle": cycle}
            row |= {"labels": point.labels, "minutes": point.minutes, "foreground_share": _digits(point.foreground)}
            row |= {f"dice_{role}": _digits(mean_dice(point, role=role)) for role in ("validation", "test")}
            row |= {"dice_worst_site_test": _digits(point.worst_test), "bytes": point.bytes}
            rows.append({**row, **areas, "seconds": round(ran.seconds, 1)})
    return rows


def _digits(value: float | None, digits: int = 5) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
