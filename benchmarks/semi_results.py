"""The numbers behind docs/results/semi.md: what semi-supervised learning, and SAM's help, add to a few labels.

    WARDROUND_DATA=/path/to/data python benchmarks/semi_results.py [--only screen final central benchmarks] [--seeds 5]
                                                                   [--full] [--write]

Screening: every framework without SAM, with SAM, and with a SAM that learns, on the validation patients of the
hippocampus set, one seed. Supervised training and the two best frameworks, these without SAM and with the kind of help
that did better in the screening, then go to the test patients with several seeds, with two labelled slices a site, with
one labelled patient a site, and with all; and, for comparison with published numbers, with three labelled patients and no
federation. Resumable: a run with a record in docs/results/records/semi is not done again, an interrupted one goes on; on
two cores, start the same command twice. With --full all is of full size, for a GPU. With --write nothing is run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from results import (
    ROOT,
    Claim,
    Ended,
    Job,
    benchmark_rows,
    claim_table,
    recorded,
    run_benchmark,
    run_job,
    write_page,
    written_by,
)
from safetensors.torch import save
from torch import Tensor

from client.sam import Sam
from configs.files import write_bytes
from strategies.comparison import bootstrap, paired_bootstrap
from strategies.sam_parts import SIZES, Parts
from strategies.semi import FRAMEWORKS
from strategies.semi.prompts import Prompts

RANDOM_SAM = ROOT / "runs" / "semi" / "random_sam.safetensors"
HELP = {
    "no SAM": ("sam.enabled=false",),
    "SAM": ("sam.enabled=true",),
    "SAM that learns": ("sam.enabled=true", "sam.adapt=decoder"),
}
"""The columns of the screening, and what is changed for each."""

WORTHLESS = ("random SAM", "SAM that answers the box")
"""SAMs that know nothing: with either, the final Dice must not fall below that without SAM by more than .01."""

ONCE = ("budget.per_cycle=0", "federation.cycles=1")
LABELS = {
    "two slices a site": ("budget.cold_start=2", "split.start=foreground", *ONCE),
    "one patient a site": ("query.unit=patient", "budget.cold_start=1", *ONCE),
    "three patients": ("query.unit=patient", "budget.cold_start=3", "split.sites=size", "split.count=1", *ONCE),
    "all": ("budget.cold_start=100000", *ONCE),
}
"""What is labelled. Two slices are two that show a class; three patients are those of one site that has everybody."""


@dataclass(frozen=True)
class Scale:
    """How large the runs of a page are: the same steps for all of them, and networks by data set.

    With a quarter of the steps on two cores a federated model is half trained; batches twice as large cost 1.7 times as
    much, and of two labelled slices show the same two four times.
    """

    page: Path
    rounds: int
    local_steps: int
    batch: int
    network: Mapping[str, tuple[str, ...]]

    @property
    def steps(self) -> tuple[str, ...]:
        """Overrides of every run."""
        batches = (f"train.batch_labelled={self.batch}", f"train.batch_unlabelled={self.batch}")
        return (f"train.rounds_per_cycle={self.rounds}", f"train.local_steps={self.local_steps}", *batches, "save_pictures=false")


PAGES = ROOT / "docs" / "results"
TWO_CORES = Scale(
    PAGES / "semi.md",
    rounds=40,
    local_steps=25,
    batch=4,
    network={"hippocampus": (), "acdc": ("preprocess.size_px=96", "network.name=unet_small")},
)
FULL = Scale(
    PAGES / "semi_full.md",
    rounds=80,
    local_steps=50,
    batch=8,
    network={"hippocampus": ("network.name=unet",), "acdc": ("preprocess.size_px=128",)},
)
scale = TWO_CORES
"""Of this run of the program."""

SETS = ("hippocampus", "acdc")
PARTS = ("screen", "final", "central")
BENCHMARKS = ("sam_quality", "semi")
FEW = "two slices a site"


def job(data: str, framework: str, help_: str, labels: str) -> Job:
    """One cell of the page, not seeded yet."""
    name = "-".join([data, framework, help_.replace(" ", "_"), labels.replace(" ", "_")])
    overrides = (f"train.framework={framework}", *HELP[help_], *LABELS[labels], *scale.steps, *scale.network[data])
    return Job(name, f"configs/{data}.toml", overrides, group=data)


def worthless(framework: str, which: str) -> Job:
    """A run with a SAM that knows nothing, on hippocampus with two slices a site."""
    checkpoint = (f"sam.checkpoint={RANDOM_SAM}",) if which == "random SAM" else ()
    open_gate = ("sam.min_iou=0.0", "sam.min_agreement=0.0")  # or the gate would silence it, and trust had nothing to show
    overrides = (f"train.framework={framework}", *HELP["SAM"], *open_gate, *checkpoint, *LABELS[FEW], *scale.steps)
    name = f"hippocampus-{framework}-{which.replace(' ', '_')}-{FEW.replace(' ', '_')}"
    return Job(name, "configs/hippocampus.toml", overrides, group="hippocampus")


def run_worthless(of: Job) -> None:
    """Run a job of `worthless`; the SAM that answers the box is the honest one with its answers replaced."""
    if not RANDOM_SAM.exists():
        torch.manual_seed(0)
        write_bytes(RANDOM_SAM, save(Parts(SIZES["small"]).state_dict()))
    honest = Sam.decode
    if "box" in of.name:
        Sam.decode = box_itself  # type: ignore[method-assign]
    try:
        run_job(of, scale.page.stem)
    finally:
        Sam.decode = honest  # type: ignore[method-assign]


def box_itself(self: Sam, embeddings: Tensor, prompts: Prompts, *, size: tuple[int, int], **how: object) -> tuple[Tensor, Tensor]:
    """In place of `Sam.decode`: the box of each prompt, and full confidence."""
    place = torch.arange(size[0]) + 0.5
    left, top, right, bottom = prompts.boxes.cpu().unbind(1)
    columns = (place >= left[:, None]) & (place <= right[:, None])
    rows = (place >= top[:, None]) & (place <= bottom[:, None])
    return torch.where(rows[:, :, None] & columns[:, None, :], 4.0, -4.0).to(self.device), torch.ones(len(prompts))


def run_any(of: Job) -> None:
    """Run a job, with a SAM that knows nothing where it asks for one."""
    knows_nothing = any(which.replace(" ", "_") in of.name for which in WORTHLESS)
    run_worthless(of) if knows_nothing else run_job(of, scale.page.stem)


def screening() -> list[Job]:
    return [job("hippocampus", framework, help_, FEW) for framework in FRAMEWORKS for help_ in HELP]


def runs_of(of: Job, seeds: int) -> dict[int, Ended]:
    """The records of a job by seed, as far as they are there."""
    found = {seed: recorded(scale.page.stem, of.seeded(seed).name) for seed in range(seeds)}
    return {seed: run for seed, run in found.items() if run is not None}


def validation_dice(of: Job) -> float | None:
    """Of seed 0, the screening's."""
    found = runs_of(of, 1)
    return found[0].dice if found else None


