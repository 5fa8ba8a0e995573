"""What is compared: an arm for each strategy, and the baselines that can't be left out."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.query_check import check as check_query
from client.sam_checkpoint import check as check_sam
from configs.faults import ConfigError, Fault
from configs.load import load
from configs.schema import Run
from strategies.query import BEFORE_TRAINING, STRATEGIES, fault_of, incomparable

ALWAYS = ("random", "random_fg")
"""Comparators that every strategy has to beat."""

ALL_LABELS = "all labels"
ALONE = "each site alone"
"""The ceiling: everything labelled. The floor of a federation: random labels, and every site trains by itself."""

TWIN = "random_fg, evidential"
"""random_fg with the head that strategies with evidence need."""

COORDINATED = ("typiclust", "probcover")
"""Strategies that sites can follow together (`budget.rule = "coordinated"`)."""

FAIR = ("federation.restart=initial",)
"""Every cycle trains from the same initial weights in the same number of steps, so that a curve rises by labels alone."""

DROPOUT = 0.1

PROMPT = ("experts.delay=0", "experts.absence=0")
"""Experts who answer at once: with all labels none may be missing."""

MODELS = ("global", "local", "both", "switch")
"""What may come after an @: whose prediction is scored, as `query.model` has it."""


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
        return self.name.replace(", ", "-").replace("@", "-").replace(" ", "_")


def arms_of(config: Path, overrides: Sequence[str], queries: Sequence[str]) -> list[Arm]:
    """Both randoms, the given strategies in their order, and the baselines.

    What a strategy needs of the network is switched on: dropout for all arms alike, an evidential head for its own, which
    random_fg then has a twin with, or the head would be compared rather than the choice. A strategy that needs no model makes the
    first request too, unless sites name its cases themselves (`split.start`); all others have the configuration's. Where the
    configuration coordinates sites, or weighs their scores, those arms do whose strategy can; the others have the same budget for
    every site.

    Args:
        queries: names as `query.strategy` takes them, each with `@local`, `@both` or `@switch` behind it where another model
            than the federation's is asked.

    Raises:
        ConfigError: unknown strategies, or an arm that the configuration does not fit; all of them at once.
        SamUnavailable: an arm needs SAM, and its checkpoint can't be used.
    """
    faults = [Fault((), fault) for asked in queries if (fault := _fault_of(asked)) is not None]
    if faults:
        raise ConfigError("--query", faults)
    plain = load(config, [*overrides, *FAIR])
    own_model = f"@{plain.query.model}"  # what a strategy has anyway
    asked = list(dict.fromkeys([*ALWAYS, *(name.removesuffix(own_model) for name in queries)]))
    needs = {name: STRATEGIES[_base(name)].needs for name in asked}
    wants_dropout = plain.network.dropout == 0 and any("dropout" in need for need in needs.values())
    shared = (*FAIR, *([f"network.dropout={DROPOUT}"] if wants_dropout else []))
    chooses_later = plain.federation.cycles > 1 and plain.budget.per_cycle > 0
    early = BEFORE_TRAINING if plain.split.start == "any" else ()
    idle = [name for name in asked if not (name in ALWAYS or chooses_later or name in early)]
    if idle:
        raise ConfigError(str(config), [Fault(("federation",), _never_chooses(plain, idle))])
    evidential = [name for name in asked if "evidential head" in needs[name]]
    head = "network.head=evidential"
    found = []
    for name in asked:
        strategy, _, model = name.partition("@")
        own = [f"query.strategy={strategy}"] + ([f"query.model={model}"] if model else [])
        own += [f"query.cold_start={_base(name)}"] if _base(name) in early else []
        own += _equal_unless(plain, strategy, model or plain.query.model)
        found.append(Arm(name, (*shared, *own, *([head] if name in evidential else []))))
    chance = (*shared, *_equal_unless(plain, "random", plain.query.model))  # no randomness has scores to weigh
    if evidential and plain.network.head != "evidential":
        found.append(Arm(TWIN, (*chance, "query.strategy=random_fg", head)))
    chance = (*chance, "query.strategy=random", *(["query.cold_start=random"] if early else []))
    everything = ("budget.cold_start=1000000", "budget.per_cycle=0", "federation.cycles=1", "federation.quorum=1", *PROMPT)
    found += [Arm(ALL_LABELS, (*chance, *everything)), Arm(ALONE, (*chance, "federation.min_sites=1"), alone=True)]
    _check(config, overrides, found)
    return found


def _equal_unless(plain: Run, strategy: str, model: str) -> list[str]:
    """The same budget for every site, where the configuration's rule needs what a strategy does not have."""
    unfit = {
        "coordinated": strategy not in COORDINATED,
        "adaptive": incomparable(strategy, model=model) is not None,
    }
    return ["budget.rule=fixed"] if unfit.get(plain.budget.rule) else []


def _never_chooses(plain: Run, idle: Sequence[str]) -> str:
    return (
        f"{', '.join(idle)}: no strategy ever chooses here, with federation.cycles = {plain.federation.cycles} and "
        f"budget.per_cycle = {plain.budget.per_cycle}, since what is bought after the last cycle nothing trains on. Take two "
        "cycles or more, and a budget, e.g. --set federation.cycles=5 --set budget.per_cycle=2"
    )


def reference_of(arm: str, among: Container[str]) -> str:
    """What an arm has to beat: random_fg, with its own head where that has been run."""
    needs = STRATEGIES[_base(arm)].needs if _base(arm) in STRATEGIES else ()
    return TWIN if "evidential head" in needs and TWIN in among else "random_fg"


def _base(name: str) -> str:
    """The strategy in `feal+stochastic`, or `entropy@local`."""
    return name.partition("@")[0].split("+")[0]


def _fault_of(name: str) -> str | None:
    strategy, at, model = name.partition("@")
    if at and model not in MODELS:
        return f"{name!r}: after an @ comes whose prediction is scored, one of {', '.join(MODELS)}"
    fault = fault_of(strategy)
    if fault is None and at and (asks := _fixed_models(strategy)):
        return f"{name!r}: {strategy} asks {asks}, whatever stands after an @"
    return fault


def _fixed_models(strategy: str) -> str | None:
    """What a strategy asks that has no choice of whose prediction is scored; None where it has."""
    needs = STRATEGIES[_base(strategy)].needs
    fixed = {"local model": "both models", "training alone": "the federation's model and one of its own"}
    return next((fixed[need] for need in needs if need in fixed), None) if "model" in needs else "no model"


def _check(config: Path, overrides: Sequence[str], arms: Sequence[Arm]) -> None:
    """Whether every arm's configuration loads, and tells what a comparison reads."""
    faults: list[Fault] = []
    for arm in arms:
        try:
            run = run_of(config, overrides, arm, seed=0)
            check_query(run)
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
