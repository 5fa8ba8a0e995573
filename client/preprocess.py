"""From an image's own grid to the network's and back: resample, fit, pad, normalise; the same at every site.

The way back is exact about geometry: a prediction is cut out of the padding and scaled to the original rows and
columns, so that Dice, proposals and exported masks are on the grid of the file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

VERSION = 1
"""Part of every cache's fingerprint: raise it when the numbers that come out change."""


@dataclass(frozen=True)
class Geometry:
    """How an image of `rows` × `columns` lies on the network's square: scaled to `height` × `width`, then padded."""

    rows: int
    columns: int
    height: int
    width: int
    top: int
    left: int
    size_px: int


def geometry(
    *, rows: int, columns: int, in_plane_mm: tuple[float, float] | None, spacing_mm: float | None, size_px: int
) -> Geometry:
    """Where an image goes on the network's grid.

    Pixels become square when their size is known. With `spacing_mm` they become that size, unless the image would then
    stick out of the square, in which case it is scaled to fit; without it every image is scaled to fit.
    """
    per_row, per_column = in_plane_mm or (1.0, 1.0)
    tall, wide = rows * per_row, columns * per_column
    scale = size_px / max(tall, wide)
    if spacing_mm is not None and in_plane_mm is not None:
        scale = min(scale, 1.0 / spacing_mm)
    height, width = (min(size_px, max(1, round(extent * scale))) for extent in (tall, wide))
    return Geometry(rows, columns, height, width, (size_px - height) // 2, (size_px - width) // 2, size_px)


def to_network(
    voxels: NDArray[np.float32], place: Geometry, *, channels: int, low_percentile: float, high_percentile: float
) -> NDArray[np.float32]:
    """Voxels (S, rows, columns) or (S, rows, columns, 3) to network slices (S, channels, size_px, size_px) float32.

    Intensity per image: the two percentiles become 0 and 1, and what lies beyond is clipped; the padding is 0. This is
    also the range that SAM takes. An image of one constant value becomes zeros.

    Raises:
        FloatingPointError: the image holds NaN or Inf.
    """
    if not np.isfinite(voxels).all():
        raise FloatingPointError("the image holds NaN or Inf: intensities cannot be normalised")
    if voxels.ndim == 3:
        planes = np.repeat(voxels[:, None], channels, axis=1)
    else:
        colour = np.moveaxis(voxels, -1, 1)
        planes = colour if channels == 3 else colour.mean(axis=1, keepdims=True)
    low, high = np.percentile(planes, (low_percentile, high_percentile))
    planes = (np.clip(planes, low, high) - low) / (high - low) if high > low else np.zeros_like(planes)
    scaled = functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(planes, dtype=np.float32)),
        size=(place.height, place.width),
        mode="bilinear",
        antialias=True,
    ).clamp(0, 1)
    canvas = np.zeros((len(planes), channels, place.size_px, place.size_px), dtype=np.float32)
    canvas[:, :, place.top : place.top + place.height, place.left : place.left + place.width] = scaled.numpy()
    return canvas


def mask_to_network(mask: NDArray[np.uint8], place: Geometry) -> NDArray[np.uint8]:
    """Class map (rows, columns) to (size_px, size_px) by nearest neighbour; the padding is background."""
    scaled = functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(mask))[None, None].float(), (place.height, place.width), mode="nearest-exact"
    )
    canvas = np.zeros((place.size_px, place.size_px), dtype=np.uint8)
    canvas[place.top : place.top + place.height, place.left : place.left + place.width] = scaled[0, 0].byte().numpy()
    return canvas


def from_network(maps: Tensor, place: Geometry) -> Tensor:
    """Maps (B, C, size_px, size_px) on the network's grid to (B, C, rows, columns) on the image's, bilinear."""
    inside = maps[..., place.top : place.top + place.height, place.left : place.left + place.width]
    return functional.interpolate(inside, size=(place.rows, place.columns), mode="bilinear", align_corners=False)


def inside(place: Geometry) -> tuple[slice, slice]:
    """The part of the network's grid that the image covers."""
    return slice(place.top, place.top + place.height), slice(place.left, place.left + place.width)
