"""From pixels to cases: a map becomes one number, a prediction becomes how much of each class there is to see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def mean_over_pixels(maps: Tensor, inside: Tensor) -> NDArray[np.float64]:
    """Maps (B, ..., H, W) to float64 scores (B, ...): the mean over the pixels inside (B, H, W), padding left out.

    A mean, so that no case scores higher for being larger. Every case has a pixel inside.
    """
    if maps.ndim < 3 or maps.shape[-2:] != inside.shape[-2:]:
        raise ValueError(f"maps must be (cases, ..., rows, columns) of {tuple(inside.shape)}, not {tuple(maps.shape)}")
    counted = inside.view(len(inside), *[1] * (maps.ndim - 3), *inside.shape[1:])
    sums = torch.where(counted, maps.double(), 0).sum(dim=(-2, -1))
    scores: NDArray[np.float64] = (sums / counted.sum(dim=(-2, -1))).cpu().numpy()
    return scores


def predicted_pixels(probabilities: Tensor, inside: Tensor) -> NDArray[np.float64]:
    """(M, B, C+1, H, W) probabilities to (B, C): in how many pixels inside (B, H, W) each class leads in the mean prediction."""
    said = torch.where(inside, probabilities.float().mean(dim=0).max(dim=1).indices, 0)
    counts = [(said == class_).sum((1, 2)) for class_ in range(1, probabilities.shape[2])]
    found: NDArray[np.float64] = torch.stack(counts, 1).double().cpu().numpy()
    return found


def with_border(
    foreground: NDArray[np.bool_],
    *,
    images: Sequence[str],
    indices: Sequence[int],
    elsewhere: Iterable[tuple[str, int]] = (),
) -> NDArray[np.bool_]:
    """Adds the slices next to a foreground slice of the same image: where a structure ends, and a model errs most.

    Args:
        foreground: (N,) bool, one for each case.
        images: N images that the cases are slices of.
        indices: N positions of the slices in their images; only differences of 1 are neighbours.
        elsewhere: image and position of foreground slices that are none of the N, as annotated ones are none of the pool.

    Returns:
        (N,) bool, true wherever `foreground` is and at the neighbours.
    """
    seen = {(i, n) for i, n, f in zip(images, indices, foreground, strict=True) if f} | set(elsewhere)
    near = [any((i, n + d) in seen for d in (-1, 0, 1)) for i, n in zip(images, indices, strict=True)]
    return np.array(near, dtype=np.bool_)