def best_two() -> list[str]:
    """The frameworks of the highest validation Dice in the screening, with whatever help; supervised is always there."""
    best: dict[str, float] = {}
    for framework in FRAMEWORKS:
        found = [dice for help_ in HELP if (dice := validation_dice(job("hippocampus", framework, help_, FEW))) is not None]
        if found and framework != "supervised":
            best[framework] = max(found)
    return sorted(best, key=lambda name: -best[name])[:2]


def helps(framework: str) -> tuple[str, ...]:
    """No SAM, and of the two kinds of help the one of the higher validation Dice in the screening."""
    found = {
        help_: dice
        for help_ in HELP
        if help_ != "no SAM" and (dice := validation_dice(job("hippocampus", framework, help_, FEW))) is not None
    }
    return ("no SAM", max(found, key=lambda help_: found[help_])) if found else ("no SAM",)


def compared(data: str, labels: str) -> list[Job]:
    """Supervised training, and the best two frameworks without SAM and with it."""
    pairs = [job(data, framework, help_, labels) for framework in best_two() for help_ in helps(framework)]
    return [job(data, "supervised", "no SAM", labels), *pairs]


def main_question() -> list[Job]:
    """What two labelled slices a site give on test patients, with and without SAM, and what all labels would give.

    With every case labelled nothing is left for SAM to say, nor for a framework that asks nothing of labelled images; the
    same to the last digit in every seed, so `all_with_sam` shows it once.
    """
    return [of for data in SETS for of in (*compared(data, FEW), job(data, "supervised", "no SAM", "all"))]


def also_asked() -> list[Job]:
    """The same with one labelled patient a site, and with SAMs that know nothing."""
    patients = [of for data in SETS for of in compared(data, "one patient a site")]
    return [*patients, *(worthless(best_two()[0], which) for which in WORTHLESS)]


def all_with_sam() -> list[Job]:
    """The best two frameworks and SAM with all labels, once: what remains of them where no image is unlabelled."""
    return [job(data, framework, helps(framework)[-1], "all") for data in SETS for framework in best_two()]


