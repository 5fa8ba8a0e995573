"""What several strategies do with features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

_CHUNK = 1024


def unit_length(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows (N, F) divided by their length; rows of zeros stay."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, 1e-12), dtype=np.float32)


def to_nearest(points: NDArray[np.float64], centres: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N,) distances of points (N, F) to the nearest of centres (L, F), L ≥ 1, a chunk of points at a time."""
    nearest = np.empty(len(points))
    for start in range(0, len(points), _CHUNK):
        nearest[start : start + _CHUNK] = cdist(points[start : start + _CHUNK], centres).min(axis=1)
    return nearest
