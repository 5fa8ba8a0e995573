"""DICOM SEG: segments in patient space to masks on an image's grid, and masks to segments (highdicom)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from client.formats.dicom_files import decode, match_names, numbers
from client.formats.dicom_series import in_series_order, read_series
from client.formats.image import Classes, FormatError, Image, from_class_map
from configs.files import write_bytes

OFF_GRID = 0.25
"""How far a segment's pixel may lie from a voxel of the image, in voxels, before the two grids count as different."""
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName",
    "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
)  # fmt: skip
"""Type 2 attributes, which must be there but may be empty; highdicom copies them, and many exports leave them out."""


def read_seg(dataset: FileDataset, path: Path, image: Image, *, classes: Classes) -> NDArray[np.uint8]:
    """Masks of the classes' segments on the image's grid; where classes overlap, the later one in `classes` wins.

    Every frame is placed by its position and orientation in the patient, so a SEG with frames in any order, flipped or
    cut in another direction lands right, as long as its pixels are the image's voxels.

    Returns:
        (slices, rows, cols) uint8, 0..C.

    Raises:
        FormatError: see `match_names`; not BINARY; frames without a place, off the image's grid, or outside it.
    """
    assert image.affine is not None
    if dataset.get("SegmentationType") != "BINARY":
        raise FormatError(
            f"{path} is a segmentation of type {dataset.get('SegmentationType') or 'missing'}, and only BINARY ones "
            "have sharp "
            "masks: export it as BINARY"
        )
    segments = dataset.get("SegmentSequence") or []
    labels = [str(one.get("SegmentLabel") or "").strip() for one in segments]
    chosen = match_names(labels, path, classes=classes, kind="segment")
    pixels = decode(dataset, path)
    frames = pixels[None] if pixels.ndim == 2 else pixels
    groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    if len(groups) != len(frames):
        raise FormatError(f"{path} describes {len(groups)} frames but holds {len(frames)}: it is corrupt; export it again")
    shared = (list(dataset.get("SharedFunctionalGroupsSequence") or []) or [Dataset()])[0]
    owners = [_group(one, shared, "SegmentIdentificationSequence", path).ReferencedSegmentNumber for one in groups]
    to_index = np.linalg.inv(image.affine)
    mask = np.zeros(image.grid, dtype=np.uint8)
    for value, at in enumerate(chosen, start=1):
        for frame, owner, group in zip(frames, owners, groups, strict=True):
            if owner == segments[at].SegmentNumber and frame.any():
                mask[_voxels(frame, to_index @ _frame_affine(group, shared, path), path, image)] = value
    return mask


def _group(own: Dataset, shared: Dataset, keyword: str, path: Path) -> Dataset:
    """The functional group of a frame: its own, or the one all frames share."""
    for where in (own, shared):
        items = where.get(keyword)
        if items:
            item: Dataset = items[0]
            return item
    raise FormatError(f"{path} has frames without {keyword}, so their place or meaning is unknown: export the segmentation again")


def _frame_affine(group: Dataset, shared: Dataset, path: Path) -> NDArray[np.float64]:
    """(4, 3): (row, col, 1) of a frame to LPS millimetres."""
    why = "so a frame has no place in the patient"
    position = numbers(_group(group, shared, "PlanePositionSequence", path), "ImagePositionPatient", 3, path, why=why)
    cosines = numbers(_group(group, shared, "PlaneOrientationSequence", path), "ImageOrientationPatient", 6, path, why=why)
    spacing = numbers(_group(group, shared, "PixelMeasuresSequence", path), "PixelSpacing", 2, path, why=why)
    columns = [cosines[3:] * spacing[0], cosines[:3] * spacing[1], position]
    return np.vstack([np.stack(columns, axis=1), [0.0, 0.0, 1.0]])


def _voxels(frame: NDArray[np.generic], to_index: NDArray[np.float64], path: Path, image: Image) -> tuple[NDArray[np.int64], ...]:
    """Indices (slices, rows, cols) of the image's voxels under a frame's set pixels."""
    steps = np.abs(to_index[:3, :2])
    unit = np.allclose(np.linalg.norm(steps, axis=0), 1, atol=0.01) and np.allclose(steps.max(axis=0), 1, atol=0.01)
    pixels = np.argwhere(frame)
    places = pixels @ to_index[:3, :2].T + to_index[:3, 2]
    whole = np.rint(places)
    if not unit or np.abs(places - whole).max() > OFF_GRID:
        raise FormatError(
            f"{path} lies on another grid than {image.source} (other spacing, orientation or offset): resample the "
            "segmentation to the image, or use the series it was drawn on"
        )
    if whole.min() < 0 or (whole.max(axis=0) >= image.grid).any():
        raise FormatError(
            f"{path} reaches beyond {image.source}: segmentation and image do not belong together, or slices are missing"
        )
    slices, rows, cols = whole.astype(np.int64).T
    return slices, rows, cols


def write_mask(
    path: Path,
    mask: NDArray[np.generic],
    image: Image,
    *,
    class_names: Sequence[str],
    slice_axis: int = 2,
    algorithm_name: str | None = None,
    uid_seed: str | None = None,
) -> None:
    """Write the classes of `mask` as segments of a binary DICOM SEG that refers to the series `image.source`.

    Every class becomes a segment of its name, also one without a voxel.

    Args:
        mask: (slices, rows, cols), 0..C, on the image's grid.
        slice_axis: not used, as in `read_image`.
        algorithm_name: the model that helped, which marks the segments SEMIAUTOMATIC; None: MANUAL.
        uid_seed: as in `write_image`.

    Raises:
        FormatError: the mask does not fit the image, or the series can't be read or lacks what a SEG must repeat.
        StorageFault: the file can't be written.
    """
    values = from_class_map(mask, image, class_names=class_names)
    series = read_series(image.source, pixels=False)
    values = in_series_order(values, image, series)
    for one in series.slices:
        for keyword in _MAY_BE_EMPTY:
            if keyword not in one:
                setattr(one, keyword, "")

    def uid(what: str) -> str:
        return generate_uid(entropy_srcs=None if uid_seed is None else [uid_seed, "segmentation", what])

    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on unusual patient names and ids quote them
            segmentation = hd.seg.Segmentation(
                source_images=list(series.slices),
                pixel_array=values,
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=[_segment(at, name, algorithm_name) for at, name in enumerate(class_names, start=1)],
                series_instance_uid=uid("series"),
                series_number=3,
                sop_instance_uid=uid("instance"),
                instance_number=1,
                manufacturer="wardround",
                manufacturer_model_name="wardround",
                software_versions="0.1",
                device_serial_number="0",
                transfer_syntax_uid=ExplicitVRLittleEndian,
                omit_empty_frames=bool(values.any()),
            )
            segmentation.save_as(buffer)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{image.source} can't be referred to by a DICOM SEG: {error}. Repair the series' headers, or hand masks "
            "over as RTSTRUCT"
        ) from error
    write_bytes(path, buffer.getvalue())


def _segment(number: int, name: str, algorithm_name: str | None) -> Any:
    """A description that claims no more than we know: a class of this name, drawn by hand or with a model's help."""
    algorithm = None
    if algorithm_name is not None:
        algorithm = hd.AlgorithmIdentificationSequence(
            name=algorithm_name, family=codes.DCM.ArtificialIntelligence, version="0.1", source="wardround"
        )
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=hd.sr.CodedConcept(f"class-{number}", "99WARDROUND", name),
        algorithm_type="MANUAL" if algorithm is None else "SEMIAUTOMATIC",
        algorithm_identification=algorithm,
    )
