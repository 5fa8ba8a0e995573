"""Pictures, grey or RGB (PNG, JPEG), with masks as PNG files of label values. One picture is one image of one slice."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
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

_ORIENTATION = 274  # EXIF tag: how to turn the stored picture before showing it; 1 is "as it is"
_GREY = ("L", "I", "I;16", "I;16B", "F", "1")


def read_image(
    path: Path,
    *,
    key: str,
    patient: str | None = None,
    slice_axis: int = 2,
    window: tuple[float, float] | None = None,
) -> Image:
    """Read a picture as one slice: (1, rows, cols), or (1, rows, cols, 3) in colour; values as stored, not scaled.

    A palette picture becomes RGB. An alpha channel that hides nothing is dropped.

    Args:
        key: the site's secret for `keyed_hash`.
        patient: identity from an index; None takes the file's stem. Either is hashed here.
        slice_axis: not used, a picture is a slice; here because all formats are called alike.
        window: (centre, width) to apply, clipped to 0..1.

    Raises:
        FormatError: unreadable or cut off; several pictures in one file; transparent, CMYK, or turned by EXIF.
        ValueError: a window that is not wider than 0.
    """
    if window is not None and not window[1] > 0:
        raise ValueError(f"window = {list(window)}: the second number is the width and must be above 0")
    picture = _open(path)
    if picture.mode == "P":
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if picture.mode in ("LA", "RGBA"):
        if np.asarray(picture.getchannel("A")).min() < 255:
            raise FormatError(f"{path} is partly transparent, so what its pixels show is undefined: save it without transparency")
        picture = picture.convert(picture.mode.removesuffix("A"))
    if picture.mode not in (*_GREY, "RGB"):
        raise FormatError(f"{path} has colour mode {picture.mode}: save it as grey or RGB")
    voxels = checked_voxels(np.asarray(picture)[None], path)
    if window is not None:
        voxels = np.clip((voxels - np.float32(window[0])) / np.float32(window[1]) + np.float32(0.5), 0, 1)
    identity = patient if patient is not None else path.stem
    return Image(voxels=voxels, affine=None, spacing_mm=None, patient=keyed_hash(identity, key=key), source=path)


def read_mask(path: Path, image: Image, *, classes: Classes, slice_axis: int = 2) -> NDArray[np.uint8]:
    """Read a PNG of label values on the grid of `image`; of a palette PNG the indices are the labels.

    Args:
        classes: class name to label value in the file.
        slice_axis: not used, as in `read_image`.

    Returns:
        (1, rows, cols) uint8, 0..C in the order of `classes`.

    Raises:
        FormatError: unreadable, JPEG, in colour, of another size than the image, or with values that are no class.
    """
    picture = _open(path)
    if picture.format == "JPEG":
        raise FormatError(f"{path} is a JPEG, whose compression changes label values: save masks as PNG")
    if picture.mode not in (*_GREY, "P"):
        raise FormatError(
            f"{path} is a mask in colour mode {picture.mode}: save it with one label value a pixel (grey or palette PNG)"
        )
    labels = np.asarray(picture)[None]
    check_same_grid(labels.shape, path, image)
    return to_class_map(labels, path, classes=classes)


def write_image(
    path: Path,
    voxels: NDArray[np.generic],
    *,
    affine: NDArray[np.float64] | None = None,
    patient: str = "",
) -> None:
    """Write one slice as PNG: 8 bits where the values fit, 16 bits for grey values up to 65,535; rounded.

    Args:
        voxels: (1, rows, cols) or (1, rows, cols, 3), not negative.
        affine, patient: not written, a picture has no place for them; here because all formats are called alike.

    Raises:
        FormatError: another name than .png; values not finite or out of range; more than one slice.
        StorageFault: the file can't be written.
    """
    values = np.rint(checked_voxels(voxels, path))
    if values.shape[0] != 1 or values.ndim not in (3, 4) or (values.ndim == 4 and values.shape[3] != 3):
        raise FormatError(f"{path}: a picture has the shape (1, rows, cols) or (1, rows, cols, 3), not {values.shape}")
    top = 65535 if values.ndim == 3 else 255
    if values.min() < 0 or values.max() > top:
        raise FormatError(
            f"{path}: values from {values.min():g} to {values.max():g} don't fit a picture's 0 to {top}: scale them first"
        )
    _save(path, values[0].astype(np.uint8 if values.max() <= 255 else np.uint16))


def write_mask(path: Path, mask: NDArray[np.generic], image: Image, *, class_names: Sequence[str], slice_axis: int = 2) -> None:
    """Write a class map as an 8-bit grey PNG; the numbers 0..C are written as they are.

    Args:
        mask: (1, rows, cols) on the image's grid.
        class_names: names of 1..C, for the check that no other number is written.
        slice_axis: not used, as in `read_image`.

    Raises:
        FormatError: the mask does not fit the image, or another name than .png.
        StorageFault: the file can't be written.
    """
    _save(path, from_class_map(mask, image, class_names=class_names)[0])


def _open(path: Path) -> PIL.Image.Image:
    """A fully decoded single picture that is shown as it is stored."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path) as picture:
                frames = getattr(picture, "n_frames", 1)
                turned = picture.getexif().get(_ORIENTATION, 1) not in (0, 1)
                picture.load()
                loaded: PIL.Image.Image = picture.copy()
                loaded.format = picture.format
    except FileNotFoundError:
        raise FormatError(f"{path} does not exist: correct the index, or put the file there") from None
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError):
        raise FormatError(f"{path} has more pixels than fit in memory safely: cut it into tiles first") from None
    except Exception as error:  # decoders meet damage in many places, each with an exception of its own
        raise FormatError(
            f"{path} is not a readable picture, or is cut off ({type(error).__name__}): save it again as PNG or JPEG"
        ) from error
    if frames != 1:
        raise FormatError(f"{path} holds {frames} pictures: save each in a file of its own")
    if turned:
        raise FormatError(f"{path} is stored turned (EXIF orientation), and a mask may not be: save it upright, without the tag")
    return loaded


def _save(path: Path, pixels: NDArray[np.generic]) -> None:
    if path.suffix.lower() != ".png":
        raise FormatError(f"{path}: pictures and masks are written as PNG; give it a name that ends in .png")
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())
