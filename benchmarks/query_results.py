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
from collections.abc import Sequence

import query_runs
from query_figure import Panel, Row, write_figure
from query_runs import EVERY, Stage, chosen, full_size, stages, told
from results import Claim, benchmark_rows, claim_table, run_benchmark, write_page, written_by

from simulation.compare.arms import ALL_LABELS, ALONE
from simulation.compare.numbers import WORSE_BY, Line, Numbers, Pair
from simulation.compare.run import compare

BENCHMARKS = ("query",)

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
    """Stage by stage, until one has runs that other processes are still at."""
    done = -1
    while (known := stages()) and (last := known[-1]) and len(known) > done:
        done = len(known)
        run(last)


def against(numbers: Numbers, arm: str, other: str) -> Pair:
    """The pair of these two, over labels."""
    return next(pair for pair in numbers.pairs if pair.of(arm, other))


def share_of_labels(line: Line, random: Line, target: float = 0.95) -> str | None:
    """Labels to that share of the full-label Dice, beside those of random; None where either never arrives."""
    ours, theirs = line.reach_labels[target], random.reach_labels[target]
    return None if ours is None or theirs is None else f"{ours:.0f} of {theirs:.0f}"


def table(stage: Stage, numbers: Numbers) -> list[str]:
    """A row for each arm, best AUBC on validation patients first."""
    lines = [
        "| strategy | AUBC, validation | AUBC, test | to random_fg | to random | over minutes | final | worst | to 95 % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, line in sorted(numbers.lines.items(), key=lambda item: -item[1].validation):
        cells = [_against(numbers.pairs, name, other) for other in ("random_fg", "random")]
        cells.append(_against(numbers.pairs_minutes, name, "random_fg"))
        reached = [("–" if value is None else f"{value:.0f}") for value in (line.reach_labels[0.95], line.reach_minutes[0.95])]
        dice = f"{line.aubc[0]:.3f} [{line.aubc[1]:.3f}, {line.aubc[2]:.3f}]"
        lines.append(
            f"| {name} | {line.validation:.3f} | {dice} | {' | '.join(cells)} | {line.final[0]:.3f} | {line.worst:.3f} | "
            f"{', '.join(reached)} |"
        )
    return lines


def _against(pairs: Sequence[Pair], arm: str, other: str) -> str:
    if arm == other:
        return ""
    pair = next(pair for pair in pairs if pair.of(arm, other))
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*pair.seen_from(arm))


def verdicts(stage: Stage, numbers: Numbers) -> list[str]:
    """Pairs that can be told apart, and how many can't."""
    clear = [pair for pair in numbers.pairs if not {pair.ours, pair.theirs} & {ALL_LABELS, ALONE} and pair.is_clear]
    among = sum(not {pair.ours, pair.theirs} & {ALL_LABELS, ALONE} for pair in numbers.pairs)
    text = [
        f"Of {among} pairs of strategies {len(clear)} can be told apart (Holm-corrected, all {len(numbers.pairs)} pairs):",
        "",
    ]
    text += [f"- {pair.verdict(pair.ours)}" for pair in clear]
    return [*text, ""] if clear else [text[0].rstrip(":") + ".", ""]


def remarks(stage: Stage, numbers: Numbers) -> list[str]:
    """What a reader of the table has to know of its runs."""
    commits = ", ".join(sorted({ran.commit for ran in stage.found}))
    told = [f"{len(stage.found)} runs, at {commits}."]
    if numbers.above:
        told.append(f"With all labels training ends below {', '.join(numbers.above)}: shares of its Dice are not told.")
    if stage.folds > 1:
        told.append("Validation patients of a fold are test patients of another: this comparison chooses nothing.")
    return [" ".join(told)]


def claims(done: Sequence[Stage]) -> list[Claim]:
    """What this is after, for the strategy that validation patients speak for."""
    best = chosen(done)
    rows = []
    for stage in done if best else ():
        numbers = told(stage)
        if best not in numbers.lines:
            continue
        assert best is not None
        line, random = numbers.lines[best], numbers.lines["random"]
        share = share_of_labels(line, random)
        ours, theirs = line.reach_labels[0.95], random.reach_labels[0.95]
        halved = ours is not None and theirs is not None and ours <= 0.5 * theirs
        what = (
            f"{share} labels"
            if share
            else "not reached in every seed by "
            + " and ".join(name for name, it in ((best, ours), ("random", theirs)) if it is None)
        )
        rows.append(Claim(f"{stage.name}: {best} has 95 % of full-label Dice with half of random's labels", what, halved))
        pair = against(numbers, best, "random_fg")
        told_ = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*pair.seen_from(best))
        rows.append(
            Claim(f"{stage.name}: {best} is no worse than random_fg ({WORSE_BY:g}, AUBC)", told_, pair.no_worse(best) is True)
        )
    return rows + benchmark_rows(query_runs.scale.page.stem, BENCHMARKS)


def panel(stage: Stage, numbers: Numbers) -> Panel:
    """AUBC of each strategy against random_fg."""
    rows = [
        Row(name, *against(numbers, name, "random_fg").seen_from(name))
        for name in sorted(numbers.lines, key=lambda name: -numbers.lines[name].aubc[0])
        if name in EVERY or name == "random"
    ]
    return Panel(DATA[stage.name].split(":")[0], rows)


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
        "and held-out patients are the same for all strategies. AUBC is the mean Dice over budgets, between the first request",
        "and the last. To random_fg, to random: its difference; over minutes: the difference to random_fg of the mean Dice",
        "over expert minutes, by the stated model (`[cost]`). Final: Dice after the last, worst: of the worst site. To 95 %:",
        "labels and minutes that it took to 95 % of the Dice with all labels. Brackets are 95 % intervals, of differences",
        "paired by seed and patient. Patients are bootstrapped; seeds, too few to resample, are drawn from a t distribution",
        "as wide as they lie apart in all pairs of strategies, or in that one.",
        "",
        "Steps, learning rate and dropout were chosen by validation Dice of random_fg and of all labels, on hippocampus and ACDC",
        "with seeds 7 and 8, which no run here has.",
        "",
    ]
    for stage in known:
        have = len(stage.found)
        if have < stage.wanted:
            text += [
                f"**Not finished: {stage.name} has {have} of {stage.wanted} runs.** Test patients are read when all are there.",
                "",
            ]
    best = chosen(done)
    if best is not None:
        text += [f"By validation patients of what is done, the strategy to choose is **{best}**.", ""]
    if promised:
        text += ["## Promised and measured", "", *claim_table(promised), ""]
    if done:
        write_figure(page.with_suffix(".svg"), [panel(stage, numbers[stage.name]) for stage in done])
        text += [f"![AUBC of each strategy against random_fg]({page.stem}.svg)", ""]
    for stage in done:
        text += [f"## {DATA[stage.name]}", "", *table(stage, numbers[stage.name]), "", *verdicts(stage, numbers[stage.name])]
        text += [*remarks(stage, numbers[stage.name]), ""]
        text += ["The same comparison with pictures, by hand:", "", f"    {stage.command}", ""]
    write_page(page, text, promised)


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
    elif not given.write:
        run_all()
    compose()


if __name__ == "__main__":
    main()
