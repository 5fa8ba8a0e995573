"""docs/results/queries.md: which query strategy is worth its labels, chosen on validation patients and told on test patients.

    python benchmarks/query_results.py             runs what is not done yet, then writes the page; start it twice for two cores
    python benchmarks/query_results.py --write     writes the page from the records that are there
    python benchmarks/query_results.py --full      at full size, for a GPU: a page and records of its own

Four comparisons, one after the other (`query_runs.py`), each with `wardround compare`'s own code: all strategies on hippocampus,
the best six on ACDC, the best three in five folds of STS, the best two with semi-supervised training and SAM. Best is who has
the highest area under the learning curve on *validation* patients so far. Test patients are read when a comparison is whole.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial

import query_runs
from query_figure import Panel, Row, write_figure
from query_runs import EVERY, Stage, full_size, gains, stages, supervised, told
from results import Claim, benchmark_rows, claim_table, run_benchmark, write_page, written_by

from server.report_words import count
from server.sites import FederationFault
from simulation.compare.arms import ALL_LABELS, ALONE, reference_of
from simulation.compare.numbers import WORSE_BY, Numbers, Pair, pairs_of
from simulation.compare.page import patients
from simulation.compare.readings import Reached, patient_aubc
from simulation.compare.run import compare

BENCHMARKS = ("query",)
WAIT_SECONDS = 60

DATA = {
    "hippocampus": "Hippocampus: four sites of different size, all strategies",
    "acdc": "ACDC: five sites by pathology, the six best so far",
    "sts": "STS: three scanner vendors, five folds of patients, the three best so far",
    "acdc_semi": "ACDC with UniMatch and SAM: the two best",
}
"""Headings of the comparisons."""


def run(stage: Stage) -> None:
    """What is not done of a stage; its own page, runs/queries/NAME/compare.html, comes with it."""
    print(f"== {stage.name}: {stage.command}", flush=True)
    compare(stage.config, stage.overrides, queries=stage.queries, seeds=range(stage.seeds), out=stage.out, records=stage.records)


def run_all() -> None:
    """Stage by stage; where other processes are at the last runs of one, they are waited for."""
    known: list[Stage] = []
    while len(found := stages()) > len(known) or not found[-1].is_done:
        if len(found) == len(known):
            time.sleep(WAIT_SECONDS)
        known = found
        run(known[-1])


def half_of_labels(numbers: Numbers, best: str, *, target: float = 0.95) -> tuple[str, bool]:
    """What was measured of "that share of the full-label Dice with half of random's labels", and whether it holds.

    Where random never arrives it would need more than it had: then half of that is enough, and not half of more.
    """
    if numbers.above:
        return f"all labels are no ceiling: {', '.join(numbers.above)} end above them", False
    ours, theirs = (numbers.lines[arm].reach_labels.get(target) for arm in (best, "random"))
    if ours is None or theirs is None:
        return "all labels have not been run", False
    more = "" if theirs.by_all else "more than "
    if not ours.by_all:
        had = f"{numbers.lines[best].labels:.0f} labels"
        return f"not in every {numbers.unit} with {had} (random: {more}{theirs.budget:.0f})", False
    return f"{ours.budget:.0f} of {more}{theirs.budget:.0f} labels", ours.budget <= theirs.budget / 2


def table(numbers: Numbers) -> list[str]:
    """A row for each arm, best AUBC on validation patients first."""
    dice = ("AUBC, validation", "AUBC, test", "to random_fg", "to random", "over minutes", "final", "worst")
    columns = ("strategy", *dice, "foreground", "to 95 %")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, line in sorted(numbers.lines.items(), key=lambda item: -item[1].validation):
        cells = [_seen_from(name, numbers.against(name)), _against(numbers.pairs, name, "random")]
        cells.append(_seen_from(name, numbers.against(name, minutes=True)))
        reached = [_reached(of.get(0.95)) for of in (line.reach_labels, line.reach_minutes)]
        worst = "–" if line.worst is None else f"{line.worst:.3f}"
        shown = statistics.mean(ran.points[-1].foreground for ran in numbers.by_arm[name])
        aubc = f"{line.aubc[0]:.3f} [{line.aubc[1]:.3f}, {line.aubc[2]:.3f}]"
        lines.append(
            f"| {name} | {line.validation:.3f} | {aubc} | {' | '.join(cells)} | {line.final[0]:.3f} | {worst} | "
            f"{shown:.1%} | {', '.join(reached)} |"
        )
    return lines


def _against(pairs: Sequence[Pair], arm: str, other: str) -> str:
    return _seen_from(arm, next((pair for pair in pairs if pair.of(arm, other)), None))


def _seen_from(arm: str, pair: Pair | None) -> str:
    return "" if pair is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*pair.seen_from(arm))


def _reached(told: Reached | None) -> str:
    return "–" if told is None else f"{'' if told.by_all else '> '}{told.budget:.0f}"


def verdicts(numbers: Numbers) -> list[str]:
    """Pairs that can be told apart, and how many can't."""
    pairs = [pair for pair in numbers.pairs if not {pair.ours, pair.theirs} & {ALL_LABELS, ALONE}]
    clear = [pair for pair in pairs if pair.is_clear]
    text = f"Of {len(pairs)} pairs of strategies {len(clear)} can be told apart (Holm-corrected, all {len(numbers.pairs)} pairs)"
    behind: dict[str, list[str]] = {}
    for pair in clear:
        better, worse = sorted((pair.ours, pair.theirs), key=lambda arm: -pair.seen_from(arm)[0])
        behind.setdefault(worse, []).append(better)
    sentences = [f"- {worse} is worse than {', '.join(sorted(better))}." for worse, better in behind.items()]
    return [f"{text}:", "", *sentences, ""] if clear else [f"{text}.", ""]


