"""Which models score a site's pool: the federation's, its own, or one that has seen nothing but this site's labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from client.look import class_pixels
from client.models import load_models
from client.plan import Plan, network_for, network_with
from client.predict import batches
from client.preprocess import inside
from client.site import Site, Slices
from client.train import When, train
from strategies.global_model import parts_of
from strategies.networks import probabilities
from strategies.query.fairfal import balance, divergence, global_model_scores
from strategies.query.strategy import Model, Strategy
from strategies.records import Case
from strategies.wire import Request

_COMMITTEES: dict[str, tuple[Model, ...]] = {
    "global": ("global",),
    "local": ("local",),
    "both": ("global", "local"),
    "switch": ("global", "local"),
}


def committee(
    site: Site, plan: Plan, strategy: Strategy, request: Request, *, of_federation: nn.Module
) -> dict[Model, nn.Module] | None:
    """The models that score, in the order in which they are read; empty where the strategy asks none.

    None where one is missing: the site was away in the cycle's last round, or has no label to train on. Who scored without it, or
    with one that the federation has left rounds behind, would be another strategy.

    Args:
        of_federation: the global model, on the site's device.
    """
    if not strategy.needs_model:
        return {}
    wanted = strategy.models or _COMMITTEES[plan.query.model]
    models: dict[Model, nn.Module] = {"global": of_federation}
    if "local" in wanted:
        local = load_models(site.workspace / "models" / "local.safetensors")
        if local is None or not local.is_of(run=request.run, cycle=request.cycle, round=plan.train.rounds_per_cycle):
            return None
        models["local"] = network_with(plan, parts_of(local.model).specialist).to(site.device)
    if "local_only" in wanted:
        if not site.store.counts().get("labelled"):
            return None
        models["local_only"] = _trained_alone(site, plan, cycle=request.cycle)
    models = {name: models[name] for name in wanted}
    if plan.switches(strategy):
        heard = _heard(site, plan, models, mean_balance=request.mean_balance)
        models = {heard: models[heard]}
    return models


def _trained_alone(site: Site, plan: Plan, *, cycle: int) -> nn.Module:
    """A model from the run's initial weights that has learned from this site's labels alone, in as many steps as a cycle has."""
    steps = plan.train.local_steps * plan.train.rounds_per_cycle
    alone = plan.model_copy(
        update={
            "train": plan.train.model_copy(update={"framework": "supervised", "local_steps": steps, "proximal_mu": 0.0}),
            "sam": plan.sam.model_copy(update={"enabled": False}),
        }
    )
    initial = {name: tensor.numpy() for name, tensor in network_for(alone).state_dict().items()}
    # round 0: no round of the run has that number, so that its draws are its own
    done = train(site, alone, When(cycle, 0, 0, steps), initial, helpers={})
    return network_with(alone, parts_of(done.model).specialist).to(site.device)


def _heard(site: Site, plan: Plan, models: Mapping[Model, nn.Module], *, mean_balance: float) -> Model:
    """FairFAL's switch, with the classes that either model finds in the pool."""
    shares = {name: _shares(site, plan, network) for name, network in models.items()}
    if mean_balance < 0:  # no site tells: then its own
        mean_balance = own_balance(site, plan, site.store.cases("labelled"))
    apart = divergence(shares["global"], shares["local"])
    heard: Model = "global" if global_model_scores(divergence=apart, mean_balance=mean_balance) else "local"
    site.log.info(
        "the %s model scores the pool: predictions differ by %.2f (0 to 1), classes are level by %.2f", heard, apart, mean_balance
    )
    return heard


def own_balance(site: Site, plan: Plan, cases: Sequence[Case]) -> float:
    """How level classes are in labels of this site: foreground classes, or with a single one it and the background."""
    counts = class_pixels(Slices(site, plan.preprocess), cases, classes=len(plan.classes)).sum(axis=0)
    return balance(counts[1:].tolist() if len(counts) > 2 else counts.tolist())


def _shares(site: Site, plan: Plan, network: nn.Module) -> list[float]:
    """The share of each foreground class in what a model predicts in the pool; of all pixels with a single class."""
    slices, pixels = Slices(site, plan.preprocess), np.zeros(len(plan.classes) + 1)
    for part, images in batches(slices, site.store.cases("unlabelled"), device=site.device):
        classes = probabilities(network, images).max(dim=1).indices.cpu()
        for case, said in zip(part, classes, strict=True):
            rows, columns = inside(slices.image(case.image).place)
            pixels += torch.bincount(said[rows, columns].flatten(), minlength=len(pixels)).numpy()
    counted = pixels[1:] if len(pixels) > 2 else pixels
    shares: list[float] = (counted / max(counted.sum(), 1)).tolist()
    return shares
