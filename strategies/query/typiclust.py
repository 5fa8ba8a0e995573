"""TypiClust: before a model knows anything, the most typical cases of different kinds (Hacohen et al. 2022).

Kinds are clusters of features that need no training here, such as SAM's embeddings. With few labels the typical cases teach most;
what is odd comes later, by other strategies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.neighbors import NearestNeighbors

from strategies.query.choose import size_of_choice
from strategies.query.strategy import Columns, Seen, Strategy
from strategies.query.vectors import unit_length
from strategies.records import Choice, Scores, Selection

MOST_CLUSTERS = 500
NEIGHBOURS = 20
"""A case's typicality is 1 / its mean distance to so many neighbours, or half of its cluster where that is smaller."""

_FULL_BATCH = 50
"""Up to so many clusters are found by Lloyd's algorithm, more by its mini-batch version, as published."""


@dataclass(frozen=True)
class Typical:
    """One choice: its row in the pool, its typicality, and how many cases its cluster has."""

    row: int
    typicality: float
    cluster_size: int


def typiclust(scores: Scores, count: int, rng: np.random.Generator) -> Selection:
    """From the clusters with fewest labelled cases, largest first, the most typical case each.

    Raises:
        ValueError: features are missing, or labelled ones have another length.
    """
    if scores.features is None:
        raise ValueError("typiclust needs features of the pool, and none were computed")
    count = size_of_choice(scores, count)
    found = most_typical(with_closed(scores), scores.labelled_features, count, rng, among=len(scores.case_ids))
    return Selection(
        tuple(
            Choice(
                scores.case_ids[one.row],
                one.typicality,
                f"typical of a kind with {one.cluster_size} cases that is least annotated: typicality {one.typicality:.3g}"
                if one.cluster_size > 1
                else "the only case of its kind, which is least annotated",
            )
            for one in found
        )
    )


def with_closed(scores: Scores) -> NDArray[np.floating]:
    """Features of the pool, and behind them those of cases that may not be chosen: they make kinds as large as they are."""
    assert scores.features is not None
    return scores.features if scores.closed_features is None else np.concatenate([scores.features, scores.closed_features])


def most_typical(
    features: NDArray[np.floating],
    labelled: NDArray[np.floating] | None,
    count: int,
    rng: np.random.Generator,
    *,
    among: int | None = None,
) -> list[Typical]:
    """`count` different rows of the pool, in the order chosen.

    The pool and the labelled cases are parted in min(labelled + count, `MOST_CLUSTERS`) clusters by k-means. Again and
    again the cluster with the fewest labelled or chosen cases (of equals the largest, then by chance) gives its most typical case
    that is left. So outliers, clusters of a few cases, come last among equals; the published code leaves them out.

    Args:
        features: (N, F) of the pool; all are scaled to unit length.
        labelled: (L, F), or None.
        among: so many of the first rows may be chosen, at least `count`; all of them by default.
    """
    if count == 0:
        return []
    known = np.empty((0, features.shape[1]), np.float32) if labelled is None else labelled
    if known.shape[1] != features.shape[1]:
        raise ValueError(f"features of the pool have length {features.shape[1]}, those of labelled cases {known.shape[1]}")
    points = unit_length(np.concatenate([features, known]).astype(np.float32))
    open_ = len(features) if among is None else among
    cluster = _clusters(points, min(len(known) + count, MOST_CLUSTERS), rng)
    sizes, taken = np.bincount(cluster), np.bincount(cluster[len(features) :], minlength=cluster.max() + 1)
    left = np.bincount(cluster[:open_], minlength=len(sizes))
    luck = rng.permutation(len(sizes))
    queues: dict[int, list[tuple[int, float]]] = {}
    found = []
    for _ in range(count):
        which = min(np.flatnonzero(left).tolist(), key=lambda c: (taken[c], -sizes[c], luck[c]))
        if which not in queues:
            queues[which] = _by_typicality(points, np.flatnonzero(cluster == which), open_, rng)
        row, typicality = queues[which].pop(0)
        found.append(Typical(row, typicality, int(sizes[which])))
        taken[which] += 1
        left[which] -= 1
    return found


def _clusters(points: NDArray[np.float32], most: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """The cluster of each point, numbered from 0 without gaps; as many as `most`, or as there are different points."""
    seed = int(rng.integers(2**31))
    distinct = min(most, len(np.unique(points, axis=0)))
    kind = KMeans if distinct <= _FULL_BATCH else MiniBatchKMeans
    how = {} if kind is KMeans else {"batch_size": 5000}
    labels = kind(distinct, n_init=1, random_state=seed, **how).fit_predict(points)
    return np.asarray(np.unique(labels, return_inverse=True)[1])


def _by_typicality(
    points: NDArray[np.float32], members: NDArray[np.intp], open_: int, rng: np.random.Generator
) -> list[tuple[int, float]]:
    """Members that may be chosen (row < `open_`) with their typicality, most typical first, equals by chance."""
    nearest = min(NEIGHBOURS, len(members) // 2)
    if nearest == 0:
        typicality = np.zeros(len(members))
    else:
        distances, _ = NearestNeighbors(n_neighbors=nearest, algorithm="brute").fit(points[members]).kneighbors()
        typicality = 1 / np.maximum(distances.mean(axis=1), 1e-6)
    order = np.lexsort((rng.permutation(len(members)), -typicality))
    return [(int(members[n]), float(typicality[n])) for n in order if members[n] < open_]


def embeddings_alone(seen: Seen) -> Columns:
    """SAM's embedding of each case: known before anything is trained."""
    assert seen.embedding is not None
    return {"features": seen.embedding.float().cpu().numpy()}


TYPICLUST = Strategy(
    "typiclust",
    typiclust,
    look=embeddings_alone,
    labelled=True,
    embeds=True,
)
