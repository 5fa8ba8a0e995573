"""A tiny federation for tests of the whole loop: three sites, NIfTI volumes of 4 slices, two classes anybody can learn."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tests_support import TINY

SITES = ("north", "south", "west")
PATIENTS = 5


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests compare numbers, and those follow the thread count."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`index.csv`, `images/` and `labels/` of 15 patients at three sites; volumes of 4 slices, 24 × 32 pixels, 1 mm."""
    root = tmp_path_factory.mktemp("tiny")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    rng = np.random.default_rng(0)
    with (root / "index.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["case", "patient", "site"])
        for site in SITES:
            for number in range(PATIENTS):
                case = f"{site}{number}"
                table.writerow([case, case, site])
                voxels, labels = _volume(rng)
                for folder, array in (("images", voxels), ("labels", labels)):
                    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), root / folder / f"{case}.nii.gz")
    return root


@pytest.fixture
def tiny_config(tiny_data: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny configuration to a file; keyword arguments replace lines, e.g. `cycles=1`."""

    def write(**changes: str | int) -> Path:
        lines = TINY.format(root=tiny_data).splitlines()
        for key, value in changes.items():
            text = f'"{value}"' if isinstance(value, str) else str(value)
            found = [n for n, line in enumerate(lines) if line.startswith(f"{key} = ")]
            assert found, f"no line to change: {key}"
            lines[found[0]] = f"{key} = {text}"
        path = tmp_path / "tiny.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def _volume(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(24, 32, 4) float32 voxels and uint8 labels: a disc and a bar that wander from slice to slice."""
    rows, columns = np.mgrid[:24, :32]
    labels = np.zeros((24, 32, 4), dtype=np.uint8)
    for index in range(4):
        centre = rng.uniform((8, 8), (16, 14))
        labels[(rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < rng.uniform(4, 6) ** 2, index] = 1
        left = int(rng.integers(20, 26))
        labels[4:20, left : left + 4, index] = 2
    voxels = np.array([20.0, 90.0, 150.0])[labels] + rng.normal(0, 12, labels.shape)
    return voxels.astype(np.float32), labels
