"""Writing a classic DICOM series: one file a slice, 16 bits with rescale, anywhere in patient space."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from client.formats.dicom_series import OFF_NORMAL
from client.formats.image import FormatError, checked_voxels
from configs.files import StorageFault

Modality = Literal["MR", "CT"]
Photometric = Literal["MONOCHROME2", "MONOCHROME1"]
_Uid = Callable[..., str]


def write_image(
    path: Path,
    voxels: NDArray[np.generic],
    *,
    affine: NDArray[np.float64],
    patient: str,
    modality: Modality = "MR",
    photometric: Photometric = "MONOCHROME2",
    description: str = "",
    manufacturer: str = "",
    model: str = "",
    uid_seed: str | None = None,
) -> None:
    """Write a series into the new folder `path`, whole or not at all.

    Values are stored as unsigned 16 bits: exactly where they are whole numbers that span less than 65,536, else rounded
    to a 65,535th of their span. A reader sorts slices by position, so where `affine` steps against the slice normal the
    series comes back in the other order, each slice at its place in the patient.

    Args:
        path: folder to make; its parents are made too.
        voxels: (slices, rows, cols), any real dtype, finite.
        affine: (4, 4), (slice, row, col, 1) to LPS millimetres; the three axes perpendicular.
        patient: PatientID and PatientName, written as given.
        photometric: with MONOCHROME1 the stored values are turned over, so that the picture a reader shows is the same.
        uid_seed: makes all UIDs a function of it, for repeatable files; it must be unique to the series. None: random.

    Raises:
        FormatError: values that are not finite, or a folder that is already there.
        ValueError: voxels that are not 3D, or an affine with skewed axes.
        StorageFault: the disk is full or not writable.
    """
    if voxels.ndim != 3:
        raise ValueError(f"a DICOM series is written from (slices, rows, cols), not from shape {voxels.shape}")
    if path.exists():
        raise FormatError(f"{path} is already there: write the series to a new folder, or remove this one first")
    steps = np.asarray(affine, dtype=np.float64)[:3, :3]
    spacing = np.linalg.norm(steps, axis=0)
    units = steps / spacing
    if not np.allclose(units.T @ units, np.eye(3), atol=OFF_NORMAL + 1e-4):  # what was read can be written
        raise ValueError("the affine's axes are not perpendicular: resample the volume before writing it as DICOM")
    values = checked_voxels(voxels, path).astype(np.float64)
    if photometric == "MONOCHROME1":
        values = values.min() + values.max() - values
    stored, slope, intercept = _to_uint16(values)

    def uid(*what: object) -> str:
        return generate_uid(entropy_srcs=None if uid_seed is None else [uid_seed, *map(str, what)])

    dataset = _template(uid, modality=modality, patient=patient)
    dataset.SeriesDescription, dataset.Manufacturer, dataset.ManufacturerModelName = description, manufacturer, model
    dataset.PhotometricInterpretation = photometric
    dataset.Rows, dataset.Columns = stored.shape[1:]
    dataset.PixelSpacing = _ds(spacing[1:])
    dataset.SliceThickness = dataset.SpacingBetweenSlices = _ds(spacing[:1])[0]
    dataset.ImageOrientationPatient = _ds(np.concatenate([units[:, 2], units[:, 1]]))
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = (
        slope,
        intercept,
        "HU" if modality == "CT" else "US",
    )

    files: dict[str, bytes] = {}
    for number, plane in enumerate(stored):
        dataset.SOPInstanceUID = uid("slice", number)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.InstanceNumber = number + 1
        dataset.ImagePositionPatient = _ds(affine[:3, 3] + number * steps[:, 0])
        dataset.PixelData = plane.tobytes()
        buffer = io.BytesIO()
        dcmwrite(buffer, dataset, enforce_file_format=True)
        files[f"{number:04d}.dcm"] = buffer.getvalue()
    _write_folder(path, files)


def _template(uid: _Uid, *, modality: Modality, patient: str) -> Dataset:
    """All that the slices of a series share, made once: only a few attributes change from slice to slice."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = MRImageStorage if modality == "MR" else CTImageStorage
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if modality == "CT" else ["ORIGINAL", "PRIMARY", "OTHER"]
    dataset.Modality = modality
    dataset.PatientID = dataset.PatientName = patient
    for keyword in (
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "ReferringPhysicianName",
    ):
        setattr(dataset, keyword, "")
    dataset.StudyID, dataset.SeriesNumber, dataset.PositionReferenceIndicator = "1", 1, ""
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid("study"), uid("series")
    dataset.FrameOfReferenceUID = uid("frame of reference")
    dataset.PatientPosition = "HFS"
    if modality == "MR":
        dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "SE", "NONE", ""
        dataset.MRAcquisitionType, dataset.RepetitionTime, dataset.EchoTime, dataset.EchoTrainLength = (
            "2D",
            None,
            None,
            None,
        )
    else:
        dataset.KVP, dataset.AcquisitionNumber = None, None
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    return dataset


def _to_uint16(values: NDArray[np.float64]) -> tuple[NDArray[np.uint16], str, str]:
    """Stored values with the slope and intercept that give `values` back, as DICOM's decimal strings."""
    low, high = float(values.min()), float(values.max())
    exact = high - low <= 65535 and bool(np.all(values == np.rint(values)))
    slope = "1" if exact or high == low else _ds(np.array([(high - low) / 65535]))[0]
    intercept = _ds(np.array([low]))[0]
    stored = np.clip(np.rint((values - float(intercept)) / float(slope)), 0, 65535).astype("<u2")
    return stored, slope, intercept


def _ds(values: NDArray[np.float64]) -> list[str]:
    return [format_number_as_ds(float(value) + 0.0) for value in values]


def _write_folder(path: Path, files: dict[str, bytes]) -> None:
    """Write all files beside `path`, then give the folder its name in one step: a kill leaves no half series."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        try:
            part.chmod(0o755)
            for name, content in files.items():
                (part / name).write_bytes(content)
            os.rename(part, path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    except OSError as error:
        raise StorageFault(
            error.errno,
            f"cannot write the series {path}: {error.strerror or error}. Free some space, or choose a folder you may write to",
        ) from error
