"""The Flower ClientApp of one hospital: handlers unpack a message, call the site, pack a reply.

Every handler can be called again with the same message and does the work once. The gate wraps them all: nothing of a
reply leaves that `strategies/wire.py` does not list, and no exception's text ever does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from client.allocator import keep_freed_memory
from client.annotate.oracle import none_read_in_vain
from client.annotate.worklist import carry_out, collect
from client.committee import committee, own_balance
from client.egress import EgressLog
from client.evaluate import evaluate
from client.faults import SiteFault
from client.gate import Policy, make_gate
from client.kinds import told
from client.models import LocalModels, load_models, save_models
from client.pictures import Pictures
from client.plan import Plan, network_with
from client.sam_checkpoint import identity
from client.sam_teacher import SAM
from client.score import demand_of, save_scores, score, strategy_of, unscored
from client.site import Site, site_log, workspace_of
from client.stop import blaming, stopping_for_good
from client.store import ImageRow, Told
from client.train import When, train
from client.update import update_of
from configs.load import load_site
from strategies import wire
from strategies.query.units import unit_of
from strategies.records import Annotation, Assessment, Joined, SiteUpdate

Answer = Callable[[Site, Plan, wire.Request, Message], RecordDict]


def join(site: Site, plan: Plan, request: wire.Request, message: Message) -> RecordDict:
    """Take the images in and say who we are and how many cases there are."""
    site.take_in(plan.preprocess)
    site.store.check_conserved()
    counts = site.store.counts()
    shared = site.shares_sums
    held_out = counts.get("validation", 0) + counts.get("test", 0)
    return wire.pack_joined(
        Joined(
            name=site.name,
            protocol=wire.PROTOCOL,
            classes=tuple(plan.classes),
            sam=identity(site.settings.sam_checkpoint) if plan.needs_one_sam else "",
            cases=sum(counts.values()) - held_out if shared else None,
            labelled=counts.get("labelled", 0) if shared else None,
            unlabelled=counts.get("unlabelled", 0) if shared else None,
        )
    )


def train_round(site: Site, plan: Plan, request: wire.Request, message: Message) -> RecordDict:
    """Train a round; a round that is already done is answered from the site's disk."""
    weights = wire.unpack_weights(message.content.array_records["weights"])
    path = site.workspace / "models" / "local.safetensors"
    models = load_models(path)
    if models is None and path.exists():
        site.log.warning(
            "the weights kept from the last round can't be read: this round starts without what stays at a site (a teacher)"
        )
    if models is None or not models.is_of(run=request.run, cycle=request.cycle, round=request.round):
        collect(site, plan, run=request.run, cycle=request.cycle, tick=request.tick)
        if not site.store.counts().get("labelled"):
            raise SiteFault("nothing-labelled", _why_unlabelled(site))
        mine = models is not None and models.run == request.run and not (request.fresh and models.cycle != request.cycle)
        helpers = dict(models.helpers) if models is not None and mine else {}
        if models is not None and models.cycle != request.cycle:
            helpers.pop(SAM, None)
        when = When(request.cycle, request.round, request.step, request.total_steps)
        done = train(site, plan, when, weights, helpers=helpers, since=0 if models is None else models.step)
        numbers = {
            "labelled": done.labelled,
            "labels_trained": done.labelled,
            "unlabelled": done.unlabelled,
            "seconds": done.seconds,
            "losses": done.losses,
            "patients": done.patients,
            "trust": done.trust,
            "judges": done.judges,
        }
        models = LocalModels(
            request.run,
            request.cycle,
            request.round,
            request.step,
            done.model,
            done.helpers,
            reply=numbers,
            settings=plan.model_dump(mode="json"),
            total_steps=request.total_steps,
        )
        save_models(path, models)
    update = update_of(models.model, weights, max_norm=plan.train.max_update_norm)
    if not site.shares_sums:
        return wire.pack_update(SiteUpdate(site.name, update))
    spent = site.store.tell(request.run, tick=request.tick, min_patients=site.settings.min_patients)
    return wire.pack_update(SiteUpdate(site.name, update, **_told(site, models.reply), **_effort(spent)))


