"""How hard the synthetic hospitals are: thresholds must fail, all labels must do, a handful must not.

    python benchmarks/phantom_difficulty.py [--steps 1500] [--threads 2] [--seed 0]

Plain supervised training of one network on pooled data, no federation: what the phantom allows, not what wardround makes of it.
Prints a line a measurement and, last, one JSON object. Dice is by volume and class, mean over volumes, then classes.
Takes about 4 minutes on one quiet core with the default number of steps.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch
from common import report
from numpy.typing import NDArray

import strategies.torchvision_ops  # noqa: F401  before MONAI, which imports torchvision
from simulation.phantom import CLASS_NAMES, hospitals, image_of

from monai.networks.nets.unet import UNet  # isort: skip

HOSPITALS, TRAIN, TEST, SLICES, SIZE_PX = 4, 10, 6, 8, 96
BATCH, LEARNING_RATE = 8, 3e-3
CLASSES = len(CLASS_NAMES)
GOAL = "threshold_by_site <= .50, labels_4 <= .70, labels_20 >= .80, all >= .88"


@dataclass(frozen=True)
class Volume:
    """One patient: image (slices, rows, cols) float32, clipped and standardised, and labels uint8 of the same shape."""

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]


def standardised(voxels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Clipped at the 0.5 and 99.5 percentiles, then mean 0 and standard deviation 1."""
    low, high = np.percentile(voxels, [0.5, 99.5])
    clipped = np.clip(voxels, low, high)
    out: NDArray[np.float32] = ((clipped - clipped.mean()) / clipped.std()).astype(np.float32)
    return out


def cohort(first: int, count: int) -> list[list[Volume]]:
    """Patients `first` to `first + count - 1` of every hospital."""
    sites = []
    for hospital in hospitals(HOSPITALS, seed=0):
        pairs = [image_of(hospital, first + at, slices=SLICES, size_px=SIZE_PX, seed=0) for at in range(count)]
        sites.append([Volume(standardised(voxels), labels) for voxels, labels in pairs])
    return sites


