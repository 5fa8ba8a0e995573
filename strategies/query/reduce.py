"""From pixels to cases: a map becomes one number, a prediction becomes whether there is anything to see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def mean_over_pixels(maps: Tensor) -> NDArray[np.float64]:
    """(B, H, W) maps to (B,) float64 scores. A mean, so that no case scores higher for being larger."""
    if maps.ndim != 3:
        raise ValueError(f"maps must be (cases, rows, columns), not {tuple(maps.shape)}")
    scores: NDArray[np.float64] = maps.double().mean(dim=(1, 2)).cpu().numpy()
    return scores


def predicts_foreground(probabilities: Tensor) -> NDArray[np.bool_]:
    """(M, B, C+1, H, W) probabilities to (B,) bool: whether the mean prediction has a foreground pixel."""
    found: NDArray[np.bool_] = (probabilities.float().mean(dim=0).argmax(dim=1) > 0).any(dim=(1, 2)).cpu().numpy()
    return found


def with_border(foreground: NDArray[np.bool_], *, images: Sequence[str], indices: Sequence[int]) -> NDArray[np.bool_]:
    """Adds the slices next to a foreground slice of the same image: where a structure ends, and a model errs most.

    Args:
        foreground: (N,) bool, one for each case.
        images: N images that the cases are slices of.
        indices: N positions of the slices in their images; only differences of 1 are neighbours.

    Returns:
        (N,) bool, true wherever `foreground` is and at the neighbours.
    """
    seen = {(i, n) for i, n, f in zip(images, indices, foreground, strict=True) if f}
    near = [any((i, n + d) in seen for d in (-1, 0, 1)) for i, n in zip(images, indices, strict=True)]
    return np.array(near, dtype=np.bool_)