def _why_unlabelled(site: Site) -> str:
    waiting = len(site.store.open_requests())
    if waiting:
        return (
            f"{site.name} has no label to train on and sits out this round: {waiting} of its cases wait for an expert. "
            f"`wardround site worklist {site.workspace}` lists them; it takes part once one is answered"
        )
    return (
        f"{site.name} has no label to train on and sits out this round: no case has been requested here yet. The run's "
        "budget.cold_start asks for some before the first round, and asks again where a site was away then; see above in "
        "this log why it was not carried out"
    )


def _told(site: Site, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """What a round's reply may say beside the update: losses and SAM's trust only where enough patients stand behind them.

    Who stood behind them in training counts, and is kept with them: an answer that is given again is of no more patients.
    """
    least = site.settings.min_patients
    patients = {name: numbers.get("patients", {}).get(name, 0) for name in numbers["losses"]}
    losses = {name: mean for name, mean in numbers["losses"].items() if patients[name] >= least}
    if len(losses) < len(numbers["losses"]):
        losses.pop("total", None)  # from it and the others the missing one could be worked out
    judges = numbers.get("judges", 0)
    return {
        **{name: value for name, value in numbers.items() if name not in ("judges", "patients")},
        "losses": losses,
        "losses_patients": min((patients[name] for name in losses), default=None),
        "trust": numbers.get("trust") if judges >= least else None,
        "trust_patients": judges if judges >= least else None,
    }


def _effort(told: Told | None) -> dict[str, Any]:
    """What labels have cost that may be told of, in all, and the fewest patients behind a difference of two answers."""
    return {} if told is None else {"minutes": round(told.minutes), "patients": told.patients}


def assess(site: Site, plan: Plan, request: wire.Request, message: Message) -> RecordDict:
    """Evaluate the global model on held-out patients and score the pool; only gated sums go back."""
    started = time.monotonic()
    weights = wire.unpack_weights(message.content.array_records["weights"])
    network = network_with(plan, weights).to(site.device)
    sums = {}
    pictures = Pictures(site) if site.settings.save_pictures else None
    if site.shares_sums or pictures:
        by_volume: dict[str, list[float]] = {}

        def seen(image: ImageRow, truth: NDArray[np.uint8], mask: NDArray[np.uint8], dice: NDArray[np.float64]) -> None:
            by_volume[image.id] = dice.tolist()
            if pictures and image.role == "test":
                pictures.see(image, truth, mask)

        for role in ("validation", "test"):
            sums[role] = evaluate(site, network, plan.preprocess, role=role, classes=len(plan.classes), seen=seen)
        site.store.set_dice(request.run, request.cycle, by_volume)
    if pictures:
        pictures.write(request.cycle)
    strategy = strategy_of(plan, progress=request.progress)
    models = committee(site, plan, strategy, request, of_federation=network)
    if models is None:
        site.log.warning(f"cycle {request.cycle}: {plan.query.strategy} needs this site's own model, and none was trained last")
        scores = unscored(site.store.cases("unlabelled"))
    else:
        scores = score(site, plan, strategy, models, cycle=request.cycle)
        save_scores(site.workspace / "scores", scores, run=request.run, cycle=request.cycle)
    if not site.shares_sums:
        return wire.pack_assessment(Assessment(site.name))
    units = len({unit_of(case, plan.query.unit) for case in site.store.cases("unlabelled")})
    shared = scores if plan.tells_quantiles(request.cycle) else replace(scores, values=None)
    demand = demand_of(shared, units=units, min_patients=site.settings.min_patients)
    seconds = time.monotonic() - started
    return wire.pack_assessment(Assessment(site.name, sums["validation"], sums["test"], demand, seconds))


def annotate(site: Site, plan: Plan, request: wire.Request, message: Message) -> RecordDict:
    """Carry out the grant once, then take in the labels that are there; also the poll for labels that have arrived."""
    started = time.monotonic()
    centroids = wire.unpack_weights(message.content.array_records["weights"])["centroids"] if request.kinds else None
    granted = carry_out(
        site,
        plan,
        run=request.run,
        cycle=request.cycle,
        cases=request.grant,
        tick=request.tick,
        progress=request.progress,
        kinds=request.kinds,
        centroids=centroids,
    )
    collect(site, plan, run=request.run, cycle=request.cycle, tick=request.tick)
    if not site.shares_sums:
        return wire.pack_annotation(Annotation(site.name))
    counts = site.store.counts()
    later = site.store.received_after(request.run, tick=request.tick)  # a repeated message is answered as at first
    spent = site.store.tell(request.run, tick=request.tick, min_patients=site.settings.min_patients)
    balance = None
    if spent and plan.tells_balance(strategy_of(plan), request.cycle):
        balance = round(own_balance(site, plan, spent.cases), 2)
    return wire.pack_annotation(
        Annotation(
            site.name,
            granted=granted,
            received=site.store.received(request.run, request.cycle, tick=request.tick),
            outstanding=counts.get("requested", 0) + later,
            labelled=counts.get("labelled", 0) - later,
            unlabelled=counts.get("unlabelled", 0),
            skipped=counts.get("skipped", 0),
            balance=balance,
            seconds=time.monotonic() - started,
            **_effort(spent),
        )
    )


def kinds(site: Site, plan: Plan, request: wire.Request, message: Message) -> RecordDict:
    """A site's sums for finding kinds of cases with the others."""
    sums, patients = told(site, plan, wire.unpack_weights(message.content.array_records["weights"]))
    return wire.pack_kinds(site.name, sums, patients=patients)


def _answered(answer: Answer, message: Message, context: Context) -> Message:
    """Open the workspace, check the request, and pack what `answer` says."""
    try:
        request = wire.unpack_request(message.content)
    except ValueError as error:
        raise SiteFault("bad-request", str(error)) from error
    if request.protocol != wire.PROTOCOL:
        raise SiteFault(
            "protocol-mismatch",
            f"the coordinator speaks protocol {request.protocol}, this site {wire.PROTOCOL}: install the same version",
        )
    with Site(workspace_of(context.node_config, context.run_config)) as site, stopping_for_good(site):
        plan = Plan.read(request.settings)
        if plan.classes != list(site.settings.classes):
            raise SiteFault(
                "classes-mismatch",
                f"the run segments {plan.classes}, site.toml defines {list(site.settings.classes)}: "
                "[classes] of site.toml must name the run's classes in the same order",
            )
        torch.set_num_threads(site.settings.threads)
        keep_freed_memory()
        strategy = plan.query.strategy if request.cycle else f"{plan.query.cold_start} (of the first request)"
        with blaming(strategy), none_read_in_vain(site):
            return Message(answer(site, plan, request, message), reply_to=message)


def _handle(answer: Answer) -> Callable[[Message, Context], Message]:
    """A Flower handler. Ray ships it by value, with all that it names, so it names as little as it can."""

    def handler(message: Message, context: Context) -> Message:
        return _answered(answer, message, context)

    return handler


def policy_of(context: Context) -> Policy:
    """What the gate of this node's site lets through."""
    workspace = workspace_of(context.node_config, context.run_config)
    settings = load_site(workspace / "site.toml")
    return Policy(
        name=settings.name,
        share=settings.share,
        min_patients=settings.min_patients,
        egress=EgressLog(workspace / "egress.jsonl"),
        log=site_log(workspace, settings.name),
        sam=partial(identity, settings.sam_checkpoint),
    )


def make_app() -> ClientApp:
    """The ClientApp with its five messages, behind the gate."""
    made = ClientApp(mods=[make_gate(policy_of)])
    made.query("join")(_handle(join))
    made.train()(_handle(train_round))
    made.query("assess")(_handle(assess))
    made.query("annotate")(_handle(annotate))
    made.query("kinds")(_handle(kinds))
    return made


app = make_app()