def central() -> list[Job]:
    """Without a federation, as published numbers are."""
    return compared("acdc", "three patients")


def wanted(seeds: int, parts: Sequence[str]) -> list[tuple[Job, int]]:
    """Jobs and their seeds, in the order in which they are run: what matters most first, and of that seed by seed."""
    if not screened():
        return []
    groups = [main_question(), also_asked()] if "final" in parts else []
    groups += [central()] if "central" in parts else []
    once = [(of, 0) for of in all_with_sam()] if "final" in parts else []
    return [*((of, seed) for jobs in groups for seed in range(seeds) for of in jobs), *once]


# ------------------------------------------------------------------------------------------------------------ the page


def screening_table() -> list[str]:
    lines = ["| framework | " + " | ".join(HELP) + " |", "|---|" + "---|" * len(HELP)]
    for framework in FRAMEWORKS:
        runs = [runs_of(job("hippocampus", framework, help_, FEW), 1).get(0) for help_ in HELP]
        if any(run is not None for run in runs):
            cells = [f"{run.dice:.3f}" if run and run.dice is not None else "" for run in runs]
            lines.append(f"| {framework} | " + " | ".join(cells) + " |")
    return lines


def apart(ours: dict[int, Ended], theirs: dict[int, Ended]) -> tuple[float, float, float] | None:
    """Paired difference of test Dice over the seeds that both have, with its interval."""
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return None
    return paired_bootstrap([ours[seed].patients["test"] for seed in both], [theirs[seed].patients["test"] for seed in both])


def final_table(jobs: list[Job], seeds: int) -> list[str]:
    lines = ["| data | labels | framework | SAM | test Dice | against the same without SAM |", "|---|---|---|---|---|---|"]
    for of in jobs:
        data, framework, help_, labels = (word.replace("_", " ") for word in of.name.split("-"))
        runs = runs_of(of, seeds)
        if not runs:
            continue
        mean, lower, upper = bootstrap([run.patients["test"] for run in runs.values()])
        dice = f"{mean:.3f} [{lower:.3f}, {upper:.3f}] ({len(runs)} seed{'s' * (len(runs) > 1)})"
        told = ""
        if help_ != "no SAM":
            beside = "supervised" if labels == "all" else framework.replace(" ", "_")
            gain = apart(runs, runs_of(job(data, beside, "no SAM", labels), seeds))
            told = "" if gain is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gain)
        lines.append(f"| {data} | {labels} | {framework} | {help_} | {dice} | {told} |")
    return lines


def best_of(data: str, among: Iterable[str], seeds: int) -> Job | None:
    """Framework and help of the highest mean *validation* Dice with few labels: what is then read on test patients."""
    found: dict[Job, float] = {}
    for of in compared(data, FEW):  # not all of the screening: there the other kind of help has one seed
        runs = runs_of(of, seeds) if any(of.name.split("-")[2] == help_.replace(" ", "_") for help_ in among) else {}
        if runs:
            found[of] = statistics.mean(run.dice for run in runs.values() if run.dice is not None)
    return max(found, key=lambda of: found[of]) if found else None


def mean_test(of: Job, seeds: int) -> float | None:
    """Over patients and seeds, so far."""
    runs = runs_of(of, seeds)
    return statistics.mean(statistics.mean(run.patients["test"].values()) for run in runs.values()) if runs else None


def claims(seeds: int) -> list[Claim]:
    """What this is after, beside what came out, of the groups of runs that are done: test patients are read at the end."""
    rows = []
    done = [of for group in (main_question(), also_asked(), all_with_sam()) if is_done(group, seeds) for of in group]

    def add(promised: str, ours: Job, theirs: Job, *, least: float, by_mean: bool = False) -> None:
        """A paired difference that must be `least` at least: its lower bound, or its mean."""
        gain = apart(runs_of(ours, seeds), runs_of(theirs, seeds)) if {ours, theirs} <= {*done} else None
        if gain is not None:
            told = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gain)
            rows.append(Claim(promised, f"{told}, {_method(ours)}", (gain[0] if by_mean else gain[1]) >= least))

    for data in SETS if is_done(main_question(), seeds) else ():
        supervised, whole = (job(data, "supervised", "no SAM", labels) for labels in (FEW, "all"))
        best, plain, helped = (best_of(data, among, seeds) for among in (HELP, ("no SAM",), ("SAM", "SAM that learns")))
        low, high = mean_test(supervised, seeds), mean_test(whole, seeds)
        reached = None if best is None else mean_test(best, seeds)
        if best is not None and low is not None and high is not None and reached is not None:
            share = (reached - low) / (high - low)
            told = f"{share:.0%} ({low:.3f} to {reached:.3f} of {high:.3f}), {_method(best)}"
            rows.append(Claim(f"{data}: the best closes 80 % of the gap to all labels", told, share >= 0.8))
        if plain is not None and helped is not None:
            add(f"{data}: SAM adds .01 to the best without it", helped, plain, least=0.01, by_mean=True)
        for semi in (of for of in all_with_sam() if of.group == data):
            add(f"{data}: with all labels nothing is lost (.01), seed 0", semi, whole, least=-0.01)
    for which in WORTHLESS:
        without = job("hippocampus", best_two()[0], "no SAM", FEW)
        add(f"a {which} costs {best_two()[0]} no more than .01", worthless(best_two()[0], which), without, least=-0.01)
    return rows + benchmark_rows(scale.page.stem, BENCHMARKS)


