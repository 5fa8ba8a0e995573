"""What is compared: an arm for each strategy, and the baselines that can't be left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.faults import ConfigError, Fault
from configs.load import load
from configs.schema import Run
from strategies.query import STRATEGIES, fault_of

ALWAYS = ("random", "random_fg")
"""Comparators that every strategy has to beat."""

ALL_LABELS = "all labels"
ALONE = "each site alone"
"""The ceiling: everything labelled. The floor of a federation: random labels, and every site trains by itself."""

FAIR = ("federation.restart=initial",)
"""Every cycle trains from the same initial weights in the same number of steps, so that a curve rises by labels alone."""

DROPOUT = 0.1


@dataclass(frozen=True)
class Arm:
    """One line of a comparison.

    Attributes:
        name: as the page has it.
        overrides: what is changed in the configuration, after the user's own changes.
        alone: whether each site is a federation of its own.
    """

    name: str
    overrides: tuple[str, ...]
    alone: bool = False

    @property
    def folder(self) -> str:
        """Its name as that of a folder."""
        return self.name.replace(" ", "_")


def arms_of(config: Path, overrides: Sequence[str], queries: Sequence[str]) -> list[Arm]:
    """Both randoms, the given strategies in their order, and the baselines.

    What a strategy needs of the network is switched on for it: dropout where it compares passes, an evidential head.

    Raises:
        ConfigError: unknown strategies, all of them at once.
    """
    faults = [Fault((), fault) for name in queries if (fault := fault_of(name)) is not None]
    if faults:
        raise ConfigError("--query", faults)
    plain = load(config, [*overrides, *FAIR])
    asked = list(dict.fromkeys([*ALWAYS, *queries]))
    found = [Arm(name, (*FAIR, f"query.strategy={name}", *_needed(plain, name))) for name in asked]
    everything = ("query.strategy=random", "budget.cold_start=1000000", "budget.per_cycle=0", "federation.cycles=1")
    return [*found, Arm(ALL_LABELS, (*FAIR, *everything)), Arm(ALONE, (*FAIR, "query.strategy=random"), alone=True)]


def run_of(config: Path, overrides: Sequence[str], arm: Arm, *, seed: int) -> Run:
    """The configuration of an arm with a seed."""
    return load(config, [*overrides, *arm.overrides, f"seed={seed}", f"name={arm.folder.replace('+', '-')}"])


def _needed(run: Run, query: str) -> list[str]:
    needs = STRATEGIES[query.split("+")[0]].needs
    dropout = [f"network.dropout={DROPOUT}"] if "dropout" in needs and run.network.dropout == 0 else []
    return dropout + (["network.head=evidential"] if "evidential head" in needs else [])
