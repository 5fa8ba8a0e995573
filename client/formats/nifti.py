"""NIfTI (.nii, .nii.gz): volumes in, masks in, and both out. NIfTI thinks in RAS, we in LPS."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from client.formats.image import (
    Classes,
    FormatError,
    Image,
    check_same_grid,
    checked_voxels,
    from_class_map,
    keyed_hash,
    to_class_map,
)
from configs.files import write_bytes

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""First and second patient axis change sign between NIfTI and DICOM; its own inverse."""
OFF_PLACE_MM = 0.1
"""How far a mask's header may place its corners from where the image's header does."""
SUFFIXES = (".nii.gz", ".nii")


def read_image(
    path: Path,
    *,
    key: str,
    patient: str | None = None,
    slice_axis: int = 2,
    window: tuple[float, float] | None = None,
) -> Image:
    """Read a 3D volume; the file's `slice_axis` becomes the first axis, the other two keep their order.

    Args:
        key: the site's secret for `keyed_hash`.
        patient: identity from an index; None takes the file's stem. Either is hashed here.
        slice_axis: which axis of the file is cut into slices.
        window: (centre, width) to apply, clipped to 0..1.

    Raises:
        FormatError: not a readable 3D NIfTI of plain finite numbers, or its header gives no usable geometry.
        ValueError: slice_axis outside 0..2, or a window that is not wider than 0.
    """
    if window is not None and not window[1] > 0:
        raise ValueError(f"window = {list(window)}: the second number is the width and must be above 0")
    file, data = _load(path, slice_axis=slice_axis)
    affine = _to_lps(np.asarray(file.affine, dtype=np.float64), slice_axis=slice_axis)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not abs(np.linalg.det(affine[:3, :3])) > 1e-6 * float(np.prod(lengths)):  # also false where there are NaN
        raise FormatError(f"{path}: its header's affine has an axis without length or direction: set a valid sform or qform")
    voxels = checked_voxels(data, path)
    if window is not None:
        voxels = np.clip((voxels - np.float32(window[0])) / np.float32(window[1]) + np.float32(0.5), 0, 1)
    return Image(
        voxels=voxels,
        affine=affine,
        spacing_mm=(float(lengths[0]), float(lengths[1]), float(lengths[2])),
        patient=keyed_hash(patient if patient is not None else _stem(path), key=key),
        source=path,
    )


def read_mask(path: Path, image: Image, *, classes: Classes, slice_axis: int = 2) -> NDArray[np.uint8]:
    """Read a label volume on the grid of `image`.

    Args:
        classes: class name to label value in the file.
        slice_axis: as the image was read with.

    Returns:
        (slices, rows, cols) uint8, 0..C in the order of `classes`.

    Raises:
        FormatError: unreadable; another shape or place than the image's; values that are no class.
    """
    file, data = _load(path, slice_axis=slice_axis)
    check_same_grid(data.shape, path, image)
    if image.affine is not None:
        corners = np.array([[s, r, c, 1.0] for s in (0, 1) for r in (0, 1) for c in (0, 1)]).T
        corners[:3] *= np.array(image.grid)[:, None]
        affine = _to_lps(np.asarray(file.affine, dtype=np.float64), slice_axis=slice_axis)
        off = float(np.linalg.norm(((affine - image.affine) @ corners)[:3], axis=0).max())
        if not off <= OFF_PLACE_MM:
            raise FormatError(
                f"the mask {path} lies {off:.1f} mm away from its image {image.source} by their headers (flipped, "
                "moved or "
                "scaled): resample the mask to the image, or copy the image's header if the voxels do correspond"
            )
    return to_class_map(data, path, classes=classes)


def write_image(
    path: Path,
    voxels: NDArray[np.generic],
    *,
    affine: NDArray[np.float64] | None,
    patient: str = "",
    slice_axis: int = 2,
) -> None:
    """Write a volume as float32, its first axis moved back to `slice_axis`.

    Args:
        voxels: (slices, rows, cols).
        affine: (4, 4) to LPS millimetres; None writes 1 mm and no orientation.
        patient: not written, NIfTI has no place for it; here because all formats are called alike.

    Raises:
        FormatError: a name without .nii or .nii.gz, or values that are not finite.
        StorageFault: the file can't be written.
    """
    if voxels.ndim != 3:
        raise ValueError(f"a NIfTI volume is written from (slices, rows, cols), not from shape {voxels.shape}")
    data = np.moveaxis(checked_voxels(voxels, path), 0, slice_axis)
    _save(path, _new(data, None if affine is None else _from_lps(affine, slice_axis=slice_axis)))


