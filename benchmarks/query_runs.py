"""Which comparisons docs/results/queries.md is made of, in which order, and their records: `query_results.py` runs them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from results import RECORDS, ROOT

from simulation.compare.arms import Arm, arms_of, run_of
from simulation.compare.numbers import Numbers, numbers_of
from simulation.compare.record import Ran, changed, code_of, read

EVERY = (
    *("least_confidence", "margin", "entropy", "bald", "vote_entropy", "coreset", "badge", "typiclust", "probcover"),
    *("clasp_pe", "feal", "logo", "kafal", "entropy@switch", "entropy+stochastic"),
)
"""All strategies of the table, FairFAL's switch (on entropy), and the default until these results were there."""

SUPERVISED = ("train.framework=supervised", "sam.enabled=false")
SEMI = ("train.framework=unimatch", "sam.enabled=true")


@dataclass(frozen=True)
class Scale:
    """How large the runs of a page are: network and images by data set, and the steps of a cycle.

    Attributes:
        page: where it is written.
        training: overrides of every run. Weights begin anew in each cycle, so its steps are all that a model learns in.
        semi: further overrides of semi-supervised runs, whose steps cost several times as much.
        network: overrides by data set; larger images take more steps.
        chosen: how these came about, in a sentence for the page.
    """

    page: Path
    training: tuple[str, ...]
    semi: tuple[str, ...]
    network: Mapping[str, tuple[str, ...]]
    chosen: str


PAGES = ROOT / "docs" / "results"
TWO_CORES = Scale(
    PAGES / "queries.md",
    training=(
        *("train.rounds_per_cycle=30", "train.local_steps=25", "train.batch_labelled=4", "train.batch_unlabelled=4"),
        *("train.learning_rate=1e-2", "train.learning_rate_end=0"),
    ),
    semi=("train.rounds_per_cycle=25", "train.local_steps=20", "train.batch_unlabelled=2"),
    network={
        "hippocampus": ("network.name=unet_small",),
        "acdc": ("network.name=unet_small", "preprocess.size_px=64"),
        "sts": ("network.name=unet_small", "preprocess.size_px=64"),
    },
    chosen="Steps, learning rate, dropout and budgets were chosen by validation Dice of chance and of all labels, on hippocampus "
    "with seeds 7 and 8 and on ACDC with seed 7, which no run here has; the fewer steps of semi-supervised training by that of "
    "chance on ACDC with seed 7. Images of 64 px are what two processor cores allow.",
)
FULL = Scale(
    PAGES / "queries_full.md",
    training=(
        *("train.rounds_per_cycle=80", "train.local_steps=50", "train.batch_labelled=8", "train.batch_unlabelled=8"),
        *("train.learning_rate=5e-3", "train.learning_rate_end=0"),
    ),
    semi=(),
    network={
        "hippocampus": ("network.name=unet",),
        "acdc": ("network.name=unet", "preprocess.size_px=128"),
        "sts": ("network.name=unet", "preprocess.size_px=128"),
    },
    chosen="Steps and learning rate are guesses: nothing was tuned at full size.",
)
scale = TWO_CORES
"""Of this run of the program."""


def full_size() -> None:
    """From here on all is of full size."""
    global scale
    scale = FULL


