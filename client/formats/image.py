"""What a file is read into: voxels with their place in the patient, and a hash in place of the patient's identity."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Classes = Mapping[str, int | list[str]]
"""Class name to label value (NIfTI, pictures) or to ROI / segment name patterns (DICOM); order gives values 1..C."""


class FormatError(ValueError):
    """A file can't be used. The message names the file, says what is wrong with it and what to do.

    For the site's own log and terminal only: it holds paths, which may identify a patient.
    """


@dataclass(frozen=True)
class Image:
    """One image on its own grid, as a site's files give it.

    Attributes:
        voxels: (slices, rows, cols) float32, or (slices, rows, cols, 3) for RGB pictures; finite. A picture has one
            slice. Values in the file's own units, after rescale slope and intercept.
        affine: (4, 4) float64, index (slice, row, col, 1) to patient coordinates in millimetres, LPS (DICOM's: x grows
            to the patient's left, y to the back, z to the head); None where unknown (pictures).
        spacing_mm: distance of neighbours along (slice, row, col); None where unknown.
        patient: keyed hash of the patient's identity, never the identity.
        source: the file or folder it came from (stays inside the site).
    """

    voxels: NDArray[np.float32]
    affine: NDArray[np.float64] | None
    spacing_mm: tuple[float, float, float] | None
    patient: str
    source: Path

    @property
    def grid(self) -> tuple[int, int, int]:
        """(slices, rows, cols), the shape of a mask of this image."""
        slices, rows, cols = self.voxels.shape[:3]
        return slices, rows, cols


def keyed_hash(text: str, *, key: str) -> str:
    """HMAC-SHA256 of `text` under the site's secret `key`: first 16 hex digits.

    Without the key nobody can tell whose hash it is, not even by trying all patient numbers of a hospital.
    """
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()[:16]


def checked_voxels(voxels: NDArray[np.generic], path: Path) -> NDArray[np.float32]:
    """`voxels` as contiguous float32, if every one is finite and there is at least one.

    Raises:
        FormatError: the image is empty or holds NaN or Inf, which would poison every weight that trains on it.
    """
    if voxels.size == 0:
        raise FormatError(f"{path} holds no voxels (shape {voxels.shape}): export it again, or take it out of the index")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(voxels, dtype=np.float32)
    bad = int(values.size - np.count_nonzero(np.isfinite(values)))
    if bad:
        raise FormatError(
            f"{path} holds {bad} of {values.size} values that are NaN, Inf or beyond 32-bit floats, and one of them "
            "would spoil all that trains on it: repair the image (say, set them to the background value) or take it "
            "out of the index"
        )
    return values


def label_values(classes: Classes, path: Path) -> dict[str, int]:
    """Label value of every class, for formats whose masks hold numbers.

    Raises:
        FormatError: a class is given by ROI names, or two classes share a value, or a value is not in 1..254.
    """
    values: dict[str, int] = {}
    for name, value in classes.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise FormatError(
                f"{path} is a mask of label values, but classes.{name} = {value!r} lists ROI names: give the number, "
                f"e.g. {name} = 1"
            )
        if not 1 <= value <= 254:
            raise FormatError(f"classes.{name} = {value} cannot be read from {path}: label values go from 1 to 254")
        if value in values.values():
            twin = next(other for other, its in values.items() if its == value)
            raise FormatError(
                f"classes.{twin} and classes.{name} both claim the label value {value} in {path}: give each its own"
            )
        values[name] = value
    return values


def to_class_map(labels: NDArray[np.generic], path: Path, *, classes: Classes) -> NDArray[np.uint8]:
    """Label values in a file to class values 0..C in the order of `classes`.

    Raises:
        FormatError: a label is not a whole number, or is neither 0 nor one of the classes' values.
    """
    values = label_values(classes, path)
    found = np.unique(labels)
    strangers = [value for value in found.tolist() if value != 0 and value not in values.values()]
    if strangers:
        wanted = ", ".join(f"{name} = {value}" for name, value in values.items())
        listed = ", ".join(f"{value:g}" for value in found.tolist()[:20]) + (", …" if found.size > 20 else "")
        raise FormatError(
            f"{path} holds the label values {listed}, but the classes are {wanted} (and 0 for background): "
            "name the missing ones in [classes], or relabel the mask"
        )
    out = np.zeros(labels.shape, dtype=np.uint8)
    for number, value in enumerate(values.values(), start=1):
        out[labels == value] = number
    return out


def from_class_map(mask: NDArray[np.generic], image: Image, *, class_names: Sequence[str]) -> NDArray[np.uint8]:
    """`mask` as uint8, if it fits the image's grid and holds class values 0..C only.

    Raises:
        FormatError: another shape than the image's, or values beyond the classes.
    """
    if mask.shape != image.grid:
        raise FormatError(f"a mask of shape {mask.shape} does not fit {image.source}, whose grid is {image.grid}")
    top = len(class_names)
    values = np.unique(mask).tolist()
    if any(value not in range(top + 1) for value in values):
        raise FormatError(
            f"a mask for {image.source} holds the values {values[:20]}: class values go from 0 to {top} "
            f"({', '.join(class_names)})"
        )
    return mask.astype(np.uint8)


def check_same_grid(shape: tuple[int, ...], path: Path, image: Image) -> None:
    """Raise FormatError unless a mask read from `path` has the grid of its image."""
    if tuple(shape) != image.grid:
        raise FormatError(
            f"the mask {path} has shape {tuple(shape)} (slices, rows, cols), but its image {image.source} has "
            f"{image.grid}: "
            "they must be on one grid. Resample the mask to the image, or correct the pairing"
        )
