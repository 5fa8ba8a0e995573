"""compare.html and compare.csv: what came out, for people and for other programs."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from configs.files import write_text
from configs.schema import Run
from server.report_words import count, dice, duration, human_bytes, signed
from simulation.compare.arms import ALL_LABELS, ALWAYS, Arm
from simulation.compare.numbers import (
    FEWEST_SEEDS,
    WORSE_BY,
    Interval,
    Line,
    Pair,
    at_budgets,
    common_range,
    line_of,
    pairs_of,
    patient_aubc,
    same_patients,
    whole_seeds,
)
from simulation.compare.plots import area_plot, curve_of, curve_plot
from simulation.compare.record import Ran

TARGETS = (0.9, 0.95)

REFERENCE = "random_fg"
"""What every strategy has to beat."""


def write_page(folder: Path, run: Run, arms: Sequence[Arm], runs: Sequence[Ran], *, seeds: int, command: str) -> Path:
    """Write both into a comparison's folder; gives the page. It says so where runs are missing.

    Args:
        seeds: how many there shall be of each arm.
    """
    folds = max(1, run.split.folds)
    runs, left_out = same_patients(whole_seeds(runs, folds=folds))
    within = common_range(runs)
    by_arm = {arm.name: [ran for ran in runs if ran.arm == arm.name] for arm in arms}
    by_arm = {name: found for name, found in by_arm.items() if found}
    whole = by_arm.get(ALL_LABELS, [])
    full = line_of(whole, full_dice=None).final[0] if whole else None
    lines = [line_of(found, full_dice=full, targets=TARGETS, within=within) for found in by_arm.values()]
    pairs = pairs_of(by_arm, within=within)
    write_text(folder / "compare.csv", _table(runs))
    path = folder / "compare.html"
    write_text(path, _render(run, arms, by_arm, lines, pairs, full=full, seeds=seeds, command=command, left_out=left_out))
    return path


def _render(
    run: Run,
    arms: Sequence[Arm],
    by_arm: dict[str, list[Ran]],
    lines: Sequence[Line],
    pairs: Sequence[Pair],
    *,
    full: float | None,
    seeds: int,
    command: str,
    left_out: int,
) -> str:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("simulation"), PackageLoader("server")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        dice=dice, signed=signed, bytes=human_bytes, duration=duration, between=_between, whole=_whole, doubt=_doubt
    )
    curves = {name: found for name, found in by_arm.items() if len(found[0].points) > 1}
    done, wanted = sum(map(len, by_arm.values())), len(arms) * seeds * max(1, run.split.folds)
    budgets = sorted({point.labels for ran in by_arm.get("random", ()) for point in ran.points})
    return environment.get_template("compare.html.j2").render(
        name=run.name,
        status=f"{done} of {wanted} runs" if done < wanted else "complete",
        missing=done < wanted,
        lead=_lead(pairs, lines),
        facts=[
            ("Seeds", str(seeds)),
            *([("Folds", str(run.split.folds))] if run.split.folds else []),
            ("Cycles", str(run.federation.cycles)),
            ("First request", f"{run.budget.cold_start} a site"),
            ("Then", f"{run.budget.per_cycle} a site and cycle"),
            ("Training", run.train.framework + (" with SAM" if run.sam.enabled else "")),
        ],
        notes=_notes([ran for found in by_arm.values() for ran in found], wanted - done, seeds=seeds, left_out=left_out),
        lines=sorted(lines, key=lambda line: -line.aubc[0]),
        seeds=seeds,
        targets=TARGETS,
        area_plot=area_plot(lines) if lines else None,
        label_plot=curve_plot([curve_of(c, over="labels") for c in curves.values()], lines, over="labels", ceiling=full)
        if curves
        else None,
        minute_plot=curve_plot([curve_of(c, over="minutes") for c in curves.values()], lines, over="minutes", ceiling=full)
        if curves
        else None,
        budgets=budgets,
        at_budgets={name: at_budgets(found, budgets) for name, found in curves.items()},
        pairs=pairs,
        against={arm: pair for pair in pairs for arm in (pair.ours, pair.theirs) if REFERENCE in (pair.ours, pair.theirs)},
        reference=REFERENCE,
        worse_by=WORSE_BY,
        always=ALWAYS,
        command=command,
        needed=_needed(arms),
        footer="Numbers of every run: compare.csv beside this page.",
    )


def _lead(pairs: Sequence[Pair], lines: Sequence[Line]) -> str:
    """The answer in a sentence or two."""
    best = max((line for line in lines if line.arm != ALL_LABELS), key=lambda line: line.aubc[0], default=None)
    if best is None:
        return "No run has ended yet."
    against = [pair for pair in pairs if {best.arm, REFERENCE} == {pair.ours, pair.theirs}]
    if not against:
        return f"{best.arm} has the highest mean Dice over budgets, {best.aubc[0]:.3f}."
    return f"{best.arm} has the highest mean Dice over budgets, {best.aubc[0]:.3f}. {against[0].verdict(best.arm)}"


def _notes(runs: Sequence[Ran], missing: int, *, seeds: int, left_out: int) -> list[str]:
    notes = [f"{count(missing, 'run')} missing: the same command goes on."] if missing else []
    if seeds < FEWEST_SEEDS:
        notes.append(f"With {count(seeds, 'seed')} no difference is called one: chance alone moves a strategy by as much.")
    if left_out:
        notes.append(f"{count(left_out, 'held-out patient')} without a structure left out: a Dice is not known in every run.")
    for what, told in (("versions of the program", {r.commit for r in runs}), ("machines", {r.machine for r in runs})):
        if len(told) > 1:
            notes.append(f"The runs are of {len(told)} {what}: {', '.join(sorted(told))}.")
    return notes


def _needed(arms: Sequence[Arm]) -> str:
    """What is changed in the configuration for some arms; what is changed for all of them is said once."""
    changes = {arm.name: [o for o in arm.overrides if o.startswith(("network.", "query.cold_start"))] for arm in arms}
    shared = set.intersection(*(set(of) for of in changes.values()))
    told = [f"all have {override}" for override in sorted(shared)]
    told += [f"{name} has {override}" for name, of in changes.items() for override in of if override not in shared]
    return "; ".join(told) or "nothing, here"


def _table(runs: Sequence[Ran]) -> str:
    """A row for each run and cycle."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = ("labels", "minutes", "foreground_share", "dice_validation", "dice_test", "dice_worst_site_test", "bytes")
    table.writerow(("strategy", "seed", "fold", "cycle", *names, "aubc_validation", "aubc_test", "seconds"))
    for ran in runs:
        areas = [f"{statistics.mean(patient_aubc(ran, role=role).values()):.5f}" for role in ("validation", "test")]
        for cycle, point in enumerate(ran.points, start=1):
            means = [sum(of.values()) / len(of) for of in (point.validation, point.test)]
            numbers = (point.foreground, *means, point.worst_test)
            row = (point.labels, point.minutes, *(f"{value:.5f}" for value in numbers), point.bytes)
            table.writerow((ran.arm, ran.seed, ran.fold, cycle, *row, *areas, f"{ran.seconds:.1f}"))
    return text.getvalue()


def _between(interval: Interval, signed: bool = False) -> str:
    """The interval alone."""
    form = "[{:+.3f}, {:+.3f}]" if signed else "[{:.3f}, {:.3f}]"
    return form.format(*interval[1:]).replace("-", "−")


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _doubt(value: float) -> str:
    return "< .001" if value < 0.001 else f"= {value:.3f}"
