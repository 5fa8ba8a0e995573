"""Geometry of synthetic anatomy: smooth random fields and blobs, as functions of arrays.

Space is the body's own: x from -1 (patient's right) to 1 (left), y from -1 (front) to 1 (back), z from 0 (feet) to 1 (head)
over the imaged range, so that one anatomy looks the same at every number of slices and pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
"""(slices, rows, cols) float32, one number a voxel; broadcastable shapes where a coordinate does not vary."""
Mask = NDArray[np.bool_]
"""(slices, rows, cols) bool."""
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Space:
    """Body coordinates of every voxel centre: x, y and z as fields of one shape (slices, rows, cols)."""

    x: Field
    y: Field
    z: Field

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, cols)."""
        slices, rows, cols = self.x.shape
        return slices, rows, cols


def space_of(*, slices: int, size_px: int) -> Space:
    """Coordinates of a volume of `slices` square slices of `size_px` pixels, voxel centres strictly inside the range."""
    z = (np.arange(slices, dtype=np.float32) + 0.5) / slices
    side = (2 * np.arange(size_px, dtype=np.float32) + 1) / size_px - 1
    shape = (slices, size_px, size_px)
    return Space(
        x=np.broadcast_to(side[None, None, :], shape),
        y=np.broadcast_to(side[None, :, None], shape),
        z=np.broadcast_to(z[:, None, None], shape),
    )


@lru_cache(maxsize=256)
def _spline_weights(length: int, cells: int) -> Field:
    """(length, cells + 3) weights of a uniform cubic B-spline with `cells` cells, at `length` evenly spread places.

    Rows are scaled to unit Euclidean length, so that standard normal coefficients give unit variance at every place.
    """
    place = (np.arange(length) + 0.5) / length * cells
    cell = np.minimum(place.astype(int), cells - 1)
    t = place - cell
    parts = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    weights = np.zeros((length, cells + 3))
    for offset in range(4):
        weights[np.arange(length), cell + offset] = parts[:, offset]
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return weights.astype(np.float32)


def smooth_field(rng: np.random.Generator, shape: tuple[int, int, int], *, cells: tuple[int, int, int]) -> Field:
    """A smooth Gaussian random field of mean 0 and variance 1 at every voxel.

    Args:
        rng: where the field is drawn from; the draw depends on `cells` alone, so the field is the same at every resolution.
        shape: (slices, rows, cols).
        cells: spline cells along each axis; the field turns about as often.
    """
    values = rng.standard_normal([count + 3 for count in cells]).astype(np.float32)
    for axis in (2, 1, 0):
        values = np.moveaxis(np.tensordot(_spline_weights(shape[axis], cells[axis]), values, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(values)


def warped(space: Space, rng: np.random.Generator, *, amount: float) -> Space:
    """`space` bent by smooth random in-plane shifts of standard deviation `amount`: no two bodies are built alike."""
    cells = (1, 3, 3)
    dx = smooth_field(rng, space.shape, cells=cells)
    dy = smooth_field(rng, space.shape, cells=cells)
    return Space(x=space.x + amount * dx, y=space.y + amount * dy, z=space.z)


def radius(space: Space, *, centre: Triple, radii: Triple, turn: float = 0.0, lean: tuple[float, float] = (0, 0)) -> Field:
    """Distance from `centre` in units of the ellipsoid's own radii: below 1 inside, 1 on the surface.

    Args:
        space: where to measure.
        centre, radii: (x, y, z) in body coordinates.
        turn: rotation in the axial plane, radians, x towards y.
        lean: shift of the axial centre (x, y) from one end of z to the other: organs don't stand upright.
    """
    height = (space.z - np.float32(centre[2])) / np.float32(radii[2])
    x = space.x - np.float32(centre[0]) - np.float32(lean[0] / 2) * height
    y = space.y - np.float32(centre[1]) - np.float32(lean[1] / 2) * height
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    along, across = (cos * x + sin * y) / np.float32(radii[0]), (cos * y - sin * x) / np.float32(radii[1])
    out: Field = np.sqrt(along * along + across * across + height * height)
    return out


def blob(
    space: Space,
    rng: np.random.Generator,
    *,
    centre: Triple,
    radii: Triple,
    turn: float = 0.0,
    lean: tuple[float, float] = (0, 0),
    bumps: float = 0.0,
    cells: tuple[int, int, int] = (2, 6, 6),
) -> Field:
    """`radius` with a bumpy surface: the organ is where it is below 1. `bumps` is the bumps' size as a share of the radius."""
    out = radius(space, centre=centre, radii=radii, turn=turn, lean=lean)
    return out + np.float32(bumps) * smooth_field(rng, space.shape, cells=cells) if bumps else out
