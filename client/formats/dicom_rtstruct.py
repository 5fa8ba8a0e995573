"""RTSTRUCT: contours in patient space to masks on an image's grid, and masks to contours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from skimage.measure import find_contours

from client.formats.dicom_files import match_names
from client.formats.dicom_series import in_series_order, read_series
from client.formats.image import Classes, FormatError, Image, from_class_map
from configs.files import write_bytes

TOO_TILTED = 0.25
"""How far the points of one contour may spread across slices, in slices, before it counts as drawn in another plane."""
ONE_PLANE = 0.1
"""Contours closer than this, in slices, lie in one plane and are combined by even-odd."""
_Points = NDArray[np.float64]
_CONTOUR_DATA = Tag("ContourData")


def rasterise(polygons: Sequence[NDArray[np.float64]], *, rows: int, cols: int) -> NDArray[np.bool_]:
    """Even-odd fill of closed polygons: the pixels whose centre has an odd number of outlines around it.

    Holes, islands in holes and keyholes come out right whatever the direction they are drawn in. A centre exactly on an
    outline counts as inside above and left of the region, outside below and right of it (half-open intervals), so
    neighbours that share an outline share no pixel.

    Args:
        polygons: (n, 2) points (row, col) in pixels; (0, 0) is the centre of the first pixel. Closed by themselves.

    Returns:
        (rows, cols).
    """
    toggles = np.zeros((rows, cols + 1), dtype=np.int64)
    for polygon in polygons:
        ends = np.stack([polygon, np.roll(polygon, -1, axis=0)])
        # Every edge is followed downwards: drawn the other way round, it must round to the very same pixels.
        upper = np.argmin(ends[:, :, 0], axis=0)
        (r0, c0), (r1, c1) = ends[upper, np.arange(len(polygon))].T, ends[1 - upper, np.arange(len(polygon))].T
        first = np.clip(np.ceil(r0), 0, rows).astype(np.int64)  # rows r with r0 <= r < r1 cross the edge
        count = np.clip(np.ceil(r1), 0, rows).astype(np.int64) - first
        edge = np.repeat(np.arange(len(polygon)), count)
        row = np.arange(edge.size) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        where = c0[edge] + (row - r0[edge]) * (c1[edge] - c0[edge]) / (r1[edge] - r0[edge])
        np.add.at(toggles, (row, np.clip(np.ceil(where), 0, cols).astype(np.int64)), 1)
    return np.asarray(np.cumsum(toggles[:, :cols], axis=1) % 2 == 1)


def outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Closed outlines of a mask, holes included: `rasterise(outlines(mask)) == mask`, exactly.

    They run half-way between the centres of inner and outer pixels (marching squares), so no centre is ever on one, and
    rounding as far as a quarter of a pixel changes no pixel.

    Returns:
        (n, 2) points (row, col) in pixels, the last not repeating the first, none in the middle of a straight line.
    """
    found = find_contours(np.pad(mask, 1).astype(np.float32), 0.5)  # type: ignore[no-untyped-call]
    result = []
    for line in found:
        points = line[:-1] - 1  # closed by repetition, since the padding keeps outlines off the border
        before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
        turn = (points - before)[:, 0] * (after - points)[:, 1] - (points - before)[:, 1] * (after - points)[:, 0]
        result.append(points[turn != 0])
    return result


