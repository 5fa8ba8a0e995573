"""The numbers behind docs/results/semi.md: what semi-supervised learning, and SAM's help, add to a few labels.

    WARDROUND_DATA=/path/to/data python benchmarks/semi_results.py [--only screen final benchmarks] [--seeds 5] [--write]

Screening: every framework without SAM, with SAM, and with a SAM that learns, on the validation patients of the
hippocampus set, one seed. The two best frameworks and supervised training then go to the test patients with several
seeds. Resumable: every run lies in runs/semi, a finished one is not run again. With --write nothing is run.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from results import (
    ROOT,
    THREADS,
    Job,
    benchmark_rows,
    ended,
    patient_dice,
    run_benchmark,
    run_job,
    with_interval,
    write_page,
    written_by,
)
from safetensors.torch import save
from torch import Tensor

from client.sam import Sam
from configs.files import write_bytes
from strategies.comparison import paired_bootstrap
from strategies.sam_parts import SIZES, Parts
from strategies.semi import FRAMEWORKS
from strategies.semi.prompts import Prompts

RUNS = ROOT / "runs" / "semi"
PAGE = ROOT / "docs" / "results" / "semi.md"
HELP = {
    "no SAM": ("sam.enabled=false",),
    "SAM": ("sam.enabled=true",),
    "SAM that learns": ("sam.enabled=true", "sam.adapt=decoder"),
}
"""The columns of the screening, and what is changed for each."""

WORTHLESS = ("random SAM", "SAM that answers the box")
"""SAMs that know nothing: with either, the final Dice must not fall below that without SAM by more than .01."""

TWO_SLICES = ("budget.cold_start=2", "budget.per_cycle=0", "federation.cycles=1")
ALL = ("budget.cold_start=100000", "budget.per_cycle=0", "federation.cycles=1")
STEPS = ("train.rounds_per_cycle=10", "train.local_steps=25", "train.batch_unlabelled=8", "save_pictures=false")
"""The same steps for every run of the page."""

SETS = ("hippocampus", "acdc")
BENCHMARKS = ("sam_quality", "semi")


def job(data: str, framework: str, help_: str, labels: str) -> Job:
    """One cell of the page, not seeded yet."""
    budget = {"two": TWO_SLICES, "all": ALL}[labels]
    name = "-".join([data, framework, help_.replace(" ", "_"), labels])
    return Job(name, f"configs/{data}.toml", (f"train.framework={framework}", *HELP[help_], *budget, *STEPS), group=data)


def worthless(framework: str, which: str) -> Job:
    """A run with a SAM that knows nothing, on hippocampus with two slices a site."""
    checkpoint = (f"sam.checkpoint={RUNS / 'random_sam.safetensors'}",) if which == "random SAM" else ()
    open_gate = ("sam.min_iou=0.0", "sam.min_agreement=0.0")  # or the gate would silence it, and trust had nothing to show
    overrides = (f"train.framework={framework}", *HELP["SAM"], *open_gate, *checkpoint, *TWO_SLICES, *STEPS)
    return Job(f"hippocampus-{framework}-{which.replace(' ', '_')}-two", "configs/hippocampus.toml", overrides)


def run_worthless(of: Job) -> None:
    """Run a job of `worthless`; the SAM that answers the box is the honest one with its answers replaced."""
    random = RUNS / "random_sam.safetensors"
    if not random.exists():
        torch.manual_seed(0)
        write_bytes(random, save(Parts(SIZES["small"]).state_dict()))
    honest = Sam.decode
    if "box" in of.name:
        Sam.decode = box_itself  # type: ignore[method-assign]
    try:
        run_job(of, RUNS)
    finally:
        Sam.decode = honest  # type: ignore[method-assign]


def box_itself(self: Sam, embeddings: Tensor, prompts: Prompts, *, size: tuple[int, int], **how: object) -> tuple[Tensor, Tensor]:
    """In place of `Sam.decode`: the box of each prompt, and full confidence."""
    place = torch.arange(size[0]) + 0.5
    left, top, right, bottom = prompts.boxes.cpu().unbind(1)
    columns = (place >= left[:, None]) & (place <= right[:, None])
    rows = (place >= top[:, None]) & (place <= bottom[:, None])
    return torch.where(rows[:, :, None] & columns[:, None, :], 4.0, -4.0).to(self.device), torch.ones(len(prompts))


def screening() -> list[Job]:
    return [job("hippocampus", framework, help_, "two") for framework in FRAMEWORKS for help_ in HELP]


def validation_dice(of: Job) -> float | None:
    """Of seed 0, the screening's."""
    found = ended(RUNS / of.seeded(0).name)
    return None if found is None else found.dice


