"""What the benchmark programs share: data of any size, and the line of JSON each prints last."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray


def write_set(root: Path, volumes: Iterable[tuple[str, str, NDArray[np.float32], NDArray[np.uint8]]]) -> None:
    """A NIfTI set with an index: `volumes` are case, site, and voxels and label of one shape (rows, columns, slices)."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    with (root / "index.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["case", "site"])
        for case, site, voxels, label in volumes:
            table.writerow([case, site])
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), root / "images" / f"{case}.nii.gz")
            nib.save(nib.Nifti1Image(label, np.eye(4)), root / "labels" / f"{case}.nii.gz")


def write_volumes(root: Path, *, sites: int, patients: int, slices: int, size_px: int) -> None:
    """A set of discs in noise: `sites` × `patients` volumes of `slices` slices."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size_px, :size_px]

    def volume(site: int, patient: int) -> tuple[str, str, NDArray[np.float32], NDArray[np.uint8]]:
        centre = rng.uniform(0.3, 0.7, 2) * size_px
        disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < (0.2 * size_px) ** 2
        label = np.repeat(disc[:, :, None], slices, axis=2).astype(np.uint8)
        voxels = (80.0 * label + rng.normal(40, 10, label.shape)).astype(np.float32)
        return f"s{site:03d}p{patient:03d}", f"s{site:03d}", voxels, label

    write_set(root, (volume(site, patient) for site in range(sites) for patient in range(patients)))


CONFIG = """
name = "benchmark"
[classes]
disc = 1
[data]
format = "nifti"
root = "{root}"
[split]
test_fraction = {held_out}
validation_fraction = {held_out}
[preprocess]
size_px = 128
[network]
name = "unet"
[train]
framework = "supervised"
rounds_per_cycle = {rounds}
local_steps = {steps}
batch_labelled = 8
augment = false
[sam]
enabled = false
[query]
strategy = "random"
[budget]
cold_start = {labels}
[federation]
cycles = 1
"""


def write_config(path: Path, *, root: Path, rounds: int, steps: int, labels: int, held_out: float = 0.1) -> Path:
    """A configuration of the 1.6 M UNet at 128 px, batch 8, supervised, without augmentation."""
    path.write_text(CONFIG.format(root=root, rounds=rounds, steps=steps, labels=labels, held_out=held_out))
    return path


def report(name: str, *, goal: str, met: bool, **figures: object) -> None:
    """The last line of every benchmark."""
    print(json.dumps({"name": name, **figures, "goal": goal, "met": met}))
