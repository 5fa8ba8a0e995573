"""The loop of federated active learning, as in the algorithm box of `docs/architecture.md`.

Every step takes the state and gives the next one with the events to record; the ledger does each once and checkpoints
after it, so that a run killed anywhere goes on where it was. A step that meets a missing site goes on without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from configs.schema import Run
from server.checkpoint import Ledger, State, save_weights
from server.history import Event, event
from server.kinds import find_kinds
from server.sites import FederationFault, Problems, Sites
from strategies import wire
from strategies.aggregate import AGGREGATES, UpdateError, server_step
from strategies.global_model import parts_of
from strategies.query.budget import BUDGETS
from strategies.query.coordinate import fill_up
from strategies.records import Assessment, Demand, Weights
from strategies.sam_parts import SIZES

IN_EVERY_ROUND = ("supervised", "total")
"""Loss terms that a site which shares sums can only be silent about because it withholds them: null, not left out."""


class Progress(Protocol):
    """Where the run tells people how far it is."""

    def step(self, text: str, *, done: int, total: int) -> None:
        """`done` of `total` steps are behind us, `text` says what comes now."""


@dataclass(frozen=True)
class Federation:
    """What the steps share and never change."""

    run: Run
    sites: Sites
    initial: Callable[[], Weights]
    folder: Path
    progress: Progress

    @property
    def steps_a_cycle(self) -> int:
        return self.run.train.rounds_per_cycle * self.run.train.local_steps


Step = Callable[..., tuple[State, list[Event]]]


def run_rounds(federation: Federation, ledger: Ledger) -> None:
    """The whole run. Each `once` is one durable step."""
    run = federation.run

    def once(step: Step, **where: int) -> None:
        federation.progress.step(_said(step, **where), done=ledger.asked - 1, total=_steps(run))
        ledger.once(lambda state: step(federation, state, **where))

    once(grant, cycle=0)
    once(annotate, cycle=0)  # before any training: the cold start
    for cycle in range(1, run.federation.cycles + 1):
        for number in range(1, run.train.rounds_per_cycle + 1):
            once(train, cycle=cycle, round=number)
        once(assess, cycle=cycle)
        if cycle < run.federation.cycles:  # no label is bought that nothing trains on
            once(grant, cycle=cycle)
            once(annotate, cycle=cycle)


def grant(federation: Federation, state: State, *, cycle: int) -> tuple[State, list[Event]]:
    """How much each site may ask for: the cold start before any training, the cycle's budget after it."""
    budget = federation.run.budget
    pools = {name: _pool(federation.run, state, name) for name in federation.sites.names}
    rule, cases = ("fixed", budget.cold_start) if cycle == 0 else (budget.rule, budget.per_cycle)
    if budget.rule == "coordinated" and (cycle or federation.run.query.cold_start != "random"):
        return _share_kinds(federation, state, cycle=cycle, per_site=cases)
    grants = BUDGETS[rule](pools, per_site=cases, floor=budget.floor)
    sites = {name: {"granted": cases} for name, cases in grants.items()}
    told = event("grant", cycle=cycle, unit=federation.run.query.unit, sites=sites)
    return replace(state, grants=grants, kinds={}, kinds_cycle=-1, centroids=()), [told]


def _pool(run: Run, state: State, name: str) -> Demand | None:
    """What is known of a site's pool in the units of its grant: every answer counts slices, assessments volumes and patients."""
    cases = state.unlabelled.get(name)
    units = cases if run.query.unit == "slice" else state.units.get(name)
    return None if cases is None or units is None else Demand(cases, units, tuple(state.quantiles.get(name, ())))


