"""What is compared: an arm for each strategy, and the baselines that can't be left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.sam_checkpoint import check as check_sam
from configs.faults import ConfigError, Fault
from configs.load import load
from configs.schema import Run
from strategies.query import BEFORE_TRAINING, STRATEGIES, fault_of

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
        return self.name.replace(", ", "-").replace(" ", "_")


def arms_of(config: Path, overrides: Sequence[str], queries: Sequence[str]) -> list[Arm]:
    """Both randoms, the given strategies in their order, and the baselines.

    What a strategy needs of the network is switched on: dropout for all arms alike, an evidential head for its own, which
    random_fg then has a twin with, or the head would be compared rather than the choice. A strategy that needs no model makes the
    first request too; all others have the configuration's.

    Raises:
        ConfigError: unknown strategies, or an arm that the configuration does not fit; all of them at once.
        SamUnavailable: an arm needs SAM, and its checkpoint can't be used.
    """
    faults = [Fault((), fault) for name in queries if (fault := fault_of(name)) is not None]
    if faults:
        raise ConfigError("--query", faults)
    plain = load(config, [*overrides, *FAIR])
    asked = list(dict.fromkeys([*ALWAYS, *queries]))
    needs = {name: STRATEGIES[name.split("+")[0]].needs for name in asked}
    wants_dropout = plain.network.dropout == 0 and any("dropout" in need for need in needs.values())
    shared = (*FAIR, *([f"network.dropout={DROPOUT}"] if wants_dropout else []))
    evidential = [name for name in asked if "evidential head" in needs[name]]
    head = "network.head=evidential"
    found = []
    for name in asked:
        informed = [f"query.cold_start={base}"] if (base := name.split("+")[0]) in BEFORE_TRAINING else []
        found.append(Arm(name, (*shared, f"query.strategy={name}", *informed, *([head] if name in evidential else []))))
    if evidential and plain.network.head != "evidential":
        found.append(Arm("random_fg, evidential", (*shared, "query.strategy=random_fg", head)))
    everything = ("query.strategy=random", "budget.cold_start=1000000", "budget.per_cycle=0", "federation.cycles=1")
    found += [Arm(ALL_LABELS, (*shared, *everything)), Arm(ALONE, (*shared, "query.strategy=random"), alone=True)]
    _check(config, overrides, found)
    return found


def _check(config: Path, overrides: Sequence[str], arms: Sequence[Arm]) -> None:
    """Whether every arm's configuration loads, and tells what a comparison reads."""
    faults: list[Fault] = []
    for arm in arms:
        try:
            run = run_of(config, overrides, arm, seed=0)
        except ConfigError as error:
            faults += [replace(fault, problem=f"{arm.name}: {fault.problem}") for fault in error.faults]
            continue
        if run.privacy.share != "updates+sums" or run.privacy.min_patients > 1:
            faults.append(
                Fault(
                    ("privacy",),
                    "a comparison reads the Dice of every held-out patient of simulated sites: set privacy.share = "
                    '"updates+sums" and privacy.min_patients = 1',
                )
            )
            break
        check_sam(run)
    if faults:
        raise ConfigError(str(config), faults)


def run_of(config: Path, overrides: Sequence[str], arm: Arm, *, seed: int, fold: int = 0) -> Run:
    """The configuration of an arm with a seed, holding out a fold."""
    named = (f"seed={seed}", f"split.fold={fold}", f"name={arm.folder.replace('+', '-')}")
    return load(config, [*overrides, *arm.overrides, *named])