def volume_dice(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Dice of one class in one volume; nan where it is in neither."""
    total = int(predicted.sum()) + int(truth.sum())
    return 2 * int((predicted & truth).sum()) / total if total else float("nan")


def best_interval(volumes: list[Volume], value: int, *, bins: int = 80) -> tuple[float, float]:
    """The interval of brightness whose voxels have the highest pooled Dice with class `value`: the truth is known."""
    edges = np.linspace(-3, 6, bins + 1)
    brightness = np.concatenate([volume.image.ravel() for volume in volumes])
    truth = np.concatenate([volume.labels.ravel() for volume in volumes]) == value
    everything = np.concatenate([[0], np.cumsum(np.histogram(brightness, edges)[0])])
    wanted = np.concatenate([[0], np.cumsum(np.histogram(brightness[truth], edges)[0])])
    taken, hit = everything[None] - everything[:, None], wanted[None] - wanted[:, None]
    dice = np.where(taken > 0, 2 * hit / np.maximum(taken + truth.sum(), 1), 0)
    low, high = np.unravel_index(int(np.argmax(dice)), dice.shape)
    return float(edges[low]), float(edges[high])


def threshold_dice(train: list[Volume], test: list[Volume]) -> list[float]:
    """Mean Dice of each class on `test` with the best intervals of `train`."""
    out = []
    for value in range(1, CLASSES + 1):
        low, high = best_interval(train, value)
        scores = [volume_dice((one.image >= low) & (one.image < high), one.labels == value) for one in test]
        out.append(float(np.nanmean(scores)))
    return out


def batch_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Half cross-entropy, half soft Dice over the batch's foreground classes."""
    probs = logits.softmax(1)
    hot = torch.nn.functional.one_hot(target, CLASSES + 1).movedim(-1, 1).float()
    overlap, total = (probs * hot).sum((0, 2, 3)), (probs + hot).sum((0, 2, 3))
    dice = (2 * overlap + 1) / (total + 1)
    return 0.5 * (torch.nn.functional.cross_entropy(logits, target) + 1 - dice[1:].mean())


def trained(images: torch.Tensor, labels: torch.Tensor, *, steps: int, seed: int) -> torch.nn.Module:
    """A network after `steps` batches with random flips and a cosine schedule. Images (N, 1, H, W), labels (N, H, W) int64."""
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    network: torch.nn.Module = UNet(2, 1, CLASSES + 1, (16, 32, 64, 128), (2, 2, 2), norm="instance")
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        chosen = torch.randint(len(images), (BATCH,), generator=draws)
        flips = torch.rand((BATCH, 2), generator=draws) < 0.5
        axes = [[axis - 2 for axis in (0, 1) if flip[axis]] for flip in flips]
        batch = torch.stack([images[at].flip(turn) for at, turn in zip(chosen, axes, strict=True)])
        target = torch.stack([labels[at].flip(turn) for at, turn in zip(chosen, axes, strict=True)])
        optimiser.zero_grad()
        batch_loss(network(batch), target).backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def network_dice(network: torch.nn.Module, test: list[list[Volume]]) -> list[float]:
    """Mean Dice of each class over the volumes of all hospitals."""
    scores = []
    with torch.no_grad():
        for volume in (volume for site in test for volume in site):
            predicted = network(torch.from_numpy(volume.image[:, None])).argmax(1).numpy()
            scores.append([volume_dice(predicted == value, volume.labels == value) for value in range(1, CLASSES + 1)])
    return [float(mean) for mean in np.nanmean(np.array(scores), axis=0)]


def labelled_slices(train: list[list[Volume]], per_site: int | None, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random slices of every hospital, `per_site` each or all: images (N, 1, H, W) and labels (N, H, W)."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for site in train:
        stack = np.concatenate([volume.image for volume in site])
        truth = np.concatenate([volume.labels for volume in site])
        chosen = np.arange(len(stack)) if per_site is None else rng.choice(len(stack), per_site, replace=False)
        images.append(torch.from_numpy(stack[chosen][:, None]))
        labels.append(torch.from_numpy(truth[chosen].astype(np.int64)))
    return torch.cat(images), torch.cat(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    began = time.perf_counter()
    train, test = cohort(0, TRAIN), cohort(TRAIN, TEST)
    figures: dict[str, float] = {"seconds_per_patient": (time.perf_counter() - began) / (HOSPITALS * (TRAIN + TEST))}

    pooled = threshold_dice([one for site in train for one in site], [one for site in test for one in site])
    own = np.mean([threshold_dice(train[at], test[at]) for at in range(HOSPITALS)], axis=0)
    figures["threshold"], figures["threshold_by_site"] = float(np.mean(pooled)), float(np.mean(own))
    print(f"one interval of brightness per class, for all hospitals: {np.mean(pooled):.3f} {np.round(pooled, 3)}")
    print(f"one per class and hospital: {own.mean():.3f} {own.round(3)}", flush=True)

    for name, per_site in (("labels_4", 4), ("labels_20", 20), ("all", None)):
        images, labels = labelled_slices(train, per_site, seed=given.seed)
        began = time.perf_counter()
        scores = network_dice(trained(images, labels, steps=given.steps, seed=given.seed), test)
        figures[name] = float(np.mean(scores))
        shown = ", ".join(f"{organ} {score:.3f}" for organ, score in zip(CLASS_NAMES, scores, strict=True))
        print(
            f"{len(images)} slices, {given.steps} steps: {figures[name]:.3f} ({shown}) in {time.perf_counter() - began:.0f} s",
            flush=True,
        )

    met = (
        figures["threshold_by_site"] <= 0.50
        and figures["labels_4"] <= 0.70
        and figures["labels_20"] >= 0.80
        and figures["all"] >= 0.88
    )
    rounded = {name: round(value, 3) for name, value in figures.items()}
    report("phantom_difficulty", goal=GOAL, met=met, steps=given.steps, seed=given.seed, **rounded)


if __name__ == "__main__":
    main()