def _share_kinds(federation: Federation, state: State, *, cycle: int, per_site: int) -> tuple[State, list[Event]]:
    """`per_site` cases for each site that tells of its kinds, to those that have most of each; the others keep `per_site`."""
    run, problems = federation.run, Problems()
    strategy = run.query.strategy if cycle else run.query.cold_start
    kinds = find_kinds(
        federation.sites,
        problems,
        features=SIZES[run.sam.size].prompt_dim,
        labels=state.labels_total or 0,
        per_site=per_site,
        covering=strategy == "probcover",
        seed=run.seed,
        cycle=cycle,
    )
    by_kind = {name: len(given) for name, given in kinds.of_site.items()}
    silent = [name for name in federation.sites.names if name not in by_kind]  # away, or it shares no sums, or has few patients
    grants = fill_up(by_kind, state.unlabelled, total=per_site * len(by_kind))  # kinds that nobody has more of leave a rest
    grants |= {name: fill_up({name: 0}, state.unlabelled, total=per_site)[name] for name in silent}
    sites = {
        name: {"granted": grants[name], "by_kind": by_kind.get(name, 0), **kinds.traffic.get(name, {})} for name in sorted(grants)
    }
    places = kinds.centroids.tolist()
    state = replace(state, grants=grants, kinds=dict(kinds.of_site), kinds_cycle=cycle, centroids=places)
    return state, [event("grant", cycle=cycle, sites=sites), *problems.events("grant", cycle=cycle, round=0)]


def annotate(federation: Federation, state: State, *, cycle: int) -> tuple[State, list[Event]]:
    """Each site picks its own cases and puts them on its experts' worklist; wait for the quorum of labels or the deadline."""
    settings = federation.run.federation
    problems = Problems()
    told: dict[str, dict[str, Any]] = {}
    waiting = sorted(name for name in state.grants if name in federation.sites.names)
    for poll in range(settings.deadline_polls):
        if poll and settings.poll_seconds:
            time.sleep(settings.poll_seconds)
        state = replace(state, tick=state.tick + 1)
        problems = Problems(spent=problems.spent)
        _ask_for_labels(federation, state, {name: state.grants[name] for name in waiting}, told, problems, cycle=cycle)
        waiting = [name for name in waiting if name not in told or told[name]["outstanding"]]
        if not waiting or (_quorum(told, settings.quorum) and not problems.late):
            break
    for name in problems.spent.keys() - {*problems.refused, *problems.late}:  # silent in an earlier poll, here in the last
        told[name] |= {key: told[name][key] + spent for key, spent in problems.spent[name].items()}
    silent = [name for name in waiting if name not in told and state.grants[name]]
    missed = {name: {**state.owed.get(name, {}), str(cycle): state.grants[name]} for name in silent}
    state = replace(_with_counts(state, told), owed={**state.owed, **missed}, late=sorted(problems.late))
    line = event("annotate", cycle=cycle, sites=dict(sorted(told.items())), labels_total=state.labels_total)
    return state, [line, *problems.events("annotate", cycle=cycle, round=0)]


def _catch_up(federation: Federation, state: State, *, round: int) -> tuple[State, list[Event]]:
    """Repeat the requests that sites missed, unless they are still silent; who had done one answers from its disk.

    Before a round and within its step, so that what arrives is trained on, also when the step is done again.
    """
    back = sorted(name for name in state.owed if name in federation.sites.names and name not in state.late)
    events: list[Event] = []
    for cycle in sorted({int(cycle) for name in back for cycle in state.owed[name]}):
        grants = {name: state.owed[name][str(cycle)] for name in back if str(cycle) in state.owed[name]}
        state = replace(state, tick=state.tick + 1)
        told: dict[str, dict[str, Any]] = {}
        problems = Problems()
        _ask_for_labels(federation, state, grants, told, problems, cycle=cycle)
        owed = {
            name: {c: n for c, n in cycles.items() if name not in told or c != str(cycle)} for name, cycles in state.owed.items()
        }
        state = replace(_with_counts(state, told), owed={name: cycles for name, cycles in owed.items() if cycles})
        if told:
            sites = dict(sorted(told.items()))
            events.append(event("annotate", cycle=cycle, round=round, sites=sites, labels_total=state.labels_total))
        events += problems.events("annotate", cycle=cycle, round=round)
    return state, events


def _ask_for_labels(
    federation: Federation,
    state: State,
    grants: Mapping[str, int],
    told: dict[str, dict[str, Any]],
    problems: Problems,
    *,
    cycle: int,
) -> None:
    """Put the grants of a cycle to their sites, or poll for their labels; what they tell is added to `told`."""
    progress = _progress(federation.run, cycle=cycle)
    kinds = state.kinds if cycle == state.kinds_cycle else {}
    requests = {
        name: wire.Request(cycle=cycle, tick=state.tick, grant=cases, progress=progress, kinds=tuple(kinds.get(name, ())))
        for name, cases in grants.items()
    }
    places = wire.pack_weights({"centroids": np.array(state.centroids)}) if kinds else None
    choosing = {name for name, request in requests.items() if request.kinds}  # centroids are means of what these sites told
    for answer in federation.sites.ask(
        wire.ANNOTATE, requests, problems, unpack=wire.unpack_annotation, weights=places, weights_for=choosing
    ):
        numbers = vars(answer.record) | answer.traffic
        before = told.get(answer.site, {})
        for key in ("bytes_up", "bytes_down", "seconds"):
            numbers[key] = _added(before.get(key, 0), numbers[key])
        told[answer.site] = {key: value for key, value in numbers.items() if key != "name"}


