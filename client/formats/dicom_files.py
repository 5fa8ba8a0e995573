"""One DICOM file at a time: opening, decoding and naming what is wrong, in words that say what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pydicom
import pydicom.config
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from client.formats.image import Classes, FormatError

# pydicom's remarks on over-long or odd values quote them, and such values may name a patient. What matters to us is
# checked here and in the neighbours.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
_USED = (
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "SeriesInstanceUID",
    "SOPInstanceUID", "FrameOfReferenceUID", "PatientID", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SpacingBetweenSlices", "SliceThickness", "RescaleSlope", "RescaleIntercept", "SegmentationType",
)  # fmt: skip


def open_dicom(path: Path, *, pixels: bool) -> FileDataset:
    """Parse one file, with or without its pixel data.

    Raises:
        FormatError: it is missing, unreadable, not DICOM, truncated or corrupt.
    """
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=not pixels)
        _ = UID(dataset.file_meta.TransferSyntaxUID).is_compressed  # an error where it is no transfer syntax at all
        _ = UID(dataset.SOPClassUID)  # and where it is several
        for keyword in _USED:
            dataset.get(keyword)  # values are parsed when they are first asked for
    except InvalidDicomError:
        raise FormatError(
            f"{path} is not a DICOM file (it lacks the DICM mark): take it out of the folder, or export it again as DICOM"
        ) from None
    except OSError as error:
        raise FormatError(
            f"{path} cannot be read ({error.strerror or error}): check that it exists and that you may read it"
        ) from error
    except Exception as error:  # the parser meets damage in many places, each with an exception of its own
        raise FormatError(
            f"{path} is corrupt or cut off: its header does not parse ({type(error).__name__}). Copy or export it again"
        ) from error
    return dataset


def decode(dataset: FileDataset, path: Path) -> NDArray[np.generic]:
    """The stored pixel values of a parsed file: (rows, cols), or (frames, rows, cols).

    Raises:
        FormatError: no pixel data, a compression that no installed decoder reads, or data that is cut off or corrupt.
    """
    kind = UID(dataset.SOPClassUID).name
    if not any(word in dataset for word in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise FormatError(
            f"{path} holds no pixels (it is a {kind}, or was cut off before them): keep only image files in an image "
            "folder, and copy or export this one again if it should be an image"
        )
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    if syntax.is_compressed:
        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError:
            available = False
        if not available:
            raise FormatError(
                f"{path} is compressed as {syntax.name}, for which no decoder is installed here: run "
                "`pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg`, or decompress the series first "
                "(`dcmdjpeg`, "
                "`gdcmconv --raw`)"
            )
    try:
        return np.asarray(dataset.pixel_array)
    except Exception as error:  # as above: one door for whatever a decoder says about damaged data
        raise FormatError(
            f"{path}: its pixel data is cut off or corrupt ({type(error).__name__}). Copy or export the file again"
        ) from error


def numbers(dataset: Dataset, keyword: str, count: int, path: Path, *, why: str) -> NDArray[np.float64]:
    """The `count` finite numbers of a DICOM attribute.

    Raises:
        FormatError: the attribute is missing, empty, of another length or not made of finite numbers.
    """
    try:
        value = dataset.get(keyword)
        listed = [] if value is None or value == "" else [value] if isinstance(value, int | float | str) else [*value]
        values = [float(one) for one in listed]
    except (TypeError, ValueError, OverflowError):
        values = []
    if len(values) != count or not all(math.isfinite(one) for one in values):
        raise FormatError(
            f"{path} has no valid {keyword} ({count} number{'s' if count > 1 else ''}), {why}: export it again with "
            "this attribute, "
            "or take the series out of the index"
        )
    return np.array(values)


def match_names(found: Sequence[str], path: Path, *, classes: Classes, kind: str) -> list[int]:
    """For every class, in order, the position in `found` of the one name that its patterns match.

    Patterns are shell wildcards (`GTV_Mass*`), compared with upper and lower case as they are.

    Args:
        kind: what the names are called in the message, "ROI" or "segment".

    Raises:
        FormatError: a class matches no name or several, or one name is claimed by two classes; lists the names found.
    """
    listed = ", ".join(repr(name) for name in found) or "none at all"
    chosen: list[int] = []
    owners: dict[int, str] = {}
    for name, patterns in classes.items():
        if isinstance(patterns, int):
            raise FormatError(
                f"classes.{name} = {patterns} is a label value, but {path} names its {kind}s: give a list of names, "
                f'e.g. {name} = ["{name}*"]. {kind}s found: {listed}'
            )
        hits = [at for at, one in enumerate(found) if any(fnmatchcase(one, pattern) for pattern in patterns)]
        if len(hits) != 1:
            said = "no" if not hits else f"{len(hits)}"
            raise FormatError(
                f"{path}: {said} {kind}s match classes.{name} = {list(patterns)}, and a class needs exactly one. "
                f"{kind}s found: {listed}. Adjust the patterns (upper and lower case count)"
            )
        if hits[0] in owners:
            raise FormatError(
                f"{path}: the {kind} {found[hits[0]]!r} is claimed by classes.{owners[hits[0]]} and by classes.{name}. "
                f"{kind}s found: {listed}. Make the patterns tell them apart"
            )
        owners[hits[0]] = name
        chosen.append(hits[0])
    return chosen