def _method(of: Job) -> str:
    _, framework, help_, _ = of.name.split("-")
    return f"{framework}, {help_.replace('_', ' ')}"


def is_done(group: Iterable[Job], seeds: int) -> bool:
    """Whether all runs of a group are there; of `all_with_sam` there is one seed."""
    once = all_with_sam()
    return all(len(runs_of(of, seeds)) == (1 if of in once else seeds) for of in group)


def screened() -> bool:
    """Whether the screening is over, so that the frameworks of the other runs are known."""
    return all(validation_dice(of) is not None for of in screening())


def unfinished(seeds: int) -> list[str]:
    """A paragraph that says how much of the page is still to be measured; nothing where all is there."""
    rest = wanted(seeds, PARTS)
    asked = [*((of, 0) for of in screening()), *rest]
    done, all_ = sum(recorded(scale.page.stem, of.seeded(seed).name) is not None for of, seed in asked), len(asked)
    if rest and done == all_:
        return []
    told = f"**Not finished: {done} of {all_} runs are done**; test patients are read, group by group, when all of a group are."
    return [told, ""]


def compose(seeds: int) -> None:
    command = screening()[0].seeded(0).command
    promised = claims(seeds) if screened() else benchmark_rows(scale.page.stem, BENCHMARKS)
    text = [
        "# Semi-supervised learning with SAM: what comes out",
        "",
        written_by("semi_results.py"),
        "Dice is the mean over held-out patients, of the mean over classes, on the original grid. The same steps for every run:",
        f"{scale.rounds} rounds of {scale.local_steps} local steps, {scale.batch} labelled and {scale.batch} unlabelled images.",
        "Intervals in brackets are 95 % bootstrap intervals over seeds (0, 1, 2 in order) and patients, of differences paired.",
        "",
        "SAM counts as far as it helps on a site's validation patients, so runs with SAM have used the masks of up to 32",
        "validation slices a round that runs without it have not, and the screening, on the same patients, may favour it. Test",
        "patients are seen by nothing before the final table, but for one thing: the shipped SAM has learned from synthetic",
        "scenes alone, but how they are drawn, and two numbers of how its answers lean on a box (`PICTURE_WEIGHT` and",
        "`OUTSIDE_PER_PX` in `strategies/sam_parts.py`), were chosen by its Dice with tight boxes on every fifth and sixth",
        "case of the sets, whatever their role. `benchmarks/sam_quality.py` tells the other cases apart.",
        "",
        *unfinished(seeds),
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
    done = [group for group in (main_question(), all_with_sam(), also_asked(), central()) if screened() and is_done(group, seeds)]
    if done:
        text += ["## Test Dice", "", *final_table([of for group in done for of in group], seeds), ""]
        text += ["A SAM that answers the box is no checkpoint: this program puts it in SAM's place (`box_itself`).", ""]
    write_page(scale.page, text, promised)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=(*PARTS, "benchmarks"), default=PARTS)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this, less one, of the runs on test patients")
    parser.add_argument("--write", action="store_true", help="run nothing, write the page from what is there")
    parser.add_argument("--full", action="store_true", help="full size, for a GPU: a page and records of its own, semi_full")
    given = parser.parse_args()
    global scale
    scale = FULL if given.full else TWO_CORES
    if not given.write:
        for of in screening() if "screen" in given.only else ():
            run_any(of.seeded(0))
        if not screened() and {"final", "central"} & set(given.only):
            sys.exit("which frameworks are the best two is not known before the screening is over: run it first (--only screen)")
        for of, seed in wanted(given.seeds, given.only):
            run_any(of.seeded(seed))
        for name in BENCHMARKS if "benchmarks" in given.only else ():
            run_benchmark(name, scale.page.stem)
    compose(given.seeds)


if __name__ == "__main__":
    main()
