"""The same readers on scans of real patients, against the counts that came with the data."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from PIL import ImageDraw

from client.formats import FORMATS, classes_as_written, dicom
from client.formats.dicom_files import open_dicom
from client.formats.index import Entry, read_index

KEY = "k" * 32


def root(name: str) -> Path:
    folder = os.environ.get("WARDROUND_DATA")
    if not folder:
        pytest.skip("WARDROUND_DATA is not set: the real data sets are not here")
    return Path(folder) / name


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "index.csv").open(newline="") as file:
        return {row.get("case") or row["patient"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("name", "classes"),
    [("acdc", {"rv": 1, "myo": 2, "lv": 3}), ("hippocampus", {"anterior": 1, "posterior": 2})],
)
def test_nifti_voxel_counts_are_those_of_the_index(name: str, classes: dict[str, int | list[str]]) -> None:
    folder = root(name)
    counts = rows(folder)
    entries = read_index(folder, format="nifti")
    assert len(entries) == len(counts)
    for entry in entries:
        image = FORMATS["nifti"].read_image(entry.image, key=KEY, patient=entry.patient)
        assert entry.label is not None
        mask = FORMATS["nifti"].read_mask(entry.label, image, classes=classes)
        found = {one: int((mask == number).sum()) for number, one in enumerate(classes, start=1)}
        assert found == {one: int(counts[entry.case][f"voxels_{one}"]) for one in classes}, entry.case


def sts() -> list[Entry]:
    return read_index(root("sts_mr_dicom"), format="dicom")


def test_tumours_are_those_of_the_index() -> None:
    """Contours are parsed and placed right, and masks have the area of their contours.

    The index counted with Pillow's polygon, which also paints the pixels that an outline touches: that count must come
    out exactly. Our own masks take the pixels whose centre is inside, 3 to 13 % fewer on these tumours.
    """
    counts = rows(root("sts_mr_dicom"))
    entries = sts()
    assert len(entries) == 17
    for entry in entries:
        row = counts[entry.case]
        image = dicom.read_image(entry.image, key=KEY, patient=entry.patient)
        assert image.grid == (int(row["slices"]), int(row["height"]), int(row["width"]))
        assert image.spacing_mm == pytest.approx((float(row["slice_spacing_mm"]), *[float(row["spacing_mm"])] * 2), abs=1e-3)
        assert entry.label is not None
        assert image.affine is not None
        mask = dicom.read_mask(entry.label, image, classes={"tumour": ["GTV_Mass*"]})
        assert int(mask.any(axis=(1, 2)).sum()) == int(row["tumour_slices"])

        painted = np.zeros(image.grid, dtype=bool)
        area = 0.0
        for contour in open_dicom(entry.label, pixels=True).ROIContourSequence[0].ContourSequence:
            raw = contour.get_item("ContourData").value  # text, many times faster than pydicom's decimals
            points = np.array(raw.split(b"\\"), dtype=float).reshape(-1, 3)
            index = (np.linalg.inv(image.affine) @ np.column_stack([points, np.ones(len(points))]).T)[:3]
            r, c = index[1], index[2]
            area += abs(float(r @ np.roll(c, 1) - c @ np.roll(r, 1))) / 2
            plane = Picture.new("1", (image.grid[2], image.grid[1]))
            ImageDraw.Draw(plane).polygon(list(zip(c, r, strict=True)), fill=1, outline=1)
            painted[round(float(index[0].mean()))] ^= np.asarray(plane)
        assert int(painted.sum()) == int(row["tumour_voxels"])
        assert int((mask > 0).sum()) == pytest.approx(area, rel=5e-3)
        assert (mask.astype(bool) & ~painted).sum() <= 3, "only where two outlines touch"


def test_real_series_take_masks_of_both_kinds(tmp_path: Path) -> None:
    for entry in sts()[::16]:
        image = dicom.read_image(entry.image, key=KEY)
        assert entry.label is not None
        mask = dicom.read_mask(entry.label, image, classes={"tumour": ["GTV_Mass*"]})
        dicom.write_mask(tmp_path / "seg.dcm", mask, image, class_names=["tumour"], algorithm_name="a model")
        dicom.write_rtstruct(tmp_path / "rs.dcm", mask, image, class_names=["tumour"])
        for name in ("seg.dcm", "rs.dcm"):
            back = dicom.read_mask(tmp_path / name, image, classes=classes_as_written("dicom", ["tumour"]))
            np.testing.assert_array_equal(back, mask)
