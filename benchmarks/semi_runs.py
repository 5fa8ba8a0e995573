"""Which runs docs/results/semi.md is made of, in which order, and their records (`semi_results.py` runs and writes them)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import torch
from results import ROOT, Ended, Job, recorded, run_job
from safetensors.torch import save
from torch import Tensor

from client.sam import Sam
from configs.files import write_bytes
from strategies.sam_parts import SIZES, Parts
from strategies.semi import FRAMEWORKS
from strategies.semi.prompts import Prompts

RANDOM_SAM = Path("runs") / "semi" / "random_sam.safetensors"
"""Below `ROOT`: a record tells its settings, which must not name where somebody's clone lies."""
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
    much, and of two labelled slices show the same two four times. The main question, and what a SAM that knows nothing
    does to it, are asked with `seeds` seeds, all else with `fewer`.
    """

    page: Path
    rounds: int
    local_steps: int
    batch: int
    seeds: int
    fewer: int
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
    seeds=5,
    fewer=3,
    network={"hippocampus": (), "acdc": ("preprocess.size_px=96", "network.name=unet_small")},
)
FULL = Scale(
    PAGES / "semi_full.md",
    rounds=80,
    local_steps=50,
    batch=8,
    seeds=5,
    fewer=5,
    network={"hippocampus": ("network.name=unet",), "acdc": ("preprocess.size_px=128",)},
)
scale = TWO_CORES
"""Of this run of the program."""


def full_size() -> None:
    """From here on all is of full size."""
    global scale
    scale = FULL


SETS = ("hippocampus", "acdc")
PARTS = ("screen", "final", "central")
"""Those that `groups` and `screening` make; `pooled` runs and benchmarks come beside them."""
FEW = "two slices a site"


def job(data: str, framework: str, help_: str, labels: str) -> Job:
    """One cell of the page, not seeded yet."""
    name = "-".join([data, framework, help_.replace(" ", "_"), labels.replace(" ", "_")])
    overrides = (f"train.framework={framework}", *HELP[help_], *LABELS[labels], *scale.steps, *scale.network[data])
    return Job(name, f"configs/{data}.toml", overrides, group=data)


def worthless(framework: str, which: str, labels: str) -> Job:
    """The run with SAM on hippocampus, with a SAM that knows nothing in its place."""
    honest = job("hippocampus", framework, "SAM", labels)
    checkpoint = (f"sam.checkpoint={RANDOM_SAM}",) if which == "random SAM" else ()
    open_gate = ("sam.min_iou=0.0", "sam.min_agreement=0.0")  # or the gate would silence it, and trust had nothing to show
    name = honest.name.replace("-SAM-", f"-{which.replace(' ', '_')}-")
    return replace(honest, name=name, overrides=(*honest.overrides, *open_gate, *checkpoint))


def run_worthless(of: Job) -> None:
    """Run a job of `worthless`; the SAM that answers the box is the honest one with its answers replaced."""
    if not (ROOT / RANDOM_SAM).exists():
        torch.manual_seed(0)
        write_bytes(ROOT / RANDOM_SAM, save(Parts(SIZES["small"]).state_dict()))
    honest = Sam.decode
    if "box" in of.name:
        Sam.decode = box_itself  # type: ignore[method-assign]
    try:
        with chdir(ROOT):
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
    """The same with one labelled patient a site."""
    return [of for data in SETS for of in compared(data, "one patient a site")]


def worthless_few() -> list[Job]:
    """SAMs that know nothing in place of the one of the main question."""
    return [worthless(best_two()[0], which, FEW) for which in WORTHLESS]


def all_with_sam() -> list[Job]:
    """The best two frameworks and SAM with all labels, once: what remains of them where no image is unlabelled."""
    return [job(data, framework, helps(framework)[-1], "all") for data in SETS for framework in best_two()]


def central() -> list[Job]:
    """Without a federation, as published numbers are."""
    return compared("acdc", "three patients")


def worthless_again() -> list[Job]:
    """SAMs that know nothing where one seed is like another, and .01 can be told from nothing.

    Asked when the answer for two slices a site was known: there a difference between two runs of one seed is up to .1.
    """
    return [worthless(best_two()[0], which, "one patient a site") for which in WORTHLESS]


def beside_pooled() -> list[Job]:
    """Supervised training, of which is asked what the same slices would give without a federation (`semi_pooled.py`)."""
    return [job(data, "supervised", "no SAM", labels) for data in SETS for labels in (FEW, "all")]


def screened() -> bool:
    """Whether the screening is over, so that the frameworks of the other runs are known."""
    return all(validation_dice(of) is not None for of in screening())


@dataclass(frozen=True)
class Group:
    """Runs that belong together, each with seeds 0 to `seeds`, less one; their test patients are read when all are there."""

    jobs: list[Job]
    seeds: int

    @property
    def is_done(self) -> bool:
        return all(len(runs_of(of, self.seeds)) == self.seeds for of in self.jobs)


def groups(parts: Sequence[str]) -> list[Group]:
    """In the order in which they are run: what matters most first. None before the screening is over."""
    if not screened():
        return []
    final = [Group(main_question(), scale.seeds), Group(all_with_sam(), 1)]
    final += [Group(worthless_few(), scale.seeds), Group(also_asked(), scale.fewer), Group(worthless_again(), scale.fewer)]
    last = [Group(central(), scale.fewer)]
    return [*(final if "final" in parts else ()), *(last if "central" in parts else ())]


def read_groups() -> list[Group]:
    """Those whose test patients may be read: the first ones, as far as they are whole."""
    return list(takewhile(lambda group: group.is_done, groups(PARTS)))


def wanted(parts: Sequence[str]) -> list[tuple[Job, int]]:
    """Jobs and their seeds, group by group, and of each seed by seed."""
    return [(of, seed) for group in groups(parts) for seed in range(group.seeds) for of in group.jobs]