def best_two() -> list[str]:
    """The frameworks of the highest validation Dice in the screening, with whatever help; supervised is always there."""
    best: dict[str, float] = {}
    for framework in FRAMEWORKS:
        found = [dice for help_ in HELP if (dice := validation_dice(job("hippocampus", framework, help_, "two"))) is not None]
        if found and framework != "supervised":
            best[framework] = max(found)
    return sorted(best, key=lambda name: -best[name])[:2]


def final() -> list[Job]:
    """What is measured on test patients: supervised and the best two, with and without SAM, few labels and all."""
    jobs = []
    for data in SETS:
        for framework in ("supervised", *best_two()):
            jobs += [job(data, framework, help_, "two") for help_ in HELP]
            if data == "hippocampus" and framework in best_two():
                jobs += [worthless(framework, which) for which in WORTHLESS]
        jobs.append(job(data, "supervised", "no SAM", "all"))  # with every case labelled all frameworks are this one
    return jobs


# ------------------------------------------------------------------------------------------------------------ the page


def screening_table() -> list[str]:
    lines = ["| framework | " + " | ".join(HELP) + " | seconds |", "|---|" + "---|" * (len(HELP) + 1)]
    for framework in FRAMEWORKS:
        runs = [ended(RUNS / job("hippocampus", framework, help_, "two").seeded(0).name) for help_ in HELP]
        if any(run is not None for run in runs):
            cells = [f"{run.dice:.3f}" if run and run.dice is not None else "" for run in runs]
            seconds = " / ".join(f"{run.seconds:.0f}" if run else "" for run in runs)
            lines.append(f"| {framework} | " + " | ".join(cells) + f" | {seconds} |")
    return lines


def final_table(seeds: int) -> list[str]:
    lines = ["| data | labels | framework | SAM | test Dice | against the same without SAM |", "|---|---|---|---|---|---|"]
    for of in final():
        data, framework, help_, labels = of.name.split("-")
        folders = [RUNS / of.seeded(seed).name for seed in range(seeds)]
        done = [folder for folder in folders if ended(folder) is not None]
        if not done:
            continue
        dice = [patient_dice(folder) for folder in done]
        means = [statistics.mean(values.values()) for values in dice]
        plain = [RUNS / job(data, framework, "no SAM", labels).seeded(seed).name for seed in range(seeds)]
        both = [(f, p) for f, p in zip(folders, plain, strict=True) if ended(f) is not None and ended(p) is not None]
        told = ""
        if both and help_ != "no_SAM":
            apart, low, high = paired_bootstrap([patient_dice(f) for f, _ in both], [patient_dice(p) for _, p in both])
            told = f"{apart:+.3f} [{low:+.3f}, {high:+.3f}]"
        lines.append(f"| {data} | {labels} | {framework} | {help_.replace('_', ' ')} | {with_interval(means)} | {told} |")
    return lines


def compose(seeds: int) -> None:
    command = screening()[0].command
    text = [
        "# Semi-supervised learning with SAM: what comes out",
        "",
        written_by("semi_results.py"),
        "Dice is the mean over held-out patients, of the mean over classes, on the original grid. Two labelled slices at each",
        "site, drawn at random, and the same steps for every run: 10 rounds of 25 local steps. An interval after ± is a 95 % t",
        "interval over seeds; one in brackets a 95 % bootstrap interval of the paired difference over seeds and patients.",
        "",
        "## Screening: validation Dice, hippocampus, four sites, one seed",
        "",
        *screening_table(),
        "",
        f"The first cell is `{command} --set {THREADS} --set seed=0`; the others change `train.framework` and `sam`.",
        "",
        "## SAM itself, and what its help costs",
        "",
        "| promised | measured | met |",
        "|---|---|---|",
        *benchmark_rows(RUNS, BENCHMARKS),
        "",
        "## Test Dice",
        "",
        *final_table(seeds),
        "",
    ]
    write_page(PAGE, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("screen", "final", "benchmarks"), default=("screen", "final"))
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this, less one, of the runs on test patients")
    parser.add_argument("--write", action="store_true", help="run nothing, write the page from what is there")
    given = parser.parse_args()
    if not given.write:
        for of in screening() if "screen" in given.only else ():
            run_job(of.seeded(0), RUNS)
        for seed in range(given.seeds) if "final" in given.only else ():
            for of in final():
                knows_nothing = any(which.replace(" ", "_") in of.name for which in WORTHLESS)
                run_worthless(of.seeded(seed)) if knows_nothing else run_job(of.seeded(seed), RUNS)
        for name in BENCHMARKS if "benchmarks" in given.only else ():
            run_benchmark(name, RUNS)
    compose(given.seeds)


if __name__ == "__main__":
    main()
