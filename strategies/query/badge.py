"""BADGE: cases whose gradients are large and point apart (Ash et al. 2020).

A case's gradient is that of the cross-entropy between the prediction and its own hardest reading of itself, with respect to the
last convolution: large where the model would learn much, and in the direction in which it would.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.nn import functional as F

from strategies.query.choose import size_of_choice
from strategies.query.strategy import Columns, Seen, Strategy
from strategies.query.vectors import to_nearest
from strategies.records import Choice, Scores, Selection


def gradient_embedding(logits: Tensor, taken: Tensor, inside: Tensor, *, kernel_px: int) -> Tensor:
    """(B, (C+1)·K·kernel²) gradients of a last convolution of stride 1 whose padding keeps the size.

    With g = (p − onehot(ŷ)) at each output pixel, the gradient of the mean loss is the mean over pixels of g ⊗ h, h being
    what the kernel saw there.

    Args:
        logits: (B, C+1, H, W), the convolution's output, or that plus anything that does not depend on its weights.
        taken: (B, K, H, W), its input.
        inside: (B, H, W) bool; pixels outside do not count.
        kernel_px: side of the kernel, odd.
    """
    said = logits.max(dim=1, keepdim=True).indices
    errors = logits.softmax(dim=1)
    errors.scatter_add_(1, said, torch.full_like(said, -1, dtype=errors.dtype))
    errors = (errors * (inside / inside.sum((1, 2), keepdim=True).clamp(min=1))[:, None]).flatten(2)
    saw = F.unfold(taken, kernel_px, padding=kernel_px // 2)
    return torch.einsum("bcn,bkn->bck", errors, saw).flatten(1)


def badge(scores: Scores, count: int, rng: np.random.Generator) -> Selection:
    """k-means++ on gradient embeddings (`scores.features`); the score is the distance to those chosen before.

    Raises:
        ValueError: features are missing.
    """
    if scores.features is None:
        raise ValueError("badge needs the gradients of the pool, and none were computed")
    count = size_of_choice(scores, count)
    drawn = scores.chosen_features
    rows, distances = d2_sampling(scores.features, count, rng, drawn=drawn)
    choices = []
    for n, (row, distance) in enumerate(zip(rows, distances, strict=True)):
        if n == 0 and drawn is None:
            reason = f"teaches most by what the model now believes: gradient {distance:.3g}"
        else:
            reason = f"teaches something else than those before: gradients {distance:.3g} apart"
        choices.append(Choice(scores.case_ids[row], float(distance), reason))
    return Selection(tuple(choices))


def d2_sampling(
    features: NDArray[np.floating],
    count: int,
    rng: np.random.Generator,
    *,
    drawn: NDArray[np.floating] | None = None,
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Rows in the order drawn: first the longest, then each with a chance in proportion to D², the squared distance to the
    nearest drawn before. O(N · count · F).

    Where nothing but copies of drawn rows is left, these are drawn with equal chances.

    Args:
        features: (N, F), `count` ≤ N.
        drawn: (D, F) with D ≥ 1, rows drawn already, which others follow; None to begin.

    Returns:
        Rows (count,), and the distance of each to the nearest before; the length of one that begins.
    """
    points = np.asarray(features, dtype=np.float64)
    rows, distances = np.empty(count, dtype=np.intp), np.empty(count)
    nearest = np.full(len(points), np.inf) if drawn is None else to_nearest(points, drawn) ** 2
    left = np.ones(len(points), dtype=bool)
    for n in range(count):
        if n == 0 and drawn is None:
            lengths = np.einsum("nf,nf->n", points, points)
            row = int(rng.choice(np.flatnonzero(lengths == lengths.max())))
            distances[n] = np.sqrt(lengths[row])
        else:
            weights = nearest if nearest.any() else left.astype(np.float64)
            sums = np.cumsum(weights)
            row = int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))
            distances[n] = np.sqrt(nearest[row])
        rows[n], left[row] = row, False
        np.minimum(nearest, cdist(points, points[row : row + 1], "sqeuclidean")[:, 0], out=nearest)
        nearest[row] = 0.0
    return rows, distances


def _look(seen: Seen) -> Columns:
    """Of two models gradients side by side: D² is then the sum of both models'."""
    gradients = [
        gradient_embedding(logits[0], seen.taken[model], seen.inside, kernel_px=seen.kernel_px)
        for model, logits in seen.logits.items()
    ]
    return {"features": torch.cat(gradients, dim=1).float().cpu().numpy()}


BADGE = Strategy("badge", badge, look=_look)
