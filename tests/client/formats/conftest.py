"""Volumes in patient space, in the orientations that go wrong, and small series of them on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from client.formats import dicom
from client.formats.image import Image

KEY = "0123456789abcdef0123456789abcdef"


def placed(slice_step: list[float], row_step: list[float], col_step: list[float]) -> NDArray[np.float64]:
    """The affine of a volume whose first voxel lies at an odd place, with these steps in LPS millimetres."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([slice_step, row_step, col_step]).T
    affine[:3, 3] = [-31.7, 12.25, -880.1]
    return affine


def oblique(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", [25, -40, 70], degrees=True).as_matrix()
    return np.asarray(turn @ affine)


_AXIAL = placed([0, 0, 3.5], [0, 0.8, 0], [1.1, 0, 0])
AFFINES = {
    "axial": _AXIAL,
    "axial, written from head to feet": placed([0, 0, -3.5], [0, 0.8, 0], [1.1, 0, 0]),
    "axial, rows and columns flipped": placed([0, 0, 3.5], [0, -0.8, 0], [-1.1, 0, 0]),
    "sagittal": placed([4.0, 0, 0], [0, 0, -0.9], [0, 0.7, 0]),
    "coronal": placed([0, 4.0, 0], [0, 0, -0.9], [0.7, 0, 0]),
    "oblique": oblique(_AXIAL),
    "oblique, flipped": oblique(placed([0, 0, -3.5], [0, 0.8, 0], [-1.1, 0, 0])),
}


def same_in_patient(
    ours: NDArray[Any], affine: NDArray[np.float64], theirs: NDArray[Any], their_affine: NDArray[np.float64]
) -> bool:
    """Whether two volumes hold the same value at every place in the patient, whatever way their axes run."""
    index = np.indices(ours.shape).reshape(3, -1)
    to_theirs = np.linalg.inv(their_affine) @ affine
    places = to_theirs[:3, :3] @ index + to_theirs[:3, 3:]
    whole = np.rint(places).astype(int)
    assert np.abs(places - whole).max() < 1e-4, "the grids do not coincide"
    assert (whole >= 0).all(), "a voxel lies outside"
    assert (whole < np.array(theirs.shape)[:, None]).all(), "a voxel lies outside"
    return ours.size == theirs.size and bool(np.all(theirs[tuple(whole)] == ours.ravel()))


@pytest.fixture(params=list(AFFINES))
def affine(request: pytest.FixtureRequest) -> NDArray[np.float64]:
    return AFFINES[request.param].copy()


@pytest.fixture
def blobs() -> NDArray[np.uint8]:
    """(5, 24, 20) classes 0..3: a lopsided body with a hole, an island in the hole, far parts, touching classes."""
    mask = np.zeros((5, 24, 20), dtype=np.uint8)
    mask[1:4, 2:14, 3:15] = 1
    mask[1:4, 4:12, 5:13] = 0
    mask[2, 6:9, 7:10] = 1
    mask[3, 17:20, 1:4] = 1
    mask[2:5, 14:18, 8:17] = 2
    mask[4, 0, 0] = 2
    mask[0, 10:23, 18] = 3
    mask[0, 23, 19] = 3
    return mask


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A plain axial series of 6 slices of 12 × 10 pixels of 0..99 in a folder of its own."""
    voxels = np.random.default_rng(0).integers(0, 100, (6, 12, 10))
    dicom.write_image(tmp_path / "image", voxels, affine=_AXIAL, patient="P-17", uid_seed="a")
    return tmp_path / "image"


Edit = Callable[[Path, str, Callable[[pydicom.Dataset], None]], None]


@pytest.fixture
def edit() -> Edit:
    """Change one file of a series in place."""

    def change(folder: Path, name: str, how: Callable[[pydicom.Dataset], None]) -> None:
        dataset = pydicom.dcmread(folder / name)
        how(dataset)
        dataset.save_as(folder / name)

    return change


def read(folder: Path) -> Image:
    image: Image = dicom.read_image(folder, key=KEY)
    return image


@pytest.fixture
def helpers() -> Any:
    """The functions above, for tests in files of their own."""

    class Helpers:
        KEY = KEY
        AFFINES = AFFINES
        placed = staticmethod(placed)
        same_in_patient = staticmethod(same_in_patient)
        read = staticmethod(read)

    return Helpers
