"""The numbers behind docs/results/semi.md: what semi-supervised learning, and SAM's help, add to a few labels.

    WARDROUND_DATA=/path/to/data python benchmarks/semi_results.py [--only screen final central pooled weight benchmarks]
                                                                   [--full] [--write]

Screening: every framework without SAM, with SAM, and with a SAM that learns, on the validation patients of the
hippocampus set, one seed. Supervised training and the two best frameworks, these without SAM and with the kind of help
that did better in the screening, then go to the test patients with several seeds, with two labelled slices a site,
with one labelled patient a site, and with all; and, for comparison with published numbers, with three labelled
patients and no federation. Beside them, what the labelled slices of the supervised runs give when they are in one
place, on validation patients (pooled), and what UniMatch gives with its weight held still (weight). Resumable: a run
with a record in docs/results/records/semi is not done again, an interrupted one goes on; on two cores, start the same
command twice. With --full all is of full size, for a GPU. With --write nothing is run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Mapping
from itertools import product

import semi_runs
from results import RECORDS, Claim, Ended, Job, benchmark_rows, claim_table, recorded, run_benchmark, write_page, written_by
from semi_figure import Panel, Row, write_figure
from semi_pooled import pooled, run_pooled
from semi_runs import (
    FEW,
    HELP,
    PARTS,
    SETS,
    TWO_CORES,
    WORTHLESS,
    all_with_sam,
    beside_pooled,
    best_two,
    central,
    compared,
    groups,
    job,
    main_question,
    read_groups,
    run_any,
    runs_of,
    screened,
    screening,
    wanted,
    worthless,
)
from semi_weight import run_still, stills

from strategies.comparison import difference, mean_interval
from strategies.semi import FRAMEWORKS

BENCHMARKS = ("sam_quality", "semi")

PUBLISHED = {"supervised": 0.415, "unimatch": 0.889}
"""Dice of ACDC with three labelled patients and no federation, as Yang et al. 2023 (UniMatch) report it."""

READ_TWICE = """
With two slices a site three seeds were read first; seeds 3 and 4 were added then, since the main question has five. An
interval that is looked at twice is less sure than it says."""
"""Said beside the table of SAMs that know nothing."""


def screening_table() -> list[str]:
    lines = ["| framework | " + " | ".join(HELP) + " |", "|---|" + "---|" * len(HELP)]
    for framework in FRAMEWORKS:
        runs = [runs_of(job("hippocampus", framework, help_, FEW), 1).get(0) for help_ in HELP]
        if any(run is not None for run in runs):
            cells = [f"{run.dice:.3f}" if run and run.dice is not None else "" for run in runs]
            lines.append(f"| {framework} | " + " | ".join(cells) + " |")
    return lines


def apart(ours: dict[int, Ended], theirs: dict[int, Ended], *, role: str = "test") -> tuple[float, float, float] | None:
    """Paired difference of Dice over the seeds that both have, with its interval."""
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return None
    return difference([ours[seed].patients[role] for seed in both], [theirs[seed].patients[role] for seed in both])


def pooled_table() -> list[str]:
    """Of the sets and labels that have been asked about; nothing where none has."""
    lines = ["| data | labels | federated | in one place | difference |", "|---|---|---|---|---|"]
    for of in beside_pooled():
        data, _, _, labels = of.name.split("-")
        cells = side_by_side(of, pooled(of))
        if cells:
            lines.append(f"| {data} | {labels.replace('_', ' ')} ({_seeds(semi_runs.scale.fewer)}) | {cells} |")
    return lines if len(lines) > 2 else []


def weight_table() -> list[str]:
    """UniMatch as it is, beside itself with the weight of what unlabelled images teach held still."""
    lines = ["| data | held at | falling from 4 to 1 | held | difference |", "|---|---|---|---|---|"]
    for of, weight in stills():
        cells = side_by_side(job(of.group, "unimatch", "no SAM", FEW), of)
        if cells:
            lines.append(f"| {of.group} ({_seeds(semi_runs.scale.fewer)}) | {weight:g} | {cells} |")
    return lines if len(lines) > 2 else []


def trust_table() -> list[str]:
    """How much SAM counted where it took part, in runs whose records tell."""
    lines = ["| data | labels | framework | SAM | mean trust, and how often above 0, by class |", "|---|---|---|---|---|"]
    for of, seeds in wanted_jobs():
        told = [run.trust for run in runs_of(of, seeds).values() if run.trust]
        if not told or "-all" in of.name:
            continue
        cells = []
        for name in told[0]:
            trust, share = (statistics.mean(one[name][k] for one in told) for k in (0, 1))
            cells.append(f"{name} {trust:.2f} ({share:.0%})")
        data, framework, help_, labels = (word.replace("_", " ") for word in of.name.split("-"))
        lines.append(f"| {data} | {labels} ({_seeds(len(told))}) | {framework} | {help_} | {', '.join(cells)} |")
    return lines if len(lines) > 2 else []


def wanted_jobs() -> list[tuple[Job, int]]:
    """All jobs of the final table with how many seeds they have."""
    return [(of, group.seeds) for group in groups(PARTS) for of in group.jobs]


def side_by_side(ours: Job, theirs: Job) -> str:
    """Cells with the validation Dice of either and their difference; empty until all seeds of both are there."""
    runs = [runs_of(of, semi_runs.scale.fewer) for of in (ours, theirs)]
    gap = apart(*runs, role="validation")
    if gap is None or any(len(found) < semi_runs.scale.fewer for found in runs):
        return ""
    told = [mean_interval([run.patients["validation"] for run in found.values()]) for found in runs]
    cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*cell) for cell in told]
    return " | ".join([*cells, "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gap)])


def elsewhere_table() -> list[str]:
    """Runs that were done on another processor too, whose records are kept under a name of their own."""
    lines = ["| run | here | elsewhere |", "|---|---|---|"]
    page = semi_runs.scale.page.stem
    for path in sorted((RECORDS / page).glob("elsewhere-*.json")):
        runs = [recorded(page, name) for name in (path.stem.removeprefix("elsewhere-"), path.stem)]
        cells = [f"{run.dice:.3f}" for run in runs if run is not None and run.dice is not None]
        if len(cells) == 2:
            data, framework, _, labels, seed = path.stem.removeprefix("elsewhere-").replace("_", " ").split("-")
            lines.append(f"| {data}, {framework}, {labels} labels, {seed.replace('seed', 'seed ')} | {cells[0]} | {cells[1]} |")
    return lines if len(lines) > 2 else []


def final_table(jobs: Iterable[tuple[Job, int]]) -> list[str]:
    lines = ["| data | labels | framework | SAM | test Dice | against the same without SAM |", "|---|---|---|---|---|---|"]
    for of, seeds in jobs:
        data, framework, help_, labels = (word.replace("_", " ") for word in of.name.split("-"))
        runs = runs_of(of, seeds)
        mean, lower, upper = mean_interval([run.patients["test"] for run in runs.values()])
        dice = f"{mean:.3f} [{lower:.3f}, {upper:.3f}] ({_seeds(len(runs))})"
        told = ""
        if help_ != "no SAM":
            beside = "supervised" if labels == "all" else framework.replace(" ", "_")
            gain = apart(runs, runs_of(job(data, beside, "no SAM", labels), seeds))
            told = "" if gain is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gain)
        lines.append(f"| {data} | {labels} | {framework} | {help_} | {dice} | {told} |")
    return lines


def worthless_table(done: Mapping[Job, int]) -> list[str]:
    """How much of what SAM adds a SAM that knows nothing adds as well, on the same seeds and patients."""
    lines = ["| labels | SAM that knows nothing | it against no SAM | SAM that learns against it |", "|---|---|---|---|"]
    for labels, which in product((FEW, "one patient a site"), WORTHLESS):
        theirs = worthless(best_two()[0], which, labels)
        if theirs in done:
            runs = runs_of(theirs, done[theirs])
            others = [runs_of(job("hippocampus", best_two()[0], h, labels), len(runs)) for h in ("no SAM", "SAM that learns")]
            told = [apart(runs, others[0]), apart(others[1], runs)]
            cells = " | ".join("" if one is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*one) for one in told)
            lines.append(f"| {labels} ({_seeds(len(runs))}) | {which} | {cells} |")
    return lines if len(lines) > 2 else []


def published_table() -> list[str]:
    """What is published for three labelled patients, beside what came out here."""
    lines = ["| framework | published | here, no SAM | here, with SAM |", "|---|---|---|---|"]
    for framework, dice in PUBLISHED.items():
        here = [f"{mean_test(of, semi_runs.scale.fewer):.3f}" for of in central() if of.name.split("-")[1] == framework]
        lines.append(f"| {framework} | {dice:.3f} | {' | '.join([*here, ''][:2])} |")
    return lines


def panels() -> list[Panel]:
    """Each set with few labels, of what is done, between what supervised training gives with these and with all."""
    done = {of: group.seeds for group in read_groups() for of in group.jobs}
    found = []
    for labels, data in product((FEW, "one patient a site"), SETS):
        jobs, whole = compared(data, labels), job(data, "supervised", "no SAM", "all")
        if {*jobs, whole} <= done.keys():
            few, all_labels = (mean_test(of, done[of]) for of in (jobs[0], whole))
            found.append(Panel(f"{data}: {labels}", [_row(of, done[of]) for of in jobs], few, all_labels))
    return found


def _row(of: Job, seeds: int) -> Row:
    _, framework, help_, _ = (word.replace("_", " ") for word in of.name.split("-"))
    patients = [run.patients["test"] for run in runs_of(of, seeds).values()]
    means = tuple(statistics.mean(of_seed.values()) for of_seed in patients)
    helped = help_ != "no SAM"
    return Row(framework + f" + {help_}" * helped, helped, *mean_interval(patients), seeds=means)


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count > 1)}"


def best_of(data: str, among: Iterable[str], seeds: int) -> Job | None:
    """Framework and help of the highest mean *validation* Dice with few labels: what is then read on test patients."""
    found: dict[Job, float] = {}
    for of in compared(data, FEW):  # not all of the screening: there the other kind of help has one seed
        runs = runs_of(of, seeds) if any(of.name.split("-")[2] == help_.replace(" ", "_") for help_ in among) else {}
        if runs:
            found[of] = statistics.mean(run.dice for run in runs.values() if run.dice is not None)
    return max(found, key=lambda of: found[of]) if found else None


def mean_test(of: Job, seeds: int) -> float:
    """Over patients and seeds, of a job that is done."""
    return statistics.mean(statistics.mean(run.patients["test"].values()) for run in runs_of(of, seeds).values())


def claims() -> list[Claim]:
    """What this is after, beside what came out, of the groups of runs that are done: test patients are read at the end."""
    rows = []
    done = {of: group.seeds for group in read_groups() for of in group.jobs}
    seeds = semi_runs.scale.seeds

    def add(promised: str, ours: Job, theirs: Job, *, least: float, by_mean: bool = False) -> None:
        """A paired difference that must be `least` at least: its lower bound, or its mean."""
        gain = apart(runs_of(ours, done[ours]), runs_of(theirs, done[ours])) if {ours, theirs} <= done.keys() else None
        if gain is not None:
            told = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gain)
            rows.append(Claim(promised, f"{told}, {_method(ours)}", (gain[0] if by_mean else gain[1]) >= least))

    for data in SETS if {*main_question()} <= done.keys() else ():
        supervised, whole = (job(data, "supervised", "no SAM", labels) for labels in (FEW, "all"))
        best, plain, helped = (best_of(data, among, seeds) for among in (HELP, ("no SAM",), ("SAM", "SAM that learns")))
        if best is not None:
            low, high, reached = (mean_test(of, seeds) for of in (supervised, whole, best))
            share = (reached - low) / (high - low)
            told = f"{share:.0%} ({low:.3f} to {reached:.3f} of {high:.3f}), {_method(best)}"
            rows.append(Claim(f"{data}: the best closes 80 % of the gap to all labels", told, share >= 0.8))
        if plain is not None and helped is not None:
            add(f"{data}: SAM adds .01 to the best without it", helped, plain, least=0.01, by_mean=True)
        for semi in (of for of in all_with_sam() if of.group == data):
            add(f"{data}: with all labels nothing is lost (.01), seed 0", semi, whole, least=-0.01)
    for labels, which in product((FEW, "one patient a site"), WORTHLESS):
        without, theirs = job("hippocampus", best_two()[0], "no SAM", labels), worthless(best_two()[0], which, labels)
        add(f"{labels}: a {which} costs {best_two()[0]} no more than .01", theirs, without, least=-0.01)
    return rows + benchmark_rows(semi_runs.scale.page.stem, BENCHMARKS)


def _method(of: Job) -> str:
    _, framework, help_, _ = of.name.split("-")
    return f"{framework}, {help_.replace('_', ' ')}"


def unfinished() -> list[str]:
    """A paragraph that says how much of the page is still to be measured; nothing where all is there."""
    rest = wanted(PARTS)
    asked = {of.seeded(seed).name for of, seed in [*((of, 0) for of in screening()), *rest]}  # some are of both
    done, all_ = sum(recorded(semi_runs.scale.page.stem, name) is not None for name in asked), len(asked)
    if rest and done == all_:
        return []
    told = f"**Not finished: {done} of {all_} runs are done**; test patients are read, group by group, when all of a group are."
    return [told, ""]


def compose() -> None:
    scale, command = semi_runs.scale, screening()[0].seeded(0).command
    promised = claims() if screened() else benchmark_rows(scale.page.stem, BENCHMARKS)
    text = [
        "# Semi-supervised learning with SAM: what comes out",
        "",
        written_by("semi_results.py"),
        "Dice is the mean over held-out patients, of the mean over classes, on the original grid. The same steps for every run:",
        f"{scale.rounds} rounds of {scale.local_steps} local steps, {scale.batch} labelled and {scale.batch} unlabelled images.",
        "Brackets are 95 % intervals over seeds (0, 1, 2 in order) and patients, of differences paired: patients are",
        "bootstrapped; seeds, too few to resample, have the t distribution of as many.",
        "",
        "SAM counts as far as it helps on a site's validation patients, so runs with SAM have used the masks of up to 32",
        "validation slices a round, in half of the rounds, that runs without it have not, and the screening, on the same",
        "patients, may favour it. Test",
        "patients are seen by nothing before the final table, but for two things. The shipped SAM has learned from synthetic",
        "scenes alone, but how they are drawn, and two numbers of how its answers lean on a box (`PICTURE_WEIGHT` and",
        "`OUTSIDE_PER_PX` in `strategies/sam_parts.py`), were chosen by its Dice with tight boxes on every fifth and sixth",
        "case of the sets, whatever their role; `benchmarks/sam_quality.py` tells the other cases apart. And the test Dice of",
        "some runs of supervised training, and of UniMatch with a weight of 1, was seen in a terminal before the course of that",
        "weight was chosen; it was chosen by validation Dice alone.",
        "",
        "All runs with SAM were done twice. At first SAM was asked from the first round on, and two SAMs that know nothing cost",
        "UniMatch .02 of test Dice with one labelled patient a site. That SAM now waits for half of the run (`sam.start`), and",
        "so weighs less than a third as much over all, was chosen by validation Dice (hippocampus, one patient a site), but",
        "because that loss had been seen on test patients.",
        "",
        *unfinished(),
        "## Screening: validation Dice, hippocampus, four sites, two labelled slices each, one seed",
        "",
        *screening_table(),
        "",
        f"The first cell is `{command} --set seed=0`; the others change `train.framework` and `sam`.",
        "",
        "## Promised and measured",
        "",
        *claim_table(promised),
        "",
    ]
    beside = pooled_table()
    if beside:
        text += ["## What the federation costs: validation Dice of supervised training", ""]
        text += ["In one place: a bare loop without a federation on the very slices that the sites have in the federated run,"]
        text += [f"{scale.rounds * scale.local_steps} steps, each on as many images as all sites take in one of theirs.", ""]
        text += [*beside, ""]
    weights = weight_table()
    if weights:
        text += [
            "## UniMatch's weight: validation Dice, two slices a site, without SAM",
            "",
            "Why the weight of what unlabelled images teach falls in a run; the paper's is 1 throughout. The fall was chosen on",
            "these patients. Runs with a weight held still are this program's (`--only weight`): it changes the table of",
            "frameworks.",
            "",
        ]
        text += [*weights, ""]
    trusts = trust_table()
    if trusts:
        text += [
            "## How much SAM counted",
            "",
            "Trust is measured at each site in each round of the second half, on validation patients: 0 where SAM's answers to",
            "the model's own prompts are no better than what the model says itself. The mean over these rounds and sites, and",
            "the share of them in which SAM counted at all. SAMs that know nothing are asked with an open gate (`sam.min_iou`",
            "and `sam.min_agreement` 0), since it would silence them before trust has to.",
            "",
            *trusts,
            "",
        ]
    elsewhere = elsewhere_table()
    if elsewhere:
        text += [
            "## What the processor changes: validation Dice",
            "",
            "The same code, configuration and seed end elsewhere on a processor with other instructions: the last digits of a",
            "step differ, and training magnifies that. The records of this page come from several sittings on machines that",
            "were not all alike, so two runs of one seed are paired in their labels, patients and initial weights, not in every",
            "digit. On one machine, a framework that has nothing unlabelled to learn from is supervised training to the last.",
            "Here is AVX-512; held to AVX2 (`ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2`) the",
            "same machine gives elsewhere's hippocampus run to the last digit.",
            "",
            *elsewhere,
            "",
        ]
    done = read_groups()
    if done:
        write_figure(scale.page.with_suffix(".svg"), panels())
        text += ["## Test Dice", "", f"![Dice of test patients by method, with few labels]({scale.page.stem}.svg)", ""]
        text += [*final_table([(of, group.seeds) for group in done for of in group.jobs]), ""]
        beside = worthless_table({of: group.seeds for group in done for of in group.jobs})
        if beside:
            text += [
                "Whether it is what SAM knows that helps: hippocampus, " + best_two()[0] + ". A SAM that answers the box is no"
            ]
            text += ["checkpoint: this program puts it in SAM's place (`box_itself`).", *([READ_TWICE] * (scale is TWO_CORES))]
            text += ["", *beside, ""]
    if {*central()} <= {of for group in done for of in group.jobs}:
        text += ["## Beside published numbers: ACDC, three labelled patients, no federation", "", *published_table(), ""]
        if scale is TWO_CORES:
            text += [
                "Published runs (Yang et al. 2023) are of another size, with many times the steps, and of another split. With"
            ]
            text += ["`--full` this program comes nearer to them and asks for a GPU; no such run has been made.", ""]
    write_page(scale.page, text, promised)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=(*PARTS, "pooled", "weight", "benchmarks"), default=(*PARTS, "pooled", "weight")
    )
    parser.add_argument("--write", action="store_true", help="run nothing, write the page from what is there")
    parser.add_argument("--full", action="store_true", help="full size, for a GPU: a page and records of its own, semi_full")
    given = parser.parse_args()
    if given.full:
        semi_runs.full_size()
    if not given.write:
        for of in screening() if "screen" in given.only else ():
            run_any(of.seeded(0))
        if not screened() and {"final", "central"} & set(given.only):
            sys.exit("which frameworks are the best two is not known before the screening is over: run it first (--only screen)")
        for of, seed in wanted(given.only):
            run_any(of.seeded(seed))
        for of in beside_pooled() if "pooled" in given.only else ():
            for seed in range(semi_runs.scale.fewer):
                run_pooled(pooled(of).seeded(seed))
        for of, weight in stills() if "weight" in given.only else ():
            for seed in range(semi_runs.scale.fewer):
                run_still(of.seeded(seed), weight)
        for name in BENCHMARKS if "benchmarks" in given.only else ():
            run_benchmark(name, semi_runs.scale.page.stem)
    compose()


if __name__ == "__main__":
    main()
