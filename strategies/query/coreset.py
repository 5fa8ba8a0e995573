"""CoreSet: cases that cover what the others leave out, by distance between features (Sener and Savarese 2018)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from strategies.query.choose import size_of_choice
from strategies.query.strategy import Columns, Seen, Strategy
from strategies.query.vectors import to_nearest
from strategies.records import Choice, Scores, Selection


def coreset(scores: Scores, count: int, rng: np.random.Generator) -> Selection:
    """k-centre greedy on features (Sener and Savarese 2018): again and again the case farthest from all centres so far.

    Centres are the labelled cases, then also the chosen ones. Without a labelled case the first one chosen is the
    farthest from the mean: greedy's bound (twice the optimal radius) holds from any start, and this one depends on what
    the cases are rather than on how they are ordered. Equal distances are told apart by `rng`.

    Choices come in the order they were made. The score is the distance to the nearest centre at that moment, so it
    never rises from one to the next; only a first case without centres has its distance from the mean instead.

    Raises:
        ValueError: features are missing, or labelled ones have another length.
    """
    if scores.features is None:
        raise ValueError("coreset needs the features of the pool, and none were computed")
    count = size_of_choice(scores, count)
    order = rng.permutation(len(scores.case_ids))  # argmax takes the first of equals: which is first is drawn
    centres = scores.labelled_features
    started = centres is not None and len(centres) > 0
    chosen, distances = k_centre_greedy(scores.features[order], centres, count)
    choices = []
    for n, (position, distance) in enumerate(zip(chosen, distances, strict=True)):
        if n == 0 and not started:
            reason = f"least like the average case, and none is annotated yet: distance {distance:.3g}"
        else:
            reason = f"unlike all cases annotated or chosen so far: distance {distance:.3g} to the nearest"
        choices.append(Choice(scores.case_ids[order[position]], float(distance), reason))
    return Selection(tuple(choices))


def k_centre_greedy(
    features: NDArray[np.float32], centres: NDArray[np.float32] | None, count: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The rows chosen, in order, and the distance of each when it was chosen. O(N · (L + count) · F), no (N, N) matrix.

    Args:
        features: (N, F) of the pool, `count` ≤ N.
        centres: (L, F) to stay away from; None or L = 0 starts at the row farthest from the mean.

    Raises:
        ValueError: `centres` are not as long as `features`.
    """
    points = np.asarray(features, dtype=np.float64)
    chosen = np.empty(count, dtype=np.intp)
    distances = np.empty(count, dtype=np.float64)
    if centres is not None and len(centres) > 0:
        here, there = points.shape[1], centres.shape[1]
        if here != there:
            raise ValueError(f"features of the pool have length {here}, those of labelled cases {there}")
        rank_by = nearest = to_nearest(points, centres)
    else:
        rank_by, nearest = _from_mean(points), np.full(len(points), np.inf)  # the mean is a start, not a centre
    for n in range(count):
        best = int(np.argmax(rank_by))
        chosen[n], distances[n] = best, rank_by[best]
        rank_by = nearest = np.minimum(nearest, cdist(points, points[best : best + 1])[:, 0])
        nearest[best] = -np.inf  # never again, not even where all that is left lies on a centre
    return chosen, distances


def _from_mean(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) distances from the mean of the points."""
    if len(points) == 0:
        return np.empty(0)
    return np.asarray(cdist(points, points.mean(axis=0, keepdims=True))[:, 0], dtype=np.float64)


def _look(seen: Seen) -> Columns:
    """Of two models features side by side: D² is then the sum of both models'."""
    return {"features": torch.cat(list(seen.features.values()), dim=1).float().cpu().numpy()}


CORESET = Strategy("coreset", coreset, look=_look, labelled=True)