@dataclass(frozen=True)
class Stage:
    """A comparison: its name, data set, what is changed in the configuration, strategies and seeds."""

    name: str
    data: str
    changes: tuple[str, ...]
    queries: tuple[str, ...]
    seeds: int
    folds: int = 1

    @property
    def config(self) -> Path:
        return ROOT / "configs" / f"{self.data}.toml"

    @property
    def overrides(self) -> tuple[str, ...]:
        shared = ("threads=1", "save_pictures=false", "network.dropout=0.2", "split.start=any", "budget.rule=proportional")
        return (*shared, *scale.training, *scale.network[self.data], *self.changes)

    @property
    def records(self) -> Path:
        return RECORDS / scale.page.stem / self.name

    @property
    def out(self) -> Path:
        return ROOT / "runs" / scale.page.stem / self.name

    @property
    def command(self) -> str:
        """What makes the same comparison by hand."""
        options = " ".join(f"--set {item}" for item in self.overrides)
        seeds = " ".join(map(str, range(self.seeds)))
        return f"wardround compare configs/{self.data}.toml --query {' '.join(self.queries)} --seeds {seeds} {options}"

    @cached_property
    def arms(self) -> list[Arm]:
        return arms_of(self.config, self.overrides, self.queries)

    @cached_property
    def found(self) -> list[Ran]:
        """Records of arms and seeds of this stage. Those that were run with other settings stop the program, and so does an arm
        whose runs are of two versions of its strategy. That all are of a former one is no fault: the page says so.
        """
        arms = {arm.name: arm for arm in self.arms}
        told = [ran for path in sorted(self.records.glob("*.json")) if (ran := read(path)) is not None]
        told = [ran for ran in told if ran.arm in arms and ran.seed < self.seeds]
        for ran in told:
            other = changed(ran.settings, run_of(self.config, self.overrides, arms[ran.arm], seed=ran.seed, fold=ran.fold))
            other += ["another version of it than its other runs"] if len(self.codes(told, ran.arm)) > 1 else []
            if other:
                raise SystemExit(f"{self.records}: {ran.arm}, seed {ran.seed} was run with {', '.join(other)}. Move it away.")
        return told

    @staticmethod
    def codes(found: Iterable[Ran], arm: str) -> set[str]:
        """Versions of its strategy that an arm was run with, as far as records tell."""
        return {ran.code for ran in found if ran.arm == arm and ran.code}

    def changed_since(self) -> list[str]:
        """Arms whose strategy's file is another one now than it was when they were run."""
        now = {arm.name: code_of(run_of(self.config, self.overrides, arm, seed=0)) for arm in self.arms}
        return [arm.name for arm in self.arms if self.codes(self.found, arm.name) - {now[arm.name]}]

    @property
    def wanted(self) -> int:
        return len(self.arms) * self.seeds * self.folds

    @property
    def is_done(self) -> bool:
        return len(self.found) == self.wanted


@cache
def told(stage: Stage) -> Numbers:
    """The numbers of a stage that is done."""
    return numbers_of([arm.name for arm in stage.arms], stage.found, folds=stage.folds)


def gains(stages: Sequence[Stage]) -> dict[str, float]:
    """Strategies by how far their AUBC on *validation* patients is above that of random_fg (with the same head), on average over
    these stages, the best first.

    Those that took part in all of them, baselines left out. Stages in folds have no say: validation patients of a fold are test
    patients of another.
    """
    tables = [told(stage) for stage in stages if stage.folds == 1]
    shared = [name for name in EVERY if all(name in table.lines for table in tables)]
    gain = {name: statistics.mean(table.gain(table.lines[name]) for table in tables) for name in shared}
    return dict(sorted(gain.items(), key=lambda item: -item[1]))


def ahead(stages: Sequence[Stage]) -> list[str]:
    """The strategies of `gains`, best first."""
    return list(gains(stages))


HIPPOCAMPUS = ("budget.cold_start=2", "budget.per_cycle=2", "federation.cycles=5")
ACDC = ("budget.cold_start=1", "budget.per_cycle=2", "federation.cycles=4")
STS = ("budget.cold_start=2", "budget.per_cycle=6", "federation.cycles=4", "split.folds=5")


def stages() -> list[Stage]:
    """In their order, as far as the strategies of each are known: those of the next follow from validation in the ones before."""
    found = [Stage("hippocampus", "hippocampus", (*SUPERVISED, *HIPPOCAMPUS), EVERY, seeds=3)]
    if found[-1].is_done:
        six = tuple(ahead(found)[:6])
        found.append(Stage("acdc", "acdc", (*SUPERVISED, *ACDC), six, seeds=3))
    if len(found) == 2 and found[-1].is_done:
        three = tuple(ahead(found)[:3])
        found.append(Stage("sts", "sts", (*SUPERVISED, *STS), three, seeds=1, folds=5))
    if len(found) == 3 and found[-1].is_done:
        two = tuple(ahead(found)[:2])
        found.append(Stage("acdc_semi", "acdc", (*SEMI, *ACDC, *scale.semi), two, seeds=5))
    return found


def supervised(done: Sequence[Stage]) -> list[Stage]:
    """Those in which labels are all that differs."""
    return [stage for stage in done if stage.changes[:2] == SUPERVISED]
