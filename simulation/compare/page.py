"""compare.html and compare.csv: what came out, for people and for other programs."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from configs.files import write_text
from configs.schema import Run
from server.report_words import count, dice, duration, human_bytes, signed
from simulation.compare.arms import ALL_LABELS, ALONE, ALWAYS, TWIN, Arm, reference_of
from simulation.compare.numbers import FEWEST, TARGETS, WORSE_BY, Interval, Numbers, numbers_of
from simulation.compare.plots import area_plot, curve_plot, curves_of
from simulation.compare.readings import Reached
from simulation.compare.record import Ran
from simulation.compare.tables import arm_rows, as_csv, pair_rows, run_rows


def write_page(
    folder: Path, run: Run, arms: Sequence[Arm], runs: Sequence[Ran], *, seeds: int, command: str, stopped: Sequence[str] = ()
) -> Path:
    """Write page and tables into a comparison's folder; gives the page. It says so where runs are missing.

    Args:
        seeds: how many there shall be of each arm.
    """
    numbers = numbers_of([arm.name for arm in arms], runs, folds=run.split.folds)
    write_text(folder / "compare.csv", as_csv(arm_rows(numbers)))
    write_text(folder / "compare_pairs.csv", as_csv(pair_rows(numbers)))
    write_text(folder / "compare_runs.csv", as_csv(run_rows(numbers)))
    path = folder / "compare.html"
    write_text(path, _render(run, arms, numbers, seeds=seeds, command=command, stopped=stopped))
    return path


def _render(run: Run, arms: Sequence[Arm], numbers: Numbers, *, seeds: int, command: str, stopped: Sequence[str]) -> str:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("simulation"), PackageLoader("server")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        dice=dice,
        signed=signed,
        bytes=human_bytes,
        duration=duration,
        between=_between,
        whole=_whole,
        doubt=_doubt,
        reached=_reached,
    )
    lines, folds = list(numbers.lines.values()), max(1, run.split.folds)
    done, wanted = numbers.ended, len(arms) * seeds * folds
    full = None if numbers.full is None or numbers.above else statistics.mean(numbers.full.values())
    plots = {
        over: curve_plot(curves, lines, over=over, ceiling=full)
        for over in ("labels", "minutes")
        if (curves := curves_of(numbers.by_arm, over=over, unit=numbers.unit))
    }
    return environment.get_template("compare.html.j2").render(
        name=run.name,
        status=f"{done} of {wanted} runs" if done < wanted else "complete",
        missing=done < wanted,
        lead=_lead(numbers),
        facts=[
            ("Seeds", str(seeds)),
            *([("Folds", str(run.split.folds))] if run.split.folds else []),
            ("Cycles", str(run.federation.cycles)),
            ("First request", f"{run.budget.cold_start} a site"),
            ("Then", f"{run.budget.per_cycle} a site and cycle"),
            *([("AUBC", "{:g} to {:g} labels".format(*numbers.within))] if numbers.within else []),
            *([("Over minutes", "{:.0f} to {:.0f}".format(*numbers.within_minutes))] if numbers.within_minutes else []),
            *([("Test patients", patients(numbers))] if lines else []),
            ("Training", run.train.framework + (" with SAM" if run.sam.enabled else "")),
        ],
        notes=_notes(numbers, wanted - done, stopped, seeds=seeds, folds=folds),
        lines=sorted(lines, key=lambda line: -line.aubc[0]),
        seeds=seeds,
        targets=TARGETS,
        area_plot=area_plot(lines) if lines else None,
        label_plot=plots.get("labels"),
        minute_plot=plots.get("minutes"),
        budgets=sorted({labels for line in lines for labels in line.at}),
        pairs=numbers.pairs,
        over_minutes={(pair.ours, pair.theirs): pair for pair in numbers.pairs_minutes},
        against={line.arm: numbers.against(line.arm) for line in lines},
        against_minutes={line.arm: numbers.against(line.arm, minutes=True) for line in lines},
        folds=numbers.unit == "fold",
        all_labels=ALL_LABELS,
        twins=[line.arm for line in lines if reference_of(line.arm, numbers.lines) == TWIN],
        twin=TWIN,
        worse_by=WORSE_BY,
        always=ALWAYS,
        command=command,
        needed=_needed(arms),
        footer="The same numbers as tables: compare.csv, compare_pairs.csv and, of every run, compare_runs.csv beside this page.",
    )


def _lead(numbers: Numbers) -> str:
    """The answer in a few sentences: who is chosen on validation patients, and what test patients say of that choice."""
    lines = numbers.lines
    asked = [line for line in lines.values() if line.arm not in (*ALWAYS, TWIN, ALL_LABELS, ALONE)]
    best = max(asked, key=numbers.gain, default=None)
    if numbers.nobody:
        return (
            f"Nothing can be compared: in some fold there is no {' and no '.join(numbers.nobody)} patient whose Dice is known in "
            "every run. Who has none shows no structure: hold out more patients, with split.validation_fraction and "
            "split.test_fraction."
        )
    if best is None:
        return "No strategy has been run yet; --query names those that are compared."
    better = [arm for arm in dict.fromkeys((*ALWAYS, reference_of(best.arm, lines))) if arm in lines]
    better = [arm for arm in better if lines[arm].validation >= best.validation]
    told = [
        f"By validation patients no strategy is ahead of {' and '.join(better)}; the best of those compared is {best.arm}"
        if better
        else f"By validation patients {best.arm} is the strategy to choose"
    ]
    told[0] += f". On test patients its mean Dice over budgets is {dice(best.aubc[0])}."
    pair, over_minutes = numbers.against(best.arm), numbers.against(best.arm, minutes=True)
    told += [pair.verdict(best.arm)] if pair else []
    told += ["Over expert minutes: " + over_minutes.verdict(best.arm)] if over_minutes else []
    return " ".join(told)


def patients(numbers: Numbers) -> str:
    """How many are tested, and where most of them are: all count alike, so that a large site has more of a say."""
    tested = {patient for runs in numbers.by_arm.values() for ran in runs for patient in ran.points[-1].test}
    sites = Counter(patient.partition("/")[0] for patient in tested)
    site, most = sites.most_common(1)[0]
    return f"{len(tested)}" + (f", {most} of them at {site}" if len(sites) > 1 and 2 * most > len(tested) else "")


def _notes(numbers: Numbers, missing: int, stopped: Sequence[str], *, seeds: int, folds: int) -> list[str]:
    runs = [ran for found in numbers.by_arm.values() for ran in found]
    notes = [f"{count(missing, 'run')} missing: the same command goes on."] if missing else []
    if stopped:
        notes.append(f"Stopped short, with too few sites that could answer: {'; '.join(stopped)}.")
    if max(seeds, folds) < FEWEST:
        notes.append(f"With {count(seeds, 'seed')} no difference is called one: chance alone moves a strategy by as much.")
    if max(seeds, folds) == 1:
        notes.append("Intervals are those over patients alone: what another seed would give, one seed can't tell.")
    if numbers.above:
        notes.append(
            f"With all labels training ends below {', '.join(numbers.above)}: it had too few steps for so many images, so that "
            "it is no ceiling, and shares of its Dice are not told. Raise train.rounds_per_cycle."
        )
    curves = [ran for arm, found in numbers.by_arm.items() for ran in found if arm != ALL_LABELS]
    bought = [next((n for n, point in enumerate(ran.points, start=1) if point.foreground > 0.999), 0) for ran in curves]
    if any(bought):
        notes.append(
            f"In {count(sum(map(bool, bought)), 'run')} everything is annotated from cycle {min(filter(None, bought))} on, where "
            "there is nothing left to choose: lower budget.per_cycle."
        )
    ours, theirs = (numbers.by_arm.get(arm, ()) for arm in ALWAYS)
    if ours and [ran.points for ran in ours] == [ran.points for ran in theirs]:
        notes.append("random and random_fg chose the same in every run, so that they are one comparator here.")
    if any(ran.points[-1].foreground < 0.99 for ran in numbers.by_arm.get(ALL_LABELS, ())):
        notes.append("The run with all labels lacks some: experts skip images, or draw them differently.")
    if folds > 1:
        notes.append("Validation patients of a fold are test patients of another one: a choice by validation has seen them.")
        notes.append("Folds train on much the same patients; intervals are widened for it (Nadeau and Bengio 2003).")
    if runs and numbers.within is None:
        notes.append("The curves share no range of budgets: each area is over budgets of its own, and they can't be compared.")
    if numbers.left_out:
        notes.append(
            f"{count(numbers.left_out, 'held-out patient')} without a structure left out: a Dice is not known in every run."
        )
    if numbers.unassessed:
        lost = [
            f"{_name(ran, folds)} ({', '.join(sorted({site for point in ran.points for site in point.unassessed}))})"
            for ran in numbers.unassessed
        ]
        notes.append(
            f"{count(len(lost), 'run')} left out, since a site told no Dice in some cycle, because of a fault: "
            f"{'; '.join(lost)}. Mend it (each site.log says what it was), delete those runs' folders, and the same command "
            "makes them anew."
        )
    faulty = [_name(ran, folds) for ran in runs if ran.refused]
    if faulty:
        notes.append(
            f"Sites had faults in {count(len(faulty), 'run')} ({'; '.join(faulty)}) and left steps out; one that can't score its "
            "pool asks for cases by chance in that cycle. What it was stands in each site.log of the run's folder."
        )
    for what, told in (("versions of the program", {r.commit for r in runs}), ("machines", {r.machine for r in runs})):
        if len(told) > 1:
            notes.append(f"The runs are of {len(told)} {what}: {', '.join(sorted(told))}.")
    return notes


def _name(ran: Ran, folds: int) -> str:
    return f"{ran.arm}, seed {ran.seed}" + (f", fold {ran.fold}" if folds > 1 else "")


def _needed(arms: Sequence[Arm]) -> str:
    """What is changed in the configuration for some arms; what is changed for all of them is said once."""
    changes = {
        arm.name: [o for o in arm.overrides if o.startswith(("network.", "query.cold_start", "budget.rule"))] for arm in arms
    }
    shared = set.intersection(*(set(of) for of in changes.values()))
    told = [f"all have {override}" for override in sorted(shared)]
    told += [f"{name} has {override}" for name, of in changes.items() for override in of if override not in shared]
    return "; ".join(told) or "nothing, here"


def _between(interval: Interval, signed: bool = False) -> str:
    """The interval alone."""
    form = "[{:+.3f}, {:+.3f}]" if signed else "[{:.3f}, {:.3f}]"
    return form.format(*interval[1:]).replace("-", "−")


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _reached(told: Reached | None) -> str:
    """How much it took; more than that where some runs never arrived."""
    return "–" if told is None else f"{'' if told.by_all else '> '}{told.budget:,.0f}"


def _doubt(value: float) -> str:
    return "< .001" if value < 0.001 else f"= {value:.3f}"
