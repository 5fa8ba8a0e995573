"""Reading a folder that holds one classic DICOM series: slices by position, values after rescale."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset
from pydicom.pixels.processing import apply_modality_lut
from pydicom.uid import UID

from client.formats.dicom_files import decode, numbers, open_dicom
from client.formats.image import FormatError, Image, checked_voxels, keyed_hash

OFF_POSITION = 0.1
"""How far a slice may lie from its place in an even stack, as a share of the slice spacing (positions are rounded)."""
OFF_NORMAL = 0.01
"""Largest tangent of the gantry tilt: sideways step from slice to slice over the slice spacing."""
_NOT_SLICES = frozenset({"dicomdir", "thumbs.db", "desktop.ini"})
_SHARED = ("Rows", "Columns", "PhotometricInterpretation", "FrameOfReferenceUID", "PatientID")


@dataclass(frozen=True)
class Series:
    """The slices of one series, ordered by position along the slice normal.

    Attributes:
        slices: parsed files, lowest position first; `files` are their paths in the same order.
        affine: (4, 4), (slice, row, col, 1) to LPS millimetres.
    """

    folder: Path
    slices: tuple[FileDataset, ...]
    files: tuple[Path, ...]
    affine: NDArray[np.float64]

    @property
    def grid(self) -> tuple[int, int, int]:
        """(slices, rows, cols)."""
        return len(self.slices), int(self.slices[0].Rows), int(self.slices[0].Columns)


def read_image(
    path: Path,
    *,
    key: str,
    patient: str | None = None,
    slice_axis: int = 2,
    window: tuple[float, float] | None = None,
) -> Image:
    """Read the one series in the folder `path`.

    Values are those after the modality transform (rescale slope and intercept: Hounsfield units in CT). A MONOCHROME1
    series, in which low values are bright, is turned over within its own range, so that high is bright in every image.

    Args:
        key: the site's secret for `keyed_hash`.
        patient: identity from an index; None takes the files' PatientID. Either is hashed here and goes no further.
        slice_axis: not used, a series has its slices already; here because all formats are called alike.
        window: (centre, width) to apply, clipped to 0..1 (DICOM's LINEAR_EXACT: centre - width/2 becomes 0).

    Raises:
        FormatError: the folder is not one evenly spaced series of readable grey slices; names the file and the remedy.
        ValueError: a window that is not wider than 0.
    """
    if window is not None and not window[1] > 0:
        raise ValueError(f"window = {list(window)}: the second number is the width and must be above 0")
    series = read_series(path, pixels=True)
    identity = patient if patient is not None else str(series.slices[0].get("PatientID") or "").strip()
    if not identity:
        raise FormatError(f"{series.files[0]} has no PatientID: name the patient in the index, so that splits are by patient")
    planes = [_values(one, file) for one, file in zip(series.slices, series.files, strict=True)]
    voxels = checked_voxels(np.stack(planes), path)
    if window is not None:
        voxels = np.clip((voxels - np.float32(window[0])) / np.float32(window[1]) + np.float32(0.5), 0, 1)
    if series.slices[0].PhotometricInterpretation == "MONOCHROME1":
        voxels = np.float32(1) - voxels if window is not None else voxels.max() + voxels.min() - voxels
    lengths = np.linalg.norm(series.affine[:3, :3], axis=0)
    return Image(
        voxels=voxels,
        affine=series.affine,
        spacing_mm=(float(lengths[0]), float(lengths[1]), float(lengths[2])),
        patient=keyed_hash(identity, key=key),
        source=path,
    )


def read_series(folder: Path, *, pixels: bool) -> Series:
    """Parse every file of a series folder, check that they are one even stack, and order them by position.

    The order is that of ImagePositionPatient along the slice normal, never that of names or instance numbers.

    Raises:
        FormatError: see `read_image`.
    """
    files = series_files(folder)
    slices = [open_dicom(file, pixels=pixels) for file in files]
    for dataset, file in zip(slices, files, strict=True):
        _check_is_slice(dataset, file)
    _check_one_series(slices, files, folder)
    why = "so its place in the patient is unknown"
    pairs = zip(slices, files, strict=True)
    positions = np.stack([numbers(one, "ImagePositionPatient", 3, file, why=why) for one, file in pairs])
    axes = _plane_axes(slices, files)
    normal = np.cross(axes[:, 1], axes[:, 0])
    normal /= np.linalg.norm(normal)
    order = np.argsort(positions @ normal, kind="stable")
    slices, files, positions = [slices[at] for at in order], [files[at] for at in order], positions[order]
    affine = np.eye(4)
    affine[:3, 0] = _slice_step(positions, normal, slices, files)
    affine[:3, 1:3] = axes
    affine[:3, 3] = positions[0]
    return Series(folder=folder, slices=tuple(slices), files=tuple(files), affine=affine)


def in_series_order(mask: NDArray[np.uint8], image: Image, series: Series) -> NDArray[np.uint8]:
    """`mask`, on the grid of `image`, with its slices in the order of `series`, which may be the other way round.

    Raises:
        FormatError: the image and the series do not lie at the same place in the patient.
    """
    if image.affine is not None and image.grid == series.grid:
        for turned in (mask, mask[::-1]):
            affine = image.affine.copy()
            if turned is not mask:
                affine[:3, 3] += (len(mask) - 1) * affine[:3, 0]
                affine[:3, 0] *= -1
            corners = np.array([[0, 0, 0, 1], [len(mask), 0, 0, 1], [0, *mask.shape[1:], 1]]).T
            if np.abs((affine - series.affine) @ corners).max() < 0.1:
                return turned
    raise FormatError(
        f"the mask's image and the series in {series.folder} differ in size or place: read the image from that folder again"
    )


def series_files(folder: Path) -> list[Path]:
    """The files of a series folder, by name; what file managers and exports leave beside them is passed over.

    Raises:
        FormatError: no such folder, or an empty one.
    """
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder: a DICOM image is a folder that holds the files of one series")
    files = sorted(one for one in folder.iterdir() if not one.name.startswith(".") and one.name.lower() not in _NOT_SLICES)
    if not files:
        raise FormatError(f"{folder} holds no files: put the DICOM files of one series there, or take it out of the index")
    return files


def _check_is_slice(dataset: FileDataset, file: Path) -> None:
    """One grey plane, as far as the header tells."""
    kind = UID(dataset.SOPClassUID).name
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise FormatError(
            f"{file} is not an image (it is a {kind}): keep only the series' image files in this folder, "
            "structure sets and segmentations beside it"
        )
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise FormatError(
            f"{file} is a multi-frame {kind}: convert it to single-frame files (dcm4che `emf2sf`, or your PACS's export)"
        )
    grey = dataset.get("PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2")
    if not grey or int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise FormatError(
            f"{file} is not a grey image (PhotometricInterpretation "
            f"{dataset.get('PhotometricInterpretation') or 'missing'}): "
            'export it as MONOCHROME2, or use colour pictures with format = "picture"'
        )


def _check_one_series(slices: list[FileDataset], files: list[Path], folder: Path) -> None:
    """All files carry one SeriesInstanceUID, none twice, and agree in what the stack shares."""
    groups: dict[str, list[Path]] = {}
    for dataset, file in zip(slices, files, strict=True):
        groups.setdefault(str(dataset.get("SeriesInstanceUID")), []).append(file)
    if len(groups) > 1:
        listed = "; ".join(f"{len(group)} like {group[0].name}" for group in list(groups.values())[:5])
        raise FormatError(f"{folder} mixes {len(groups)} series ({listed}): give each series a folder of its own")
    seen: dict[str, Path] = {}
    for dataset, file in zip(slices, files, strict=True):
        instance = str(dataset.get("SOPInstanceUID"))
        if instance in seen:
            raise FormatError(f"{file} is the same instance as {seen[instance].name}: duplicate slices; remove one of the two")
        seen[instance] = file
    for keyword in _SHARED:
        for dataset, file in zip(slices, files, strict=True):
            if dataset.get(keyword) != slices[0].get(keyword):
                raise FormatError(
                    f"{file} and {files[0].name} differ in {keyword}, so they are not slices of one volume: "
                    "separate them into folders of their own, or export the series again"
                )


def _plane_axes(slices: list[FileDataset], files: list[Path]) -> NDArray[np.float64]:
    """(3, 2): steps in millimetres to the next row and to the next column, the same in every slice."""
    axes: list[NDArray[np.float64]] = []
    for dataset, file in zip(slices, files, strict=True):
        cosines = numbers(dataset, "ImageOrientationPatient", 6, file, why="so its orientation in the patient is unknown")
        along_row, along_column = cosines[:3], cosines[3:]
        unit = np.allclose([along_row @ along_row, along_column @ along_column], 1, atol=0.01)
        if not unit or abs(along_row @ along_column) > 0.01:
            raise FormatError(f"{file}: ImageOrientationPatient is not two perpendicular unit vectors; export the series again")
        spacing = numbers(dataset, "PixelSpacing", 2, file, why="so sizes in it are unknown")
        if spacing.min() <= 0:
            raise FormatError(f"{file}: PixelSpacing must be above 0; export the series again")
        step_row = along_column / np.linalg.norm(along_column) * spacing[0]
        step_col = along_row / np.linalg.norm(along_row) * spacing[1]
        axes.append(np.stack([step_row, step_col], axis=1))
        if not np.allclose(axes[-1], axes[0], atol=1e-3 * spacing.max()):
            raise FormatError(
                f"{file} and {files[0].name} differ in orientation or pixel spacing (a scout among the slices?): "
                "separate them into folders of their own"
            )
    return axes[0]


def _slice_step(
    positions: NDArray[np.float64], normal: NDArray[np.float64], slices: list[FileDataset], files: list[Path]
) -> NDArray[np.float64]:
    """(3,) step in millimetres to the next slice of an ordered, even, untilted stack."""
    if len(positions) == 1:
        keyword = "SpacingBetweenSlices" if slices[0].get("SpacingBetweenSlices") else "SliceThickness"
        thickness = numbers(slices[0], keyword, 1, files[0], why="and a single slice shows no other spacing")[0]
        if thickness <= 0:
            raise FormatError(f"{files[0]}: {keyword} must be above 0; export the slice again")
        return np.asarray(normal * thickness)
    heights = positions @ normal
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    close = int(np.argmin(gaps))
    if gaps[close] <= max(OFF_POSITION * usual, 1e-4):
        raise FormatError(
            f"{files[close]} and {files[close + 1].name} lie at the same position: duplicate slices. Remove the "
            "copies; "
            "a series with several phases, echoes or b-values must be split into one folder each"
        )
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    spacing = float(step @ normal)
    sideways = float(np.linalg.norm(step - spacing * normal))
    if sideways > OFF_NORMAL * spacing:
        degrees = float(np.degrees(np.arctan2(sideways, spacing)))
        raise FormatError(
            f"{files[0].parent}: the stack is sheared by {degrees:.1f} degrees against its slices (gantry tilt): "
            "resample the series to untilted slices first"
        )
    ideal = positions[0] + np.arange(len(positions))[:, None] * step
    off = np.linalg.norm(positions - ideal, axis=1)
    if off.max() > OFF_POSITION * spacing:
        wide = int(np.argmax(np.abs(gaps - usual)))
        raise FormatError(
            f"{files[0].parent}: the slices are not evenly spaced: {gaps[wide]:.3f} mm between {files[wide].name} and "
            f"{files[wide + 1].name}, {usual:.3f} mm elsewhere. If a slice is missing, export the series again; else "
            "resample it"
        )
    return np.asarray(step)


def _values(dataset: FileDataset, file: Path) -> NDArray[np.generic]:
    """(rows, cols) after the modality transform."""
    plane = decode(dataset, file)
    if plane.shape != (dataset.Rows, dataset.Columns):
        raise FormatError(
            f"{file} decodes to shape {plane.shape}, its header says {(dataset.Rows, dataset.Columns)}: export it again"
        )
    if "RescaleSlope" in dataset:
        slope = numbers(dataset, "RescaleSlope", 1, file, why="so its values have no meaning")[0]
        numbers(dataset, "RescaleIntercept", 1, file, why="so its values have no meaning")
        if slope == 0:
            raise FormatError(f"{file}: RescaleSlope is 0, which makes every value the same; export the series again")
    try:
        return np.asarray(apply_modality_lut(plane, dataset))
    except Exception as error:  # a lookup table can be damaged in many ways
        raise FormatError(
            f"{file}: its modality transform is corrupt ({type(error).__name__}); export the series again"
        ) from error
