"""What the federation costs: an inline run against a bare PyTorch loop of the same gradient steps on the same tensors.

    python benchmarks/overhead.py [--pairs 5]

5 sites × 3 rounds × 20 steps, batch 8, 128 px, the 1.6 M UNet, one thread count for both. The run's time is that of the
coordinator and all sites: join (reading the images), cold start, training with messages, checkpoints and gate, and one
assessment. The two sides alternate, and the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import report, write_config, write_volumes

from client.plan import Plan
from client.site import Site, Slices
from configs.load import load
from server.app import initial_weights, settings_for_sites
from simulation.run import simulate, start
from strategies.networks import build_network
from strategies.semi.losses import supervised

SITES, ROUNDS, STEPS, BATCH, LABELS = 5, 3, 20, 8, 16


def federated(config: Path, folder: Path) -> float:
    """Seconds of the inline run, hospitals prepared beforehand."""
    simulate(config, out=folder, prepare_only=True)
    started = time.perf_counter()
    start(folder, [f"s{site:03d}" for site in range(SITES)], engine="inline")
    return time.perf_counter() - started


def bare(config: Path, folder: Path) -> float:
    """Seconds of the same steps without a federation, on the tensors that the run trained on."""
    run = load(config)
    plan = Plan.read(settings_for_sites(run))
    tensors = []
    for workspace in sorted((folder / "sites").iterdir()):
        with Site(workspace) as site:
            slices, cases = Slices(site, plan.preprocess), site.store.cases("labelled")
            tensors.append((slices.take(cases), slices.labels(cases).long()))
    weights = {name: torch.from_numpy(value) for name, value in initial_weights(run).items()}
    generator = torch.Generator().manual_seed(0)
    started = time.perf_counter()
    for _ in range(ROUNDS):
        for images, labels in tensors:
            network = build_network("unet", in_channels=1, classes=1, norm="instance", dropout=0.0, seed=0)
            network.load_state_dict(weights)
            optimiser = torch.optim.AdamW(network.parameters(), run.train.learning_rate, fused=True)
            for _ in range(STEPS):
                rows = torch.randint(len(images), (BATCH,), generator=generator)
                optimiser.zero_grad(set_to_none=True)
                supervised(network(images[rows]), labels[rows]).backward()
                optimiser.step()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="how often each side is measured")
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_volumes(root / "data", sites=SITES, patients=6, slices=8, size_px=128)
        config = write_config(root / "c.toml", root=root / "data", rounds=ROUNDS, steps=STEPS, labels=LABELS)
        ours, theirs = [], []
        for pair in range(pairs):
            ours.append(federated(config, root / f"run{pair}"))
            theirs.append(bare(config, root / f"run{pair}"))
            print(f"pair {pair + 1}: federation {ours[-1]:.1f} s, bare {theirs[-1]:.1f} s, ratio {ours[-1] / theirs[-1]:.3f}")
    ratio = statistics.median(ours) / statistics.median(theirs)
    report(
        "overhead",
        ratio=round(ratio, 3),
        federation_s=[round(s, 2) for s in ours],
        bare_s=[round(s, 2) for s in theirs],
        threads=torch.get_num_threads(),
        goal="ratio <= 1.10",
        met=ratio <= 1.10,
    )


if __name__ == "__main__":
    main()