def _with_counts(state: State, told: Mapping[str, Mapping[str, Any]]) -> State:
    """The state with what sites told of their labels and pools."""
    return replace(
        state,
        labelled={**state.labelled, **{name: numbers["labelled"] for name, numbers in told.items()}},
        unlabelled={**state.unlabelled, **{name: numbers["unlabelled"] for name, numbers in told.items()}},
        balance={**state.balance, **{name: numbers.get("balance") for name, numbers in told.items()}},
    )


def train(federation: Federation, state: State, *, cycle: int, round: int) -> tuple[State, list[Event]]:
    """One round: every site trains from the global weights, and their updates become one as they arrive.

    Updates weigh by labelled cases, unless a site withholds its number: then all weigh alike, or that site would count
    for one case beside others' hundreds.
    """
    run = federation.run
    fresh = run.federation.restart == "initial"
    if fresh and round == 1:
        state = replace(state, weights=federation.initial(), momenta={})
    state, caught_up = _catch_up(federation, state, round=round)
    first = (round - 1) * run.train.local_steps
    everything = federation.steps_a_cycle
    if run.federation.restart == "continue":
        first, everything = first + (cycle - 1) * federation.steps_a_cycle, everything * run.federation.cycles
    state = replace(state, tick=state.tick + 1)
    request = wire.Request(cycle=cycle, round=round, tick=state.tick, step=first, total_steps=everything, fresh=fresh)
    aggregate = AGGREGATES[run.federation.aggregate](state.weights)
    problems = Problems()
    told: dict[str, dict[str, Any]] = {}
    labelled: dict[str, int | None] = {}
    alike = run.federation.weighting == "equal" or any(count is None for count in state.labelled.values())
    for answer in federation.sites.ask(
        wire.TRAIN,
        dict.fromkeys(federation.sites.names, request),
        problems,
        unpack=wire.unpack_update,
        weights=wire.pack_weights(state.weights),
    ):
        update = answer.record
        try:
            aggregate.add(update.update, 1.0 if alike or update.labelled is None else float(update.labelled))
        except UpdateError:  # the site's own check should have found it
            problems.refused[answer.site] = {"code": "not-finite", "reference": "coordinator"}
            problems.spend(answer.site, down=answer.bytes_down, up=answer.bytes_up)
            continue
        labelled[answer.site] = update.labelled
        told[answer.site] = {
            "losses": None if update.labelled is None else {**dict.fromkeys(IN_EVERY_ROUND), **update.losses},
            "labelled": update.labelled,
            "sam_trust": None if update.trust is None else dict(zip(run.class_names, update.trust, strict=True)),
            "labels_trained": update.labels_trained,
            "unlabelled": update.unlabelled,
            "minutes": update.minutes,
            "seconds": update.seconds,
            **answer.traffic,
        }
    _enough(federation, told, problems, step="train")
    weights, momenta = server_step(
        state.weights,
        aggregate.result(),
        state.momenta,
        optimiser=run.federation.server_optimiser,
        learning_rate=run.federation.server_learning_rate,
    )
    state = replace(state, weights=weights, momenta=momenta, labelled={**state.labelled, **labelled})
    line = event("train", cycle=cycle, round=round, sites=dict(sorted(told.items())), labels_total=state.labels_total)
    state = replace(state, late=sorted(problems.late))
    return state, [*caught_up, line, *problems.events("train", cycle=cycle, round=round)]


