"""What the same labelled slices give where nothing is federated: a bare loop on all of them, as if they could be pooled.

The federation is simulated up to its first request, so that each site has the slices that it has in the federated run of
the same seed. One network then sees, at each step, as many of them as all sites together see at one of theirs.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import semi_runs
import torch
from results import Ended, Job, patient_dice, run_job
from torch import Tensor, nn

from client.plan import Plan, network_for
from client.site import Site, Slices
from configs.load import load
from server.app import settings_for_sites
from strategies.randomness import numpy_rng, torch_generator
from strategies.semi.augment import augment
from strategies.semi.losses import supervised

NOT_FEDERATED = ("train.rounds_per_cycle=1", "train.local_steps=1")
"""The sites ask for their first labels, and one step ends the run."""


def pooled(of: Job) -> Job:
    """Of a supervised job: the federation that only asks for labels, for `run_pooled`."""
    return replace(of, name=f"pooled-{of.name}", overrides=(*of.overrides, *NOT_FEDERATED))


def run_pooled(of: Job) -> None:
    """Run a seeded job of `pooled` and train on what its sites have; its record is of that training."""
    run_job(of, semi_runs.scale.page.stem, more=_trained)


def _trained(folder: Path, ended: Ended) -> Ended:
    begun = time.monotonic()
    plan = Plan.read(settings_for_sites(load(folder / "config.toml")))
    drawn = [_labelled(workspace, plan) for workspace in sorted((folder / "sites").iterdir())]
    images, labels = (torch.cat(part) for part in zip(*drawn, strict=True))
    steps, batch = semi_runs.scale.rounds * semi_runs.scale.local_steps, semi_runs.scale.batch * len(drawn)
    network = bare_loop(images, labels, plan, steps=steps, batch=batch)
    patients = {"validation": patient_dice(folder, "validation", network)}
    return replace(
        ended,
        command=f"{ended.command}, then {steps} steps of {batch} images on the sites' slices together",
        seconds=time.monotonic() - begun,
        dice=statistics.mean(patients["validation"].values()),
        dice_test=None,
        worst_test=None,
        curve=[],
        patients=patients,
    )


def _labelled(workspace: Path, plan: Plan) -> tuple[Tensor, Tensor]:
    """A site's labelled slices, (N, K, H, W) float32, and their masks, (N, H, W) int64."""
    with Site(workspace) as site:
        cases, slices = site.store.cases("labelled"), Slices(site, plan.preprocess)
        return slices.take(cases).to(site.device), slices.labels(cases).to(site.device, torch.int64)


def bare_loop(images: Tensor, labels: Tensor, plan: Plan, *, steps: int, batch: int) -> nn.Module:
    """A new network after `steps` of AdamW on `batch` augmented images of (N, K, H, W), in shuffled passes."""
    rng, generator = numpy_rng(plan.seed, "pooled", "batches"), torch_generator(plan.seed, "pooled", "augment")
    order = np.concatenate([rng.permutation(len(images)) for _ in range(-(-steps * batch // len(images)))])
    network, train = network_for(plan).to(images.device).train(), plan.train
    optimiser = torch.optim.AdamW(network.parameters(), train.learning_rate, weight_decay=train.weight_decay, fused=True)
    for rows in torch.as_tensor(order[: steps * batch], device=images.device).view(steps, batch):
        seen, truth = augment(images[rows], labels[rows], generator=generator, flip=train.flip)
        optimiser.zero_grad(set_to_none=True)
        supervised(network(seen), truth).backward()
        optimiser.step()
    return network.eval()
