"""Example pictures stand as a radiologist looks at them, however the file orders its axes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from client.formats import nifti
from client.formats.image import Image
from client.pictures import Pictures
from client.site import Site
from client.store import ImageRow
from client.upright import Turn, upright

PLANE = np.arange(6, dtype=np.uint8).reshape(2, 3)
"""
    0 1 2
    3 4 5
"""


def affine_of(rows: str, columns: str) -> NDArray[np.float64]:
    """The affine of a plane whose row index grows towards `rows` and whose column index grows towards `columns`."""
    towards = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
    affine = np.eye(4)
    affine[:3, 1], affine[:3, 2] = towards[rows], towards[columns]
    affine[:3, 0] = np.cross(affine[:3, 2], affine[:3, 1])
    return affine


@pytest.mark.parametrize(
    ("rows", "columns", "seen"),
    [
        ("P", "L", [[0, 1, 2], [3, 4, 5]]),  # axial, as DICOM stores it
        ("L", "P", [[0, 3], [1, 4], [2, 5]]),  # the same, x by y
        ("R", "A", [[5, 2], [4, 1], [3, 0]]),  # NIfTI's RAS: x by y, growing to the right and to the front
        ("L", "A", [[2, 5], [1, 4], [0, 3]]),  # NIfTI's LAS
        ("R", "P", [[3, 0], [4, 1], [5, 2]]),
        ("A", "R", [[5, 4, 3], [2, 1, 0]]),  # on the stomach
        ("F", "L", [[0, 1, 2], [3, 4, 5]]),  # coronal, as DICOM stores it
        ("L", "H", [[2, 5], [1, 4], [0, 3]]),  # coronal, x by z
        ("F", "P", [[0, 1, 2], [3, 4, 5]]),  # sagittal, as DICOM stores it
        ("A", "H", [[5, 2], [4, 1], [3, 0]]),  # sagittal, y by z
    ],
)
def test_planes_are_turned_by_hand(rows: str, columns: str, seen: list[list[int]]) -> None:
    assert upright(affine_of(rows, columns)).plane(PLANE).tolist() == seen


def test_a_picture_without_orientation_stays_as_it_is() -> None:
    np.testing.assert_array_equal(upright(None).plane(PLANE), PLANE)


@given(turn=st.builds(Turn, st.booleans(), st.booleans(), st.booleans()), row=st.integers(0, 1), column=st.integers(0, 2))
def test_what_is_marked_stays_on_its_pixel(turn: Turn, row: int, column: int) -> None:
    (x, y), *_ = turn.points(np.array([[column + 0.5, row + 0.5]], np.float32), shape=PLANE.shape)
    assert turn.plane(PLANE)[int(y), int(x)] == PLANE[row, column]


@settings(max_examples=200, deadline=None)
@given(
    seen=st.sampled_from([("P", "L"), ("F", "L"), ("F", "P")]),
    turned=st.booleans(),
    mirrored=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    tilt=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda axis: np.linalg.norm(axis) > 0.1),
    degrees=st.floats(0, 30),
    spacing_mm=st.tuples(*[st.floats(0.1, 10)] * 3),
)
def test_a_patient_looks_the_same_in_whatever_order_the_file_has_its_axes(
    seen: tuple[str, str],
    turned: bool,
    mirrored: tuple[bool, bool, bool],
    tilt: tuple[float, float, float],
    degrees: float,
    spacing_mm: tuple[float, float, float],
) -> None:
    """Also where the plane lies askew, with pixels of any shape; nothing is lost or resampled."""
    plane, affine = PLANE, affine_of(*seen)
    if turned:
        plane, affine = plane.T, affine[:, [0, 2, 1, 3]]
    plane = plane[:: -1 if mirrored[1] else 1, :: -1 if mirrored[2] else 1]
    affine = affine @ np.diag([*np.where(mirrored, -1, 1) * spacing_mm, 1])
    affine[:3, :3] = (
        Rotation.from_rotvec(np.deg2rad(degrees) * np.array(tilt) / np.linalg.norm(tilt)).as_matrix() @ affine[:3, :3]
    )
    affine[:3, 3] = (-31.7, 12.25, -880.1)
    np.testing.assert_array_equal(upright(affine).plane(plane), PLANE)


@pytest.mark.parametrize("code", ["RAS", "LPS", "LAS", "RPI", "SAR", "PSL"])
def test_the_image_its_truth_and_its_prediction_are_turned_alike(tmp_path: Path, code: str) -> None:
    """One patient in files of several orders: an L of bright voxels, its foot towards the patient's left."""
    volume = np.zeros((5, 7, 2), np.float32)  # right, anterior and superior grow
    volume[3, 1:6, 1] = 100  # a bar from back to front at the patient's right
    volume[1:3, 1, 1] = 50  # its foot at the back, towards the left
    order = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("RAS", code)))
    nib.save(nib.Nifti1Image(volume, np.diag([2.0, 1.0, 3.0, 1.0])).as_reoriented(order), tmp_path / "image.nii")
    slice_axis = next(axis for axis in range(3) if code[axis] in "SI")

    def read(path: Path) -> Image:
        return nifti.read_image(path, key="k" * 32, slice_axis=slice_axis)

    pictures = Pictures(cast(Site, SimpleNamespace(workspace=tmp_path, read=read)))
    truth = (read(tmp_path / "image.nii").voxels > 75).astype(np.uint8)
    prediction = (read(tmp_path / "image.nii").voxels > 25).astype(np.uint8)
    pictures.see(ImageRow("i", "p", str(tmp_path / "image.nii"), "test", "", 2), truth, prediction)
    pictures.write(1)
    with np.load(tmp_path / "pictures" / "cycle_001.npz") as file:
        found = {name: file[name][0] for name in file.files}
    expected = np.zeros((7, 5), np.uint8)  # the patient's right on the viewer's left, the front up
    expected[1:6, 1] = 1
    np.testing.assert_array_equal(found["truth"], expected)
    expected[5, 2:4] = 1
    np.testing.assert_array_equal(found["prediction"], expected)
    np.testing.assert_array_equal(found["image"] > 60, expected == 1)