def write_mask(path: Path, mask: NDArray[np.generic], image: Image, *, class_names: Sequence[str], slice_axis: int = 2) -> None:
    """Write a class map as uint8 with the affine of the image's own header, so that viewers lay one over the other.

    Args:
        mask: (slices, rows, cols), 0..C; the numbers are written as they are.
        class_names: names of 1..C, for the check that no other number is written.
        slice_axis: as the image was read with.

    Raises:
        FormatError: the mask does not fit the image, or the name lacks .nii or .nii.gz.
        StorageFault: the file can't be written.
    """
    data = np.moveaxis(from_class_map(mask, image, class_names=class_names), 0, slice_axis)
    if str(image.source).lower().endswith(SUFFIXES):
        own = _open(image.source)
        file = _new(data, own.affine)
        if isinstance(own, nib.Nifti1Image):
            for form in ("sform", "qform"):  # which of the two says what kind of space it is, viewers ask for both
                getattr(file, f"set_{form}")(getattr(own, f"get_{form}")(), code=int(own.header[f"{form}_code"]))
    else:
        file = _new(data, None if image.affine is None else _from_lps(image.affine, slice_axis=slice_axis))
    _save(path, file)


def _new(data: NDArray[np.generic], affine: NDArray[np.float64] | None) -> Any:
    return nib.Nifti1Image(data, affine)


def _open(path: Path) -> Any:
    try:
        return nib.load(path)
    except FileNotFoundError:
        raise FormatError(f"{path} does not exist: correct the index, or put the file there") from None
    except Exception as error:  # nibabel meets damage in many places, each with an exception of its own
        raise FormatError(
            f"{path} is not a readable NIfTI file ({type(error).__name__}): copy or export it again as .nii or .nii.gz"
        ) from error


def _load(path: Path, *, slice_axis: int) -> tuple[Any, NDArray[np.generic]]:
    """The opened file, and its values with `slice_axis` in front: (slices, rows, cols)."""
    if slice_axis not in (0, 1, 2):
        raise ValueError(f"slice_axis = {slice_axis}: a volume has the axes 0, 1 and 2")
    file = _open(path)
    try:
        data = np.asanyarray(file.dataobj)
    except Exception as error:
        raise FormatError(
            f"{path} is cut off or corrupt: its voxels can't be read ({type(error).__name__}). Copy or export it again"
        ) from error
    if data.dtype.fields is not None or data.dtype.kind not in "uifb":
        raise FormatError(f"{path} holds values of type {data.dtype}, not one plain number a voxel: export it as a grey volume")
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise FormatError(
            f"{path} has shape {data.shape}, and an image is one 3D volume: split a series of volumes into one file "
            "each, with one row each in the index"
        )
    return file, np.moveaxis(data, slice_axis, 0)


def _save(path: Path, file: Any) -> None:
    content = file.to_bytes()
    if path.name.lower().endswith(".nii.gz"):
        content = gzip.compress(content, compresslevel=4, mtime=0)  # no time stamp: equal volumes are equal files
    elif not path.name.lower().endswith(".nii"):
        raise FormatError(f"{path}: a NIfTI file's name ends in .nii or .nii.gz; rename it")
    write_bytes(path, content)


def _to_lps(affine: NDArray[np.float64], *, slice_axis: int) -> NDArray[np.float64]:
    """Index (i, j, k) to RAS, as nibabel gives it, to index (slice, row, col) to LPS."""
    order = [slice_axis, *(axis for axis in range(3) if axis != slice_axis), 3]
    return np.asarray((RAS_TO_LPS @ affine)[:, order])


def _from_lps(affine: NDArray[np.float64], *, slice_axis: int) -> NDArray[np.float64]:
    """The way back from `_to_lps`."""
    order = [slice_axis, *(axis for axis in range(3) if axis != slice_axis), 3]
    return np.asarray((RAS_TO_LPS @ affine)[:, np.argsort(order)])


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")