def assess(federation: Federation, state: State, *, cycle: int) -> tuple[State, list[Event]]:
    """Every site evaluates the global model on its held-out patients and scores its pool; gated sums come back."""
    problems = Problems()
    told: dict[str, dict[str, Any]] = {}
    known = [value for value in state.balance.values() if value is not None]
    request = wire.Request(
        cycle=cycle,
        tick=state.tick,
        progress=_progress(federation.run, cycle=cycle),
        mean_balance=float(np.mean(known)) if known else -1.0,
    )
    assessments: dict[str, Assessment] = {}
    for answer in federation.sites.ask(
        wire.ASSESS,
        dict.fromkeys(federation.sites.names, request),
        problems,
        unpack=wire.unpack_assessment,
        weights=wire.pack_weights(parts_of(state.weights).specialist),
    ):
        assessed = answer.record
        assessments[answer.site] = assessed
        told[answer.site] = {
            "dice": assessed.validation.mean() if assessed.validation else None,
            "dice_by_class": assessed.validation.by_class() if assessed.validation else None,
            "dice_test": assessed.test.mean() if assessed.test else None,
            "dice_by_class_test": assessed.test.by_class() if assessed.test else None,
            "unlabelled": assessed.demand.unlabelled if assessed.demand else None,
            "seconds": assessed.seconds,
            **answer.traffic,
        }
    _enough(federation, told, problems, step="assess")
    numbers = {
        "dice_mean": _mean(told, "dice"),
        "dice_worst": _worst(told, "dice"),
        "dice_mean_test": _mean(told, "dice_test"),
        "dice_worst_test": _worst(told, "dice_test"),
    }
    pools = {name: a.demand.unlabelled if a.demand else None for name, a in assessments.items()}
    units = {name: a.demand.units if a.demand else None for name, a in assessments.items()}
    quantiles = {name: list(a.demand.quantiles) if a.demand else [] for name, a in assessments.items()}
    state = replace(
        state,
        unlabelled={**state.unlabelled, **pools},
        units=units,
        quantiles={**state.quantiles, **quantiles},
        last=numbers,
    )
    dice = numbers["dice_mean"]
    if dice is not None and (state.best_dice is None or dice > state.best_dice):
        save_weights(federation.folder / "weights" / "best.safetensors", state.weights)
        state = replace(state, best_dice=dice, best_cycle=cycle)
    sites = dict(sorted(told.items()))
    line = {**event("assess", cycle=cycle, sites=sites, labels_total=state.labels_total), **numbers}
    return state, [line, *problems.events("assess", cycle=cycle, round=0)]


def _progress(run: Run, *, cycle: int) -> float:
    """Where a cycle's query is among those that a model answers: 0 after the first cycle, 1 at the last, before the final one."""
    return min(1.0, max(0.0, (cycle - 1) / (run.federation.cycles - 2))) if run.federation.cycles > 2 else 0.0


def _quorum(told: dict[str, dict[str, Any]], quorum: float) -> bool:
    """Whether enough of the requested labels are there; nothing can be waited for where no site tells."""
    shared = [n for n in told.values() if n["outstanding"] is not None]
    asked = sum(n["outstanding"] + n["received"] for n in shared)
    return bool(sum(n["received"] for n in shared) >= quorum * asked)


def _enough(federation: Federation, told: dict[str, Any], problems: Problems, *, step: str) -> None:
    needed = federation.run.federation.min_sites
    if len(told) >= max(1, needed):
        return
    reasons = [f"{name}: {what['code']} ({what['reference']})" for name, what in sorted(problems.refused.items())]
    reasons += [f"{name}: no reply in {federation.run.federation.reply_timeout_s:g} s" for name in sorted(problems.late)]
    raise FederationFault(
        f"{step}: {len(told)} of {len(federation.sites.names)} sites answered, {needed} are needed. "
        + "; ".join(reasons)
        + f". {problems.remedy}"
    )


def _mean(told: dict[str, dict[str, Any]], key: str) -> float | None:
    values = [numbers[key] for _, numbers in sorted(told.items()) if numbers[key] is not None]
    return float(np.mean(values)) if values else None


def _worst(told: dict[str, dict[str, Any]], key: str) -> float | None:
    values = [numbers[key] for numbers in told.values() if numbers[key] is not None]
    return float(min(values)) if values else None


def _added(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _said(step: Step, *, cycle: int, round: int = 0) -> str:
    """The step in words, for the progress display."""
    where = f"cycle {cycle}" if cycle else "cold start"
    return f"{where} · {step.__name__}" + (f" {round}" if round else "")


def _steps(run: Run) -> int:
    """Durable steps of the whole run."""
    return run.federation.cycles * (run.train.rounds_per_cycle + 3)
