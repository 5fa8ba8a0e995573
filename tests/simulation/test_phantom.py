"""Hospitals on disk: what is written reads back, follows from the seed, and does not depend on who else is there."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from client.formats import dicom
from client.formats.index import read_index
from simulation.phantom import CASE_TYPES, CLASS_NAMES, Hospital, hospitals, image_of, patient_of, write_hospital

CLASSES: dict[str, int | list[str]] = {name: [name] for name in CLASS_NAMES}


@pytest.fixture(scope="module")
def four() -> list[Hospital]:
    return hospitals(4, seed=3)


def test_a_hospital_is_the_same_at_every_count(four: list[Hospital]) -> None:
    assert hospitals(2, seed=3) == four[:2]
    assert hospitals(6, seed=3)[:4] == four
    assert hospitals(4, seed=4) != four


def test_hospitals_differ_in_scanner_orientation_mix_and_truth(four: list[Hospital]) -> None:
    assert len({one.scanner.weighting for one in four}) == 4
    assert {one.scanner.modality for one in four} == {"MR", "CT"}
    assert len({(one.scanner.flips, one.scanner.tilt_deg) for one in four}) == 4
    assert len({one.scanner.extent_mm for one in four}) == 4
    assert len({tuple(one.mix.rare.values()) for one in four}) == 4
    assert {one.truth for one in four} == {"rtstruct", "seg"}
    assert len({one.name for one in hospitals(12, seed=3)}) == 12


def test_the_same_seed_gives_the_same_voxels_and_another_seed_others(four: list[Hospital]) -> None:
    for hospital in four[:2]:
        voxels, labels = image_of(hospital, 1, slices=4, size_px=48, seed=3)
        again, labels_again = image_of(hospital, 1, slices=4, size_px=48, seed=3)
        np.testing.assert_array_equal(voxels, again)
        np.testing.assert_array_equal(labels, labels_again)
        for other in (image_of(hospital, 2, slices=4, size_px=48, seed=3), image_of(hospital, 1, slices=4, size_px=48, seed=5)):
            assert (labels != other[1]).any()
    ours, theirs = (patient_of(hospital, 0, slices=4, size_px=48, seed=3).labels for hospital in (four[0], four[2]))
    assert (ours != theirs).any()


def test_rare_cases_come_at_about_the_rate_of_the_mix(four: list[Hospital]) -> None:
    drawn = [patient_of(four[0], at, slices=1, size_px=32, seed=3).case_type for at in range(120)]
    expected = sum(four[0].mix.rare.values())
    rare = np.mean([name != "common" for name in drawn])
    assert abs(rare - expected) < 4 * np.sqrt(expected * (1 - expected) / 120)
    assert set(drawn) <= set(CASE_TYPES)
    assert len(set(drawn)) >= 3


@pytest.mark.parametrize("at", range(4))
def test_what_is_written_reads_back_voxel_for_voxel(tmp_path: Path, four: list[Hospital], at: int) -> None:
    hospital = four[at]
    write_hospital(tmp_path, hospital, patients=2, slices=5, size_px=48, seed=3)
    entries = read_index(tmp_path, format="dicom")
    assert [entry.site for entry in entries] == [hospital.name] * 2
    for number, entry in enumerate(entries):
        assert entry.label is not None
        assert entry.label.name == {"rtstruct": "RS.dcm", "seg": "SEG.dcm"}[hospital.truth]
        image = dicom.read_image(entry.image, key="k" * 32, patient=entry.patient)
        mask = dicom.read_mask(entry.label, image, classes=CLASSES)
        voxels, labels = image_of(hospital, number, slices=5, size_px=48, seed=3)
        forward = np.abs(image.voxels - voxels).max() < np.abs(image.voxels - voxels[::-1]).max()
        step = 1 if forward else -1  # a reader sorts slices along their normal, which a mirrored storage turns over
        np.testing.assert_allclose(image.voxels, voxels[::step], atol=float(np.ptp(voxels)) / 65535)
        np.testing.assert_array_equal(mask, labels[::step])


def test_the_liver_is_on_the_right_and_the_kidneys_in_the_back_of_every_patient(tmp_path: Path, four: list[Hospital]) -> None:
    """However the slices are stored: in patient space, anatomy is anatomy."""
    for hospital in four:
        write_hospital(tmp_path / hospital.name, hospital, patients=1, slices=6, size_px=48, seed=3)
        (entry,) = read_index(tmp_path / hospital.name, format="dicom")
        image = dicom.read_image(entry.image, key="k" * 32)
        assert entry.label is not None
        assert image.affine is not None
        mask = dicom.read_mask(entry.label, image, classes=CLASSES)
        centre = {}
        for value, name in enumerate(CLASS_NAMES, start=1):
            index = np.argwhere(mask == value)
            centre[name] = index.mean(axis=0) @ image.affine[:3, :3].T + image.affine[:3, 3]
        assert centre["liver"][0] < -15 < centre["stomach"][0], "LPS: x grows to the left"
        assert centre["kidney"][1] > centre["stomach"][1] + 30, "LPS: y grows to the back"
        assert centre["kidney"][2] < centre["liver"][2] - 15, "LPS: z grows to the head"


def test_the_index_comes_last_and_holds_patients_and_site(tmp_path: Path, four: list[Hospital]) -> None:
    write_hospital(tmp_path / "a", four[0], patients=2, slices=2, size_px=32, seed=3)
    write_hospital(tmp_path / "b", four[1], patients=1, slices=2, size_px=32, seed=3)
    rows = [row for name in "ab" for row in csv.DictReader((tmp_path / name / "index.csv").open())]
    assert list(rows[0]) == ["patient", "site"]
    assert [row["site"] for row in rows] == ["hospital-1", "hospital-1", "hospital-2"]
    assert len({row["patient"] for row in rows}) == 3
    newest = max((tmp_path / "a").rglob("*"), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name in ("index.csv", "a")


def test_a_folder_in_use_is_left_alone(tmp_path: Path, four: list[Hospital]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        write_hospital(tmp_path, four[0], patients=1, slices=2, size_px=32, seed=3)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_no_hospital_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 hospital"):
        hospitals(0, seed=0)
