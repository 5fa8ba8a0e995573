"""What averaging costs in Dice: a federated run on ACDC against central training on the same labelled slices.

    WARDROUND_DATA=/path/to/data python benchmarks/quality.py [--seeds 3] [--rounds 40]

Both sides take the same number of gradient steps in all (sites × rounds × 40, batch 8, 64 px), start from the same
weights, and are tested on the same held-out patients of each site. The sites' slices are drawn at random, per seed.
Five sites train side by side, so a federated model has behind it a fifth of the steps that the central one took one
after the other: with few rounds this compares a model half trained with a finished one (at 96 px, 12 rounds of 20 steps:
.57 and .72; 20 of 40: .67 and .71), so there are enough for both to be finished.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from common import report

from client.evaluate import evaluate
from client.plan import Plan, network_with
from client.site import Site, Slices
from configs.load import load
from server.app import initial_weights, settings_for_sites
from server.report_data import learning_curve
from simulation.run import simulate
from strategies.semi.augment import augment
from strategies.semi.losses import supervised

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "acdc.toml"
STEPS, BATCH, LABELS = 40, 8, 16


def central(folder: Path, *, steps: int) -> float:
    """Test Dice, mean over sites, after `steps` steps on all the sites' labelled slices together."""
    run = load(folder / "config.toml")
    plan = Plan.read(settings_for_sites(run))
    images, labels = [], []
    workspaces = sorted((folder / "sites").iterdir())
    for workspace in workspaces:
        with Site(workspace) as site:
            slices, cases = Slices(site, plan.preprocess), site.store.cases("labelled")
            images.append(slices.take(cases))
            labels.append(slices.labels(cases).long())
    pool, truth = torch.cat(images), torch.cat(labels)
    network = network_with(plan, initial_weights(run)).train()
    optimiser = torch.optim.AdamW(network.parameters(), run.train.learning_rate, weight_decay=run.train.weight_decay, fused=True)
    generator = torch.Generator().manual_seed(run.seed)
    for _ in range(steps):
        rows = torch.randint(len(pool), (BATCH,), generator=generator)
        view, target = augment(pool[rows], truth[rows], generator=generator, flip=run.train.flip)
        optimiser.zero_grad(set_to_none=True)
        supervised(network(view), target).backward()
        optimiser.step()
    dice = []
    for workspace in workspaces:
        with Site(workspace) as site:
            sums = evaluate(site, network.to(site.device), plan.preprocess, role="test", classes=len(plan.classes))
            if sums is not None and (mean := sums.mean()) is not None:
                dice.append(mean)
    return statistics.mean(dice)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ours, theirs = [], []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as name:
            options = [f"seed={seed}", 'train.framework="supervised"', "federation.cycles=1", f"budget.cold_start={LABELS}"]
            options += [f"train.rounds_per_cycle={arguments.rounds}", f"train.local_steps={STEPS}"]
            options += ["network.name=unet_small", "preprocess.size_px=64", "save_pictures=false", "threads=1"]
            folder = simulate(CONFIG, options, out=Path(name) / "run")
            dice = learning_curve(folder)[-1].dice_test
            assert dice is not None
            ours.append(dice)
            sites = len(list((folder / "sites").iterdir()))
            theirs.append(central(folder, steps=sites * arguments.rounds * STEPS))
        print(f"seed {seed}: federated {ours[-1]:.3f}, central {theirs[-1]:.3f}")
    loss = statistics.mean(theirs) - statistics.mean(ours)
    report(
        "quality",
        federated=[round(d, 4) for d in ours],
        central=[round(d, 4) for d in theirs],
        loss=round(loss, 4),
        goal=f"mean federated >= mean central - 0.03, {arguments.rounds} rounds of {STEPS} steps, 64 px, unet_small",
        met=loss <= 0.03,
    )


if __name__ == "__main__":
    main()
