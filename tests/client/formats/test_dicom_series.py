"""Series come back at their place in the patient with their values, and what can't be trusted is refused by name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, RLELossless

from client.formats import dicom
from client.formats.dicom_series import read_series
from client.formats.dicom_write import Photometric
from client.formats.image import FormatError, keyed_hash

Change = Callable[[pydicom.Dataset], None]


def test_a_series_comes_back_at_its_place_in_the_patient(affine: NDArray[np.float64], tmp_path: Path, helpers: Any) -> None:
    voxels = np.random.default_rng(1).integers(-1000, 3000, (5, 12, 9))
    dicom.write_image(tmp_path / "s", voxels, affine=affine, patient="x", modality="CT")
    image = helpers.read(tmp_path / "s")
    assert image.voxels.dtype == np.float32
    assert helpers.same_in_patient(voxels, affine, image.voxels, image.affine)
    np.testing.assert_allclose(sorted(image.spacing_mm), sorted(np.linalg.norm(affine[:3, :3], axis=0)), rtol=1e-6)
    rows, cols = np.cross(image.affine[:3, 2], image.affine[:3, 1]), image.affine[:3, 0]
    assert rows @ cols > 0, "slices go up the normal of DICOM's row and column directions"


def test_order_is_that_of_positions_not_of_names_or_numbers(series: Path, helpers: Any) -> None:
    before = helpers.read(series)
    shuffled = series.parent / "shuffled"
    shuffled.mkdir()
    for at, name in enumerate([4, 0, 5, 2, 1, 3]):
        dataset = pydicom.dcmread(series / f"{name:04d}.dcm")
        dataset.InstanceNumber = at
        dataset.save_as(shuffled / f"{at}.dcm")
    after = helpers.read(shuffled)
    np.testing.assert_array_equal(after.voxels, before.voxels)
    np.testing.assert_array_equal(after.affine, before.affine)


def test_fractions_are_kept_to_a_65535th_of_their_span(tmp_path: Path, helpers: Any) -> None:
    voxels = np.random.default_rng(2).normal(3.7, 50, (3, 8, 8))
    dicom.write_image(tmp_path / "s", voxels, affine=helpers.AFFINES["axial"], patient="x")
    error = np.abs(helpers.read(tmp_path / "s").voxels - voxels).max()
    assert error <= 0.51 * np.ptp(voxels) / 65535 + 1e-5


def test_a_constant_image_comes_back(tmp_path: Path, helpers: Any) -> None:
    dicom.write_image(tmp_path / "s", np.full((2, 3, 3), 2.5), affine=helpers.AFFINES["axial"], patient="x")
    assert (helpers.read(tmp_path / "s").voxels == 2.5).all()


def test_rescale_is_that_of_each_slice(series: Path, edit: Any, helpers: Any) -> None:
    plain = helpers.read(series).voxels

    def steeper(dataset: pydicom.Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = "2", "-10"

    edit(series, "0003.dcm", steeper)
    scaled = helpers.read(series).voxels
    np.testing.assert_array_equal(scaled[3], plain[3] * 2 - 10)
    np.testing.assert_array_equal(np.delete(scaled, 3, 0), np.delete(plain, 3, 0))


def test_monochrome1_shows_the_same_picture(tmp_path: Path, helpers: Any) -> None:
    voxels = np.random.default_rng(3).integers(5, 90, (3, 6, 7))
    here = {"affine": helpers.AFFINES["axial"], "patient": "x"}
    dicom.write_image(tmp_path / "one", voxels, photometric="MONOCHROME1", **here)
    dicom.write_image(tmp_path / "two", voxels, photometric="MONOCHROME2", **here)
    np.testing.assert_array_equal(helpers.read(tmp_path / "one").voxels, helpers.read(tmp_path / "two").voxels)
    stored = [pydicom.dcmread(tmp_path / name / "0000.dcm").pixel_array for name in ("one", "two")]
    assert (stored[0] != stored[1]).any()


def test_window_by_hand(tmp_path: Path, helpers: Any) -> None:
    voxels = np.array([[[-60, 0, 40, 90, 140, 400]]])
    expected = [[[0, 0.1, 0.3, 0.55, 0.8, 1]]]  # centre 80, width 200: -20 is 0, 180 is 1
    kinds: list[tuple[Photometric, tuple[float, float]]] = [
        ("MONOCHROME2", (80, 200)),
        ("MONOCHROME1", (340 - 80, 200)),  # stores 340 - value, and windows come before turning
    ]
    for photometric, window in kinds:
        folder = tmp_path / photometric
        dicom.write_image(folder, voxels, affine=helpers.AFFINES["axial"], patient="x", photometric=photometric)
        image = dicom.read_image(folder, key=helpers.KEY, window=window)
        np.testing.assert_allclose(image.voxels, expected, atol=1e-6)
    with pytest.raises(ValueError, match="width"):
        dicom.read_image(folder, key=helpers.KEY, window=(80, 0))


def test_the_patient_is_a_keyed_hash(series: Path, helpers: Any) -> None:
    image = helpers.read(series)
    assert image.patient == keyed_hash("P-17", key=helpers.KEY)
    assert "P-17" not in repr(image.patient)
    assert dicom.read_image(series, key="another key of this site").patient != image.patient
    assert dicom.read_image(series, key=helpers.KEY, patient="M. 4").patient == keyed_hash("M. 4", key=helpers.KEY)


def test_equal_seeds_give_equal_files_and_different_seeds_other_uids(tmp_path: Path, helpers: Any) -> None:
    here = {"affine": helpers.AFFINES["axial"], "patient": "x"}
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        dicom.write_image(tmp_path / name, np.zeros((2, 3, 3)), uid_seed=seed, **here)
    a, b, c = ([one.read_bytes() for one in sorted((tmp_path / name).iterdir())] for name in "abc")
    assert a == b
    assert a != c
    uids = [{pydicom.dcmread(one).SOPInstanceUID for one in (tmp_path / name).iterdir()} for name in "ac"]
    assert len(uids[0] | uids[1]) == 4


def test_a_single_slice_takes_its_thickness(tmp_path: Path, helpers: Any) -> None:
    dicom.write_image(tmp_path / "s", np.ones((1, 3, 3)), affine=helpers.AFFINES["axial"], patient="x")
    assert helpers.read(tmp_path / "s").spacing_mm == pytest.approx((3.5, 0.8, 1.1))


def test_positions_rounded_to_a_tenth_are_even_enough(series: Path, edit: Any, helpers: Any) -> None:
    before = helpers.read(series)

    def rounded(dataset: pydicom.Dataset) -> None:
        dataset.ImagePositionPatient = [round(float(one), 1) for one in dataset.ImagePositionPatient]

    for file in series.iterdir():
        edit(series, file.name, rounded)
    np.testing.assert_allclose(helpers.read(series).affine, before.affine, atol=0.1)


def test_what_file_managers_leave_is_passed_over(series: Path, helpers: Any) -> None:
    before = helpers.read(series).voxels
    for name in (".DS_Store", "Thumbs.db", "DICOMDIR"):
        (series / name).write_text("not an image")
    np.testing.assert_array_equal(helpers.read(series).voxels, before)


def test_lossless_compression_with_a_decoder_is_read(series: Path, edit: Any, helpers: Any) -> None:
    before = helpers.read(series).voxels
    edit(series, "0002.dcm", lambda dataset: dataset.compress(RLELossless))
    np.testing.assert_array_equal(helpers.read(series).voxels, before)


def _with(**values: Any) -> Change:
    def change(dataset: pydicom.Dataset) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return change


def _without(keyword: str) -> Change:
    return lambda dataset: delattr(dataset, keyword)


def _moved(by: tuple[float, float, float]) -> Change:
    def change(dataset: pydicom.Dataset) -> None:
        dataset.ImagePositionPatient = [float(a) + b for a, b in zip(dataset.ImagePositionPatient, by, strict=True)]

    return change


def _compressed(syntax: str, content: bytes) -> Change:
    def change(dataset: pydicom.Dataset) -> None:
        dataset.PixelData = pydicom.encaps.encapsulate([content])
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
        dataset["PixelData"].is_undefined_length = True

    return change


@pytest.mark.parametrize(
    ("change", "what", "remedy"),
    [
        (_compressed(JPEGLosslessSV1, b"\xff\xd8junk"), "compressed as JPEG Lossless", "pip install|decompress"),
        (_compressed(RLELossless, b"\x01junk"), "corrupt", "export"),
        (_compressed(JPEG2000Lossless, b"junk" * 9), "corrupt", "export"),
        (_with(PixelData=b"\0\0" * 100), "cut off or corrupt", "export the file again"),
        (_without("PixelData"), "holds no pixels", "keep only image files"),
        (_without("Rows"), "not an image", "keep only"),
        (_with(NumberOfFrames=2), "multi-frame", "single-frame"),
        (_with(PhotometricInterpretation="RGB", SamplesPerPixel=3), "not a grey image", "MONOCHROME2"),
        (_without("ImagePositionPatient"), "no valid ImagePositionPatient", "export it again"),
        (_with(ImagePositionPatient=["0", "1"]), "no valid ImagePositionPatient", "export it again"),
        (_without("ImageOrientationPatient"), "no valid ImageOrientationPatient", "export it again"),
        (_with(ImageOrientationPatient=[1, 0, 0, 0.7, 0.7, 0]), "not two perpendicular", "export"),
        (_with(ImageOrientationPatient=[0, 1, 0, 1, 0, 0]), "differ in orientation", "folders of their own"),
        (_without("PixelSpacing"), "no valid PixelSpacing", "export it again"),
        (_with(PixelSpacing=[0, 1]), "PixelSpacing must be above 0", "export"),
        (_with(PixelSpacing=[0.8, 1.2]), "differ in orientation or pixel spacing", "folders of their own"),
        (_with(PatientID="somebody else"), "differ in PatientID", "separate"),
        (_with(Rows=11), "differ in Rows", "separate"),
        (_with(RescaleSlope="0"), "RescaleSlope is 0", "export"),
        (_with(RescaleSlope=None), "no valid RescaleSlope", "export"),
    ],
)
def test_a_bad_slice_is_named_with_a_remedy(
    change: Change, what: str, remedy: str, series: Path, edit: Any, helpers: Any
) -> None:
    edit(series, "0004.dcm", change)
    with pytest.raises(FormatError) as caught:
        helpers.read(series)
    message = str(caught.value)
    assert "0004.dcm" in message
    assert what in message
    assert re.search(remedy, message), message
    assert "somebody else" not in message
    assert "P-17" not in message.replace(str(series), "")


def test_mixed_series(series: Path, edit: Any, helpers: Any) -> None:
    edit(series, "0001.dcm", _with(SeriesInstanceUID="1.2.3"))
    with pytest.raises(FormatError, match=r"mixes 2 series.*0000.dcm.*0001.dcm.*folder of its own"):
        helpers.read(series)


def test_two_slices_at_one_position(series: Path, edit: Any, helpers: Any) -> None:
    edit(series, "0001.dcm", _moved((0, 0, 3.5)))
    with pytest.raises(FormatError, match=r"0001\.dcm and 0002\.dcm lie at the same position.*Remove.*several phases"):
        helpers.read(series)


def test_a_copied_file(series: Path, helpers: Any) -> None:
    shutil.copy(series / "0001.dcm", series / "copy of 0001.dcm")
    with pytest.raises(FormatError, match=r"copy of 0001.dcm is the same instance as 0001.dcm.*remove"):
        helpers.read(series)


@pytest.mark.parametrize("missing", [1, 2, 3, 4])
def test_a_missing_slice(missing: int, series: Path, helpers: Any) -> None:
    (series / f"{missing:04d}.dcm").unlink()
    with pytest.raises(FormatError, match=f"7.000 mm between 000{missing - 1}.dcm and 000{missing + 1}.dcm.*3.500 mm.*missing"):
        helpers.read(series)


def test_one_slice_off_the_stack(series: Path, edit: Any, helpers: Any) -> None:
    edit(series, "0003.dcm", _moved((0, 1, 0)))
    with pytest.raises(FormatError, match="not evenly spaced"):
        helpers.read(series)


def test_gantry_tilt(series: Path, edit: Any, helpers: Any) -> None:
    for number in range(6):
        edit(series, f"{number:04d}.dcm", _moved((0, number * 3.5 * np.tan(np.radians(15)), 0)))
    with pytest.raises(FormatError, match=r"sheared by 15.0 degrees.*gantry tilt.*resample"):
        helpers.read(series)


def test_folders_that_hold_no_series(tmp_path: Path, series: Path, helpers: Any) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="empty holds no files"):
        helpers.read(tmp_path / "empty")
    with pytest.raises(FormatError, match="nowhere is not a folder"):
        helpers.read(tmp_path / "nowhere")
    (series / "notes.txt").write_text("seen by Dr X")
    with pytest.raises(FormatError, match=r"notes.txt is not a DICOM file.*take it out"):
        helpers.read(series)


def test_no_identity(series: Path, edit: Any, helpers: Any) -> None:
    for file in series.iterdir():
        edit(series, file.name, _with(PatientID=""))
    with pytest.raises(FormatError, match=r"0000.dcm has no PatientID: name the patient in the index"):
        helpers.read(series)
    assert dicom.read_image(series, key=helpers.KEY, patient="from the index").patient


def test_not_finite_values_are_refused_on_both_ways(series: Path, edit: Any, helpers: Any) -> None:
    voxels = np.ones((2, 3, 3))
    voxels[1, 1, 1] = np.nan
    with pytest.raises(FormatError, match=r"new holds 1 of 18 values that are NaN.*repair"):
        dicom.write_image(series.parent / "new", voxels, affine=helpers.AFFINES["axial"], patient="x")
    assert not (series.parent / "new").exists()

    def floats(dataset: pydicom.Dataset) -> None:
        values = dataset.pixel_array.astype("<f4")
        values[0, 0] = np.inf
        del dataset.PixelData
        dataset.BitsAllocated = 32
        dataset.FloatPixelData = values.tobytes()

    edit(series, "0004.dcm", floats)
    with pytest.raises(FormatError, match=r"image holds 1 of 720 values that are NaN, Inf"):
        helpers.read(series)


def test_every_cut_and_many_flipped_bytes_give_an_answer_never_a_crash(tmp_path: Path, helpers: Any) -> None:
    voxels = np.arange(32).reshape(2, 4, 4)
    dicom.write_image(tmp_path / "s", voxels, affine=helpers.AFFINES["axial"], patient="x", uid_seed="x")
    file = tmp_path / "s" / "0001.dcm"
    whole = file.read_bytes()
    for length in range(0, len(whole), 41):
        file.write_bytes(whole[:length])
        with pytest.raises(FormatError, match=re.escape(str(file))):
            helpers.read(tmp_path / "s")
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for at in rng.integers(132, len(whole), 3):
            damaged[at] = rng.integers(256)
        file.write_bytes(bytes(damaged))
        try:
            helpers.read(tmp_path / "s")
        except FormatError:
            refused += 1
    assert refused > 20


def test_a_folder_is_never_half_written_or_written_over(series: Path, helpers: Any) -> None:
    before = {one.name: one.read_bytes() for one in series.iterdir()}
    with pytest.raises(FormatError, match="already there"):
        dicom.write_image(series, np.zeros((2, 3, 3)), affine=helpers.AFFINES["axial"], patient="x")
    assert {one.name: one.read_bytes() for one in series.iterdir()} == before
    assert [one.name for one in series.parent.iterdir()] == ["image"]


def test_skewed_axes_are_refused(tmp_path: Path, helpers: Any) -> None:
    skewed = helpers.placed([0, 0.5, 3.5], [0, 0.8, 0], [1.1, 0, 0])
    with pytest.raises(ValueError, match="perpendicular"):
        dicom.write_image(tmp_path / "s", np.zeros((2, 3, 3)), affine=skewed, patient="x")
    hardly = helpers.placed([0, 0.033, 3.5], [0, 0.8, 0], [1.1, 0, 0])  # as little as the reader lets pass
    dicom.write_image(tmp_path / "s", np.zeros((2, 3, 3)), affine=hardly, patient="x")
    np.testing.assert_allclose(helpers.read(tmp_path / "s").affine, hardly, atol=1e-9)


def test_headers_alone_give_the_same_stack(series: Path, helpers: Any) -> None:
    headers = read_series(series, pixels=False)
    assert headers.grid == (6, 12, 10)
    assert "PixelData" not in headers.slices[0]
    np.testing.assert_array_equal(headers.affine, helpers.read(series).affine)
