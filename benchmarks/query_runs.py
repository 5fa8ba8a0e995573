"""Which comparisons docs/results/queries.md is made of, in which order, and their records: `query_results.py` runs them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from results import RECORDS, ROOT

from simulation.compare.arms import ALL_LABELS, ALWAYS, Arm, arms_of
from simulation.compare.numbers import Line, Pair, common_range, line_of, pairs_of, same_patients
from simulation.compare.record import Ran, read

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
        network: overrides by data set.
    """

    page: Path
    training: tuple[str, ...]
    network: Mapping[str, tuple[str, ...]]


PAGES = ROOT / "docs" / "results"
TWO_CORES = Scale(
    PAGES / "queries.md",
    training=(
        *("train.rounds_per_cycle=20", "train.local_steps=25", "train.batch_labelled=4", "train.batch_unlabelled=4"),
        *("train.learning_rate=1e-2", "train.learning_rate_end=0"),
    ),
    network={
        "hippocampus": ("network.name=unet_small",),
        "acdc": ("network.name=unet_small", "preprocess.size_px=96"),
        "sts": ("network.name=unet_small", "preprocess.size_px=96"),
    },
)
FULL = Scale(
    PAGES / "queries_full.md",
    training=(
        *("train.rounds_per_cycle=80", "train.local_steps=50", "train.batch_labelled=8", "train.batch_unlabelled=8"),
        *("train.learning_rate=5e-3", "train.learning_rate_end=0"),
    ),
    network={
        "hippocampus": ("network.name=unet",),
        "acdc": ("network.name=unet", "preprocess.size_px=128"),
        "sts": ("network.name=unet", "preprocess.size_px=128"),
    },
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
        shared = ("threads=1", "save_pictures=false", "network.dropout=0.1", "split.start=any", "budget.rule=proportional")
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

    def runs(self) -> list[Ran]:
        """The records that are there, of arms and seeds of this stage."""
        names = {arm.name for arm in self.arms}
        found = [ran for path in sorted(self.records.glob("*.json")) if (ran := read(path)) is not None]
        return [ran for ran in found if ran.arm in names and ran.seed < self.seeds]

    @property
    def wanted(self) -> int:
        return len(self.arms) * self.seeds * self.folds

    @property
    def is_done(self) -> bool:
        return len(self.runs()) == self.wanted


@dataclass(frozen=True)
class Told:
    """A stage in numbers: lines and pairs of the arms, and how many runs they are made of."""

    lines: Mapping[str, Line]
    pairs: Sequence[Pair]
    by_arm: Mapping[str, Sequence[Ran]]

    def against(self, arm: str, other: str) -> Pair:
        return next(pair for pair in self.pairs if {arm, other} == {pair.ours, pair.theirs})


def told(stage: Stage) -> Told:
    """The numbers of a stage that is done."""
    runs, _ = same_patients(stage.runs())
    within = common_range(runs)
    by_arm = {arm.name: [ran for ran in runs if ran.arm == arm.name] for arm in stage.arms}
    full = line_of(by_arm[ALL_LABELS], full_dice=None).final[0]
    lines = {name: line_of(found, full_dice=full, within=within) for name, found in by_arm.items()}
    return Told(lines, pairs_of(by_arm, within=within), by_arm)


def ahead(stages: Sequence[Stage]) -> list[str]:
    """Strategies by how far their AUBC on *validation* patients is above random_fg's, on average over these stages.

    Those that took part in all of them, baselines left out, the best first.
    """
    tables = [told(stage).lines for stage in stages]
    shared = [name for name in EVERY if all(name in lines for lines in tables)]
    gain = {name: statistics.mean(lines[name].validation - lines["random_fg"].validation for lines in tables) for name in shared}
    return sorted(shared, key=lambda name: -gain[name])


HIPPOCAMPUS = ("budget.cold_start=2", "budget.per_cycle=6", "federation.cycles=5")
ACDC = ("budget.cold_start=1", "budget.per_cycle=3", "federation.cycles=4")
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
        found.append(Stage("acdc_semi", "acdc", (*SEMI, *ACDC), two, seeds=5))
    return found


def chosen(done: Sequence[Stage]) -> str | None:
    """The strategy that validation patients speak for, over all supervised stages that are done."""
    supervised = [stage for stage in done if stage.changes[:2] == SUPERVISED]
    return ahead(supervised)[0] if supervised else None


BASELINES = (*ALWAYS, ALL_LABELS)
