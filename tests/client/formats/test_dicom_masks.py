"""Masks go to RTSTRUCT or SEG and come back voxel for voxel, at their place in the patient, from any series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pydicom.pixels.utils import pack_bits
from scipy.spatial.transform import Rotation

from client.formats import classes_as_written, dicom
from client.formats.image import FormatError, Image

NAMES = ["liver", "tumour", "vessel", "spleen"]
CLASSES = {name: [name] for name in NAMES}
WRITERS = {"rtstruct": dicom.write_rtstruct, "seg": dicom.write_mask}


@pytest.fixture(params=list(WRITERS))
def write(request: pytest.FixtureRequest) -> Any:
    return WRITERS[request.param]


@pytest.fixture
def study(series: Path, helpers: Any) -> tuple[Image, NDArray[np.uint8]]:
    """The plain series with two classes in it, which overlap nowhere."""
    mask = np.zeros((6, 12, 10), dtype=np.uint8)
    mask[1:4, 2:9, 2:8] = 1
    mask[2:5, 9:11, 1:5] = 2
    return helpers.read(series), mask


def test_masks_come_back_at_their_place_in_the_patient(
    affine: NDArray[np.float64], blobs: NDArray[np.uint8], write: Any, tmp_path: Path, helpers: Any
) -> None:
    dicom.write_image(tmp_path / "s", np.zeros(blobs.shape), affine=affine, patient="x")
    as_written = Image(np.zeros(blobs.shape, np.float32), affine, None, "x", tmp_path / "s")
    write(tmp_path / "mask.dcm", blobs, as_written, class_names=NAMES)
    image = helpers.read(tmp_path / "s")
    back = dicom.read_mask(tmp_path / "mask.dcm", image, classes=CLASSES)
    assert back.dtype == np.uint8
    assert helpers.same_in_patient(blobs, affine, back, image.affine)
    write(tmp_path / "again.dcm", back, image, class_names=NAMES)
    np.testing.assert_array_equal(dicom.read_mask(tmp_path / "again.dcm", image, classes=CLASSES), back)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mask=arrays(np.uint8, st.tuples(st.just(2), st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2)),
    turn=st.tuples(*[st.integers(0, 359)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    flip=st.sampled_from([-1, 1]),
)
def test_any_mask_in_any_orientation_survives_a_structure_set(
    mask: NDArray[np.uint8],
    turn: tuple[int, int, int],
    spacing: tuple[float, float, float],
    flip: int,
    tmp_path_factory: pytest.TempPathFactory,
    helpers: Any,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    steps = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() * np.array(spacing)
    steps[:, 0] *= flip
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = steps, [250.123456, -1234.5, 87.0]
    dicom.write_image(folder / "s", np.zeros(mask.shape), affine=affine, patient="x")
    image = helpers.read(folder / "s")
    at_home = Image(image.voxels, affine, None, "x", folder / "s")
    dicom.write_rtstruct(folder / "RS.dcm", mask, at_home, class_names=["a", "b"])
    back = dicom.read_mask(folder / "RS.dcm", image, classes={"a": ["a"], "b": ["b"]})
    assert helpers.same_in_patient(mask, affine, back, image.affine)


def test_seg_frames_are_placed_by_position_not_by_order(study: Any, tmp_path: Path) -> None:
    image, mask = study
    dicom.write_mask(tmp_path / "m.dcm", mask, image, class_names=NAMES[:2])
    dataset = pydicom.dcmread(tmp_path / "m.dcm")
    order = np.random.default_rng(1).permutation(len(dataset.PerFrameFunctionalGroupsSequence))
    frames = dataset.pixel_array[order]
    dataset.PixelData = pack_bits(frames)
    dataset.PerFrameFunctionalGroupsSequence = [dataset.PerFrameFunctionalGroupsSequence[int(at)] for at in order]
    dataset.save_as(tmp_path / "shuffled.dcm")
    back = dicom.read_mask(tmp_path / "shuffled.dcm", image, classes=classes_as_written("dicom", NAMES[:2]))
    np.testing.assert_array_equal(back, mask)


def test_a_seg_stored_upside_down_and_mirrored_lands_right(study: Any, tmp_path: Path) -> None:
    image, mask = study
    dicom.write_mask(tmp_path / "m.dcm", mask, image, class_names=NAMES[:2])
    dataset = pydicom.dcmread(tmp_path / "m.dcm")
    _, rows, cols = image.grid
    last = (rows - 1) * image.affine[:3, 1] + (cols - 1) * image.affine[:3, 2]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    cosines = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [-float(one) for one in cosines]
    for group in dataset.PerFrameFunctionalGroupsSequence:
        plane = group.PlanePositionSequence[0]
        plane.ImagePositionPatient = [float(a) + b for a, b in zip(plane.ImagePositionPatient, last, strict=True)]
    dataset.PixelData = pack_bits(np.ascontiguousarray(dataset.pixel_array[:, ::-1, ::-1]))
    dataset.save_as(tmp_path / "turned.dcm")
    back = dicom.read_mask(tmp_path / "turned.dcm", image, classes={name: [name] for name in NAMES[:2]})
    np.testing.assert_array_equal(back, mask)


def test_empty_classes_and_empty_masks_come_back_empty(study: Any, write: Any, tmp_path: Path) -> None:
    image, mask = study
    write(tmp_path / "some.dcm", mask, image, class_names=NAMES)
    np.testing.assert_array_equal(dicom.read_mask(tmp_path / "some.dcm", image, classes=CLASSES), mask)
    write(tmp_path / "none.dcm", np.zeros_like(mask), image, class_names=NAMES)
    assert not dicom.read_mask(tmp_path / "none.dcm", image, classes=CLASSES).any()


def test_classes_are_numbered_as_in_the_configuration(study: Any, write: Any, tmp_path: Path) -> None:
    image, mask = study
    write(tmp_path / "m.dcm", mask, image, class_names=["a", "b"])
    swapped = dicom.read_mask(tmp_path / "m.dcm", image, classes={"second": ["b"], "first": ["a"]})
    np.testing.assert_array_equal(swapped, np.array([0, 2, 1])[mask])
    only = dicom.read_mask(tmp_path / "m.dcm", image, classes={"second": ["b"]})
    np.testing.assert_array_equal(only, mask == 2)


def test_the_later_class_wins_an_overlap(study: Any, write: Any, tmp_path: Path) -> None:
    image, mask = study
    write(tmp_path / "m.dcm", mask, image, class_names=["a", "b"])
    dataset = pydicom.dcmread(tmp_path / "m.dcm")
    if "ROIContourSequence" in dataset:  # make b a copy of a
        dataset.ROIContourSequence[1].ContourSequence = dataset.ROIContourSequence[0].ContourSequence
    else:
        for group in dataset.PerFrameFunctionalGroupsSequence:
            group.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 1
        frames = len(dataset.pixel_array)
        twin = pydicom.dcmread(tmp_path / "m.dcm")
        dataset.PerFrameFunctionalGroupsSequence.extend(twin.PerFrameFunctionalGroupsSequence)
        for group in list(dataset.PerFrameFunctionalGroupsSequence)[frames:]:
            group.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 2
        dataset.PixelData = pack_bits(np.concatenate([twin.pixel_array] * 2))
        dataset.NumberOfFrames = 2 * frames
    dataset.save_as(tmp_path / "m.dcm")
    assert set(np.unique(dicom.read_mask(tmp_path / "m.dcm", image, classes={"a": ["a"], "b": ["b"]}))) == {0, 2}
    assert (dicom.read_mask(tmp_path / "m.dcm", image, classes={"b": ["b"], "a": ["a"]})[mask == 1] == 2).all()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"t": ["GTV_Mass"]}, "no .*s match classes.t = .*found: 'GTV_Mass_MR', 'GTV_node', 'liver'.*[Aa]djust"),
        ({"t": ["gtv_mass*"]}, "no .*upper and lower case"),
        ({"t": ["GTV*"]}, r"2 .*s match classes.t.*found: 'GTV_Mass_MR', 'GTV_node', 'liver'\. Adjust the patterns"),
        ({"t": ["*Mass*"], "l": ["liver", "GTV_M*"]}, r"2 .*s match classes.l.*Adjust the patterns"),
        ({"t": ["*Mass*"], "u": ["GTV_M*"]}, "'GTV_Mass_MR' is claimed by classes.t and by classes.u.*found:"),
        ({"t": 1}, r"classes.t = 1 is a label value.*give a list of names.*found: 'GTV_Mass_MR'"),
        ({"t": []}, "no .*s match classes.t"),
    ],
)
def test_names_that_match_no_or_two_structures(
    classes: dict[str, Any], message: str, study: Any, write: Any, tmp_path: Path
) -> None:
    image, mask = study
    write(tmp_path / "m.dcm", mask, image, class_names=["GTV_Mass_MR", "GTV_node", "liver"])
    with pytest.raises(FormatError, match=f"m.dcm.*{message}" if classes != {"t": 1} else message):
        dicom.read_mask(tmp_path / "m.dcm", image, classes=classes)


def test_wildcards_match_one_structure(study: Any, write: Any, tmp_path: Path) -> None:
    image, mask = study
    write(tmp_path / "m.dcm", mask, image, class_names=["GTV_Mass_MR_T1", "Liver [old]"])
    found = dicom.read_mask(tmp_path / "m.dcm", image, classes={"t": ["GTV_Mass*", "GTV_M*", "nothing"], "l": ["[Ll]iver*"]})
    np.testing.assert_array_equal(found, mask)
    own = classes_as_written("dicom", ["GTV_Mass_MR_T1", "Liver [old]"])
    np.testing.assert_array_equal(dicom.read_mask(tmp_path / "m.dcm", image, classes=own), mask)


def test_another_image_with_another_frame_of_reference_is_refused(study: Any, write: Any, tmp_path: Path, helpers: Any) -> None:
    image, mask = study
    write(tmp_path / "m.dcm", mask, image, class_names=NAMES)
    dicom.write_image(tmp_path / "other", image.voxels, affine=image.affine, patient="x")
    with pytest.raises(FormatError, match=r"m.dcm was drawn in another frame of reference than .*other.*pair"):
        dicom.read_mask(tmp_path / "m.dcm", helpers.read(tmp_path / "other"), classes=CLASSES)


def test_other_files_than_masks_are_refused(study: Any, tmp_path: Path) -> None:
    image, _ = study
    with pytest.raises(FormatError, match=r"0000.dcm is a MR Image Storage, not a structure set"):
        dicom.read_mask(image.source / "0000.dcm", image, classes=CLASSES)
    (tmp_path / "m.dcm").write_text("a mask, honestly")
    with pytest.raises(FormatError, match=r"m.dcm is not a DICOM file"):
        dicom.read_mask(tmp_path / "m.dcm", image, classes=CLASSES)
    with pytest.raises(FormatError, match=r"nowhere.dcm cannot be read"):
        dicom.read_mask(tmp_path / "nowhere.dcm", image, classes=CLASSES)


def test_a_mask_of_fewer_slices_than_it_covers_is_refused(study: Any, write: Any, tmp_path: Path, helpers: Any) -> None:
    image, mask = study
    write(tmp_path / "m.dcm", mask, image, class_names=NAMES)
    for name in ("0003.dcm", "0004.dcm", "0005.dcm"):
        (image.source / name).unlink()
    with pytest.raises(FormatError, match=r"beyond.*slices are missing"):
        dicom.read_mask(tmp_path / "m.dcm", helpers.read(image.source), classes=CLASSES)


def test_masks_that_do_not_fit_are_not_written(study: Any, write: Any, tmp_path: Path, helpers: Any) -> None:
    image, mask = study
    with pytest.raises(FormatError, match=r"shape \(5, 12, 10\) does not fit"):
        write(tmp_path / "m.dcm", mask[1:], image, class_names=NAMES)
    with pytest.raises(FormatError, match="class values go from 0 to 1"):
        write(tmp_path / "m.dcm", mask, image, class_names=NAMES[:1])
    moved = Image(image.voxels, image.affine + np.eye(4)[:, [1, 2, 0, 3]] * 0.5, None, "x", image.source)
    with pytest.raises(FormatError, match="differ in size or place"):
        write(tmp_path / "m.dcm", mask, moved, class_names=NAMES)
    assert not (tmp_path / "m.dcm").exists()


def test_damaged_mask_files_give_an_answer_never_a_crash(study: Any, write: Any, tmp_path: Path) -> None:
    image, mask = study
    write(tmp_path / "m.dcm", mask, image, class_names=["a", "b"])
    whole = (tmp_path / "m.dcm").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(120):
        damaged = bytearray(whole)
        if trial % 2:
            damaged = damaged[: rng.integers(len(whole) - 100)]
        else:
            for at in rng.integers(132, len(whole), 8):
                damaged[at] = rng.integers(256)
        (tmp_path / "m.dcm").write_bytes(bytes(damaged))
        try:
            dicom.read_mask(tmp_path / "m.dcm", image, classes={"a": ["a"], "b": ["b"]})
        except FormatError as error:
            refused += "m.dcm" in str(error)
    assert refused > 60


def test_a_kind_of_file_that_is_several_is_told(study: Any, tmp_path: Path) -> None:
    image, mask = study
    dicom.write_mask(tmp_path / "m.dcm", mask, image, class_names=NAMES)
    dataset = pydicom.dcmread(tmp_path / "m.dcm")
    dataset.SOPClassUID = [dataset.SOPClassUID, "1.2.3"]
    dataset.save_as(tmp_path / "m.dcm")
    with pytest.raises(FormatError, match=r"m\.dcm is corrupt or cut off"):
        dicom.read_mask(tmp_path / "m.dcm", image, classes={"a": ["a"]})


def test_a_seg_says_who_drew_it(study: Any, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    image, mask = study
    dicom.write_mask(tmp_path / "hand.dcm", mask, image, class_names=NAMES)
    dicom.write_mask(tmp_path / "model.dcm", mask, image, class_names=NAMES, algorithm_name="UNet, cycle 3")
    hand, model = (pydicom.dcmread(tmp_path / name).SegmentSequence for name in ("hand.dcm", "model.dcm"))
    assert {one.SegmentAlgorithmType for one in hand} == {"MANUAL"}
    assert {one.SegmentAlgorithmType for one in model} == {"SEMIAUTOMATIC"}
    assert {one.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName for one in model} == {"UNet, cycle 3"}
    assert [one.SegmentLabel for one in model] == NAMES
    assert not any("P-17" in str(one.message) for one in recwarn), "a warning quotes the patient's name"


def test_masks_refer_to_the_slices_they_were_drawn_on(study: Any, write: Any, tmp_path: Path) -> None:
    image, mask = study
    write(tmp_path / "m.dcm", mask, image, class_names=NAMES)
    dataset = pydicom.dcmread(tmp_path / "m.dcm")
    sources = {pydicom.dcmread(one).SOPInstanceUID for one in image.source.iterdir()}
    named = {element.value for element in dataset.iterall() if element.keyword == "ReferencedSOPInstanceUID"}
    assert sources <= named
    first = pydicom.dcmread(image.source / "0000.dcm")
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert dataset[keyword].value == first[keyword].value


def test_only_binary_segmentations(study: Any, tmp_path: Path) -> None:
    image, mask = study
    dicom.write_mask(tmp_path / "m.dcm", mask, image, class_names=NAMES)
    dataset = pydicom.dcmread(tmp_path / "m.dcm")
    dataset.SegmentationType = "FRACTIONAL"
    dataset.save_as(tmp_path / "m.dcm")
    with pytest.raises(FormatError, match=r"m.dcm is a segmentation of type FRACTIONAL.*export it as BINARY"):
        dicom.read_mask(tmp_path / "m.dcm", image, classes=CLASSES)


@pytest.mark.parametrize("what", ["shifted", "coarser", "turned"])
def test_a_seg_on_another_grid(what: str, study: Any, tmp_path: Path) -> None:
    image, mask = study
    dicom.write_mask(tmp_path / "m.dcm", mask, image, class_names=NAMES)
    dataset = pydicom.dcmread(tmp_path / "m.dcm")
    shared = dataset.SharedFunctionalGroupsSequence[0]
    if what == "coarser":
        shared.PixelMeasuresSequence[0].PixelSpacing = [0.9, 1.1]
    elif what == "turned":
        shared.PlaneOrientationSequence[0].ImageOrientationPatient = [0.8, 0.6, 0, -0.6, 0.8, 0]
    else:
        for group in dataset.PerFrameFunctionalGroupsSequence:
            plane = group.PlanePositionSequence[0]
            plane.ImagePositionPatient = [float(plane.ImagePositionPatient[0]) + 0.5, *plane.ImagePositionPatient[1:]]
    dataset.save_as(tmp_path / "m.dcm")
    with pytest.raises(FormatError, match=r"m.dcm lies on another grid than .*resample"):
        dicom.read_mask(tmp_path / "m.dcm", image, classes=CLASSES)