def read_rtstruct(dataset: FileDataset, path: Path, image: Image, *, classes: Classes) -> NDArray[np.uint8]:
    """Masks of the classes' ROIs on the image's grid; where classes overlap, the later one in `classes` wins.

    A contour goes to the slice nearest to its plane. In one plane, contours combine by even-odd (holes); exact copies
    of a contour count once. Where planes are closer than slices, a slice takes the plane nearest to it. An ROI that is
    named but not drawn is an empty class.

    Returns:
        (slices, rows, cols) uint8, 0..C.

    Raises:
        FormatError: see `match_names`; contours that are open, broken, drawn in another plane, or outside the image.
    """
    assert image.affine is not None
    defined = dataset.get("StructureSetROISequence") or []
    names = {int(one.ROINumber): str(one.get("ROIName") or "").strip() for one in defined}
    drawn = {int(one.ReferencedROINumber): one for one in dataset.get("ROIContourSequence") or []}
    rois = list(names)
    chosen = match_names(list(names.values()), path, classes=classes, kind="ROI")
    to_index = np.linalg.inv(image.affine)
    mask = np.zeros(image.grid, dtype=np.uint8)
    for value, at in enumerate(chosen, start=1):
        roi = rois[at]
        contours = drawn[roi].get("ContourSequence") or [] if roi in drawn else []
        what = f"{path}: ROI {names[roi]!r}"
        points = [_points(contour, what) @ to_index[:3, :3].T + to_index[:3, 3] for contour in contours]
        for slice_index, polygons in _by_slice(points, image, what).items():
            inside = rasterise(polygons, rows=image.grid[1], cols=image.grid[2])
            mask[slice_index][inside] = value
    return mask


def _points(contour: Dataset, what: str) -> NDArray[np.float64]:
    """(n, 3) LPS millimetres of one closed planar contour."""
    kind = contour.get("ContourGeometricType")
    if kind not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
        raise FormatError(
            f"{what} holds a contour of type {kind or 'missing'}, which encloses no area: close it, or name another ROI"
        )
    element = contour.get_item(_CONTOUR_DATA)
    try:
        # The raw text, not pydicom's list of decimal objects: a structure set holds a hundred thousand numbers.
        if isinstance(element, RawDataElement):
            flat = np.array((element.value or b"").split(b"\\"), dtype=np.float64)
        else:
            flat = np.array([] if element is None else element.value, dtype=np.float64)
    except (ValueError, TypeError):
        flat = np.array([np.nan])
    if flat.size == 0 or flat.size % 3 or not np.isfinite(flat).all():
        raise FormatError(
            f"{what} holds a contour whose points are missing or not triples of numbers: export the structure set again"
        )
    return flat.reshape(-1, 3)


def _by_slice(contours: list[_Points], image: Image, what: str) -> dict[int, list[_Points]]:
    """Contours in index coordinates (slice, row, col) to the polygons of every slice, as `rasterise` takes them."""
    planes: dict[int, list[tuple[float, NDArray[np.float64]]]] = {}
    last = image.grid[0] - 1
    for points in contours:
        across = points[:, 0]
        if np.ptp(across) > 2 * TOO_TILTED:
            raise FormatError(
                f"{what} is drawn across the slices of {image.source} (one contour spans {np.ptp(across):.1f} "
                "slices), not in them: "
                "use the structure set that was drawn on this series"
            )
        place = float(across.mean())
        if place < -0.5 or place > last + 0.5:
            beyond = max(-place, place - last)
            raise FormatError(
                f"{what} has a contour {beyond:.1f} slices beyond the first or last slice of {image.source}: "
                "structure set and "
                "image do not belong together, or slices are missing"
            )
        planes.setdefault(min(max(int(np.floor(place + 0.5)), 0), last), []).append((place, points[:, 1:]))
    result = {}
    for slice_index, lying in planes.items():
        nearest = min(lying, key=lambda one: abs(one[0] - slice_index))[0]
        kept: list[NDArray[np.float64]] = []
        for place, polygon in lying:
            copy = any(np.array_equal(polygon, other) for other in kept)
            if abs(place - nearest) <= ONE_PLANE and not copy:
                kept.append(polygon)
        result[slice_index] = kept
    return result