def remarks(stage: Stage, numbers: Numbers) -> list[str]:
    """What a reader of the table has to know of its runs."""
    commits = ", ".join(sorted({ran.commit for ran in stage.found}))
    machines = ", ".join(sorted({ran.machine for ran in stage.found}))
    told = [f"{len(stage.found)} runs, at {commits}, on {machines}."]
    validated = {patient for of in numbers.by_arm.values() for ran in of for patient in ran.points[-1].validation}
    told.append(f"Test patients: {patients(numbers)}; validation patients: {len(validated)}.")
    if numbers.within:
        slices = numbers.lines[ALL_LABELS].labels
        first, last = numbers.within
        told.append(
            f"AUBC is over {first:g} to {last:g} labels ({first / slices:.1%} to {last / slices:.1%} of {slices:,.0f} slices)."
        )
    if numbers.within_minutes:
        told.append("Over minutes: {:.0f} to {:.0f}, where the cheapest curve ends.".format(*numbers.within_minutes))
    if stage.changed_since():
        told.append(f"Files of strategies that are others by now: {', '.join(stage.changed_since())}.")
    faults = sum(ran.refused > 0 for ran in stage.found)
    if faults:
        told.append(f"Sites had faults in {count(faults, 'run')}, and left steps out or asked by chance.")
    if numbers.unassessed:
        told.append(f"{count(len(numbers.unassessed), 'run')} left out, since a site told no Dice in some cycle.")
    if numbers.above:
        told.append(f"With all labels training ends below {', '.join(numbers.above)}: shares of its Dice are not told.")
    if stage.folds > 1:
        told.append(
            "Validation patients of a fold are test patients of another: this comparison chooses nothing. It is paired by fold; "
            "as folds train on much the same patients, intervals are widened (Nadeau and Bengio 2003)."
        )
    return [" ".join(told)]


def claims(done: Sequence[Stage]) -> list[Claim]:
    """What this is after, for the strategy that validation patients speak for."""
    rows = []
    found = gains(supervised(done)) if supervised(done) else {}
    for stage in done if found else ():
        best, numbers = next(iter(found)), told(stage)
        if best not in numbers.lines:
            continue
        measured, met = half_of_labels(numbers, best)
        rows.append(Claim(f"{stage.name}: {best} has 95 % of full-label Dice with half of random's labels", measured, met))
        pair = numbers.against(best)
        assert pair is not None, "random_fg always takes part"
        sure = pair.no_worse(best)
        measured = _seen_from(best, pair) + (", too wide to be sure" if sure is None else "")
        rows.append(Claim(f"{stage.name}: {best} is no worse than random_fg ({WORSE_BY:g}, AUBC)", measured, sure is True))
    return rows + benchmark_rows(query_runs.scale.page.stem, BENCHMARKS)


