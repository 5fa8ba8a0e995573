"""Simulated experts: labels with smooth boundary errors, and when they arrive. Pure: masks and a generator in.

The errors are written once, before a run, so that a question asked twice gets the same answer and a resumed run sees
the labels that a run never interrupted sees.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

REACH = 4
"""How many times `boundary_px` a boundary may move: a normal variable is hardly ever further out."""


class Schedule(TypedDict):
    """When an expert answers.

    Attributes:
        delay: case id to ticks (rounds or polls) between its request and its label.
        absent_cycles: cycles, from 1, in which the expert answers nothing.
    """

    delay: dict[str, int]
    absent_cycles: list[int]


def expert_mask(mask: NDArray[np.uint8], *, boundary_px: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The mask an expert draws: boundaries moved smoothly in and out, slice by slice.

    Every label of a slice has its signed distance to the boundary, positive inside. A smooth random field of its own is
    added to each, and a pixel goes to the label with the largest sum. Where two labels meet, the boundary so moves by
    half the difference of two fields; they are scaled to make that `boundary_px` in root mean square. Labels stay free
    of gaps and overlaps, a label that a slice does not have is never invented, and what is thinner than the error may
    vanish.

    Args:
        mask: (S, H, W) uint8, 0 background.
        boundary_px: root mean square shift of a boundary in pixels, at least 0; 0 gives the mask back unchanged.
        rng: draws the fields.

    Returns:
        (S, H, W) uint8; a new array.

    Raises:
        ValueError: the mask has another shape or dtype, or `boundary_px` is negative or not finite.
    """
    if mask.ndim != 3 or mask.dtype != np.uint8:
        raise ValueError(f"mask must be (slices, rows, columns) uint8, not {mask.shape} {mask.dtype}")
    if not (np.isfinite(boundary_px) and boundary_px >= 0):
        raise ValueError(f"boundary_px must be at least 0, not {boundary_px}")
    drawn = mask.copy()
    if boundary_px > 0:
        for index in range(len(mask)):
            window = _around(mask[index], margin=int(np.ceil(REACH * boundary_px)) + 1)
            if window is not None:
                drawn[index][window] = _redrawn(mask[index][window], boundary_px, rng)
    return drawn


def schedule(case_ids: Iterable[str], *, delay: int, absence: float, cycles: int, rng: np.random.Generator) -> Schedule:
    """When each label arrives, and in which cycles the expert is away.

    Args:
        case_ids: the cases that may be asked for; their order changes nothing.
        delay: most ticks between request and label; each case draws one of 0..delay.
        absence: probability that the expert is away for a cycle. Cycle 0, the cold start, is never missed: a site
            without a single label has nothing to begin with.
        cycles: cycles of the run.
    """
    if delay < 0 or not 0 <= absence <= 1:
        raise ValueError(f"delay must be at least 0 and absence between 0 and 1, not {delay} and {absence}")
    cases = sorted(set(case_ids))
    away = rng.random(cycles) < absence  # before the delays, so that it does not depend on how many cases there are
    ticks = rng.integers(0, delay, size=len(cases), endpoint=True)
    return {
        "delay": {case: int(wait) for case, wait in zip(cases, ticks, strict=True)},
        "absent_cycles": [cycle for cycle, absent in enumerate(away.tolist(), start=1) if absent],
    }


def _around(labels: NDArray[np.uint8], margin: int) -> tuple[slice, slice] | None:
    """The window that holds all foreground and `margin` pixels around it; None for an empty slice."""
    rows, columns = (np.flatnonzero(labels.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return (
        slice(max(0, int(rows[0]) - margin), int(rows[-1]) + margin + 1),
        slice(max(0, int(columns[0]) - margin), int(columns[-1]) + margin + 1),
    )


def _redrawn(labels: NDArray[np.uint8], boundary_px: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    present = np.unique(labels)
    if len(present) == 1:  # no boundary, nothing to move
        return labels.copy()
    sums = np.stack(
        [
            _signed_distance(labels == label) + np.sqrt(2) * boundary_px * _field(labels.shape, boundary_px, rng)
            for label in present
        ]
    )
    return np.asarray(present[sums.argmax(axis=0)], dtype=np.uint8)


def _signed_distance(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Distance in pixels to the boundary, which runs between pixels: at least 0.5 inside, at most −0.5 outside."""
    distance = np.where(inside, distance_transform_edt(inside) - 0.5, 0.5 - distance_transform_edt(~inside))
    return np.asarray(distance, dtype=np.float64)


def _field(shape: tuple[int, ...], boundary_px: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A smooth field of mean 0 and variance 1 at every pixel.

    Its length scale is three times the error, at least 4 px, so that a boundary bends and does not fray. White noise
    is filtered beyond the window's rim and cut, which keeps the variance the same up to the rim.
    """
    sigma = max(4.0, 3.0 * boundary_px)
    rim = int(np.ceil(3 * sigma))
    noise = rng.standard_normal([side + 2 * rim for side in shape])
    smooth = gaussian_filter(noise, sigma, mode="constant", truncate=3.0)[rim:-rim, rim:-rim]
    # Filtering by a 2D Gaussian leaves a variance of 1 / (4 π sigma²).
    return np.asarray(smooth * (2 * np.sqrt(np.pi) * sigma))