def write_rtstruct(
    path: Path, mask: NDArray[np.generic], image: Image, *, class_names: Sequence[str], uid_seed: str | None = None
) -> None:
    """Write the classes of `mask` as ROIs of a structure set that refers to the series `image.source`.

    Every class becomes an ROI of its name, also one without a voxel. Reading it back gives the same mask, voxel for
    voxel.

    Args:
        mask: (slices, rows, cols), 0..C, on the image's grid.
        uid_seed: as in `write_image`.

    Raises:
        FormatError: the mask does not fit the image, or the series can't be read.
        StorageFault: the file can't be written.
    """
    values = from_class_map(mask, image, class_names=class_names)
    series = read_series(image.source, pixels=False)
    values = in_series_order(values, image, series)
    dataset = _structure_set(series.slices, class_names, uid_seed=uid_seed)
    for value, item in enumerate(dataset.ROIContourSequence, start=1):
        contours = []
        for slice_index in np.flatnonzero((values == value).any(axis=(1, 2))):
            source = series.slices[int(slice_index)]
            for polygon in outlines(values[slice_index] == value):
                points = np.column_stack([np.full(len(polygon), float(slice_index)), polygon])
                contours.append(_contour(points @ series.affine[:3, :3].T + series.affine[:3, 3], source))
        if contours:
            item.ContourSequence = contours
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    write_bytes(path, buffer.getvalue())


def _contour(points: NDArray[np.float64], source: FileDataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    contour = Dataset()
    contour.ContourImageSequence = [reference]
    contour.ContourGeometricType = "CLOSED_PLANAR"
    contour.NumberOfContourPoints = len(points)
    # As raw text, for the reason given in `_points`. A hundredth of a micrometre is far below any pixel.
    text = "\\".join(f"{number:.5f}" for number in points.ravel().tolist()).encode()
    text += b" " * (len(text) % 2)
    contour[_CONTOUR_DATA] = RawDataElement(_CONTOUR_DATA, "DS", len(text), text, 0, False, True)
    return contour


def _structure_set(slices: Sequence[FileDataset], class_names: Sequence[str], *, uid_seed: str | None) -> Dataset:
    """The structure set with its references and ROIs, still without contours."""
    first = slices[0]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = RTStructureSetStorage
    dataset.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage

    def uid(what: str) -> str:
        return generate_uid(entropy_srcs=None if uid_seed is None else [uid_seed, "structure set", what])

    dataset.SOPInstanceUID = uid("instance")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    for keyword in (
        "SpecificCharacterSet",
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyID",
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "ReferringPhysicianName",
        "FrameOfReferenceUID",
        "PositionReferenceIndicator",
    ):
        if keyword in first or keyword != "SpecificCharacterSet":
            setattr(dataset, keyword, first.get(keyword) or "")
    dataset.Modality, dataset.SeriesInstanceUID, dataset.SeriesNumber = "RTSTRUCT", uid("series"), 2
    dataset.Manufacturer, dataset.OperatorsName = "wardround", ""
    dataset.StructureSetLabel, dataset.StructureSetDate, dataset.StructureSetTime = "wardround", "", ""
    dataset.ApprovalStatus = "UNAPPROVED"

    images = []
    for one in slices:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one.SOPClassUID, one.SOPInstanceUID
        images.append(item)
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID, series.ContourImageSequence = first.SeriesInstanceUID, images
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"  # the (retired) study class that RTSTRUCT still names here
    study.ReferencedSOPInstanceUID, study.RTReferencedSeriesSequence = first.StudyInstanceUID, [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = dataset.FrameOfReferenceUID, [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]

    rois, contours, observations = [], [], []
    for number, name in enumerate(class_names, start=1):
        roi, drawn, observation = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm = number, name, ""
        roi.ReferencedFrameOfReferenceUID = dataset.FrameOfReferenceUID
        drawn.ReferencedROINumber = number
        observation.ObservationNumber = observation.ReferencedROINumber = number
        observation.RTROIInterpretedType, observation.ROIInterpreter = "", ""
        rois.append(roi)
        contours.append(drawn)
        observations.append(observation)
    dataset.StructureSetROISequence, dataset.ROIContourSequence = rois, contours
    dataset.RTROIObservationsSequence = observations
    return dataset