def choice(done: Sequence[Stage]) -> list[str]:
    """What validation patients say of all supervised comparisons that are done."""
    found = gains(supervised(done)) if supervised(done) else {}
    if not found:
        return []
    best, gain = next(iter(found.items()))
    asked = [stage for stage in supervised(done) if stage.folds == 1]
    said = (
        f"By validation patients of what is done, the strategy to choose is **{best}**"
        if gain > 0
        else f"By validation patients of what is done, **no strategy is ahead of random_fg**; the best of them is {best}"
    )
    each = "; ".join(f"{stage.name} {_seen_from(best, _by_validation(told(stage), best))}" for stage in asked)
    return [
        f"{said}: {gain:+.3f} of AUBC, mean over {count(len(asked), 'comparison')} ({each}). Who is first of so many owes "
        "something of that to luck: what it is worth stands under test.",
        "",
    ]


def _by_validation(numbers: Numbers, arm: str) -> Pair | None:
    """The pair of a strategy with what it has to beat, on validation patients."""
    area = partial(patient_aubc, role="validation", within=numbers.within)
    reference = reference_of(arm, numbers.lines)
    return next((pair for pair in pairs_of(numbers.by_arm, area) if pair.of(arm, reference)), None)


def panel(stage: Stage, numbers: Numbers) -> Panel:
    """AUBC of each strategy against random_fg."""
    rows = [
        Row(name, *pair.seen_from(name))
        for name in numbers.lines
        if (name in EVERY or name == "random") and (pair := numbers.against(name)) is not None
    ]
    return Panel(DATA[stage.name].split(":")[0], sorted(rows, key=lambda row: -row.mean))


def compose() -> None:
    known = stages()
    done = [stage for stage in known if stage.is_done]
    numbers = {stage.name: told(stage) for stage in done}
    promised = claims(done)
    page = query_runs.scale.page
    text = [
        "# Query strategies: which is worth its labels",
        "",
        written_by("query_results.py"),
        "Every cycle trains from the same initial weights in the same steps, so that a curve rises by labels alone; hospitals",
        "and held-out patients are the same for all strategies. AUBC is the mean Dice over the budgets that all curves share.",
        "To random_fg (with the same head), to random: its difference; over minutes: the difference to random_fg of the mean",
        "Dice over expert minutes, by the stated model (`[cost]`). Final: Dice after the last, worst: of the worst site.",
        "Foreground: the share of all pixels of structures in the pools that its labels show in the end. To 95 %: labels and",
        "minutes that it took to 95 % of the Dice with all labels; more than (>) where some runs never came so far. Brackets are",
        "95 % intervals, of differences paired by seed and patient. Patients are bootstrapped; seeds, too few to resample, are",
        "drawn from a t distribution as wide as they lie apart in all pairs of strategies, or in that one.",
        "",
        query_runs.scale.chosen,
        "",
    ]
    for stage in known:
        have = len(stage.found)
        if have < stage.wanted:
            text += [
                f"**Not finished: {stage.name} has {have} of {stage.wanted} runs.** Test patients are read when all are there.",
                "",
            ]
    text += choice(done)
    if promised:
        text += ["## Promised and measured", "", *claim_table(promised), ""]
    if done:
        write_figure(page.with_suffix(".svg"), [panel(stage, numbers[stage.name]) for stage in done])
        text += [f"![AUBC of each strategy against random_fg]({page.stem}.svg)", ""]
    for stage in done:
        text += [f"## {DATA[stage.name]}", "", *table(numbers[stage.name]), "", *verdicts(numbers[stage.name])]
        text += [*remarks(stage, numbers[stage.name]), ""]
        text += ["The same comparison with pictures, by hand:", "", f"    {stage.command}", ""]
    write_page(page, text, promised, whole=all(stage.is_done for stage in known) and len(known) == len(DATA))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="run nothing, write the page from what is there")
    parser.add_argument("--benchmarks", action="store_true", help="measure benchmarks/query.py too, with nothing beside it")
    parser.add_argument("--full", action="store_true", help="full size, for a GPU: a page and records of its own")
    given = parser.parse_args()
    if given.full:
        full_size()
    if given.benchmarks:
        for name in BENCHMARKS:
            run_benchmark(name, query_runs.scale.page.stem)
    stopped = None
    if not (given.benchmarks or given.write):
        try:
            run_all()
        except FederationFault as fault:  # what is done is worth its page; later comparisons follow from those before
            stopped = str(fault)
    compose()
    if stopped:
        sys.exit(stopped)


if __name__ == "__main__":
    main()
