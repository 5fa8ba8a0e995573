"""ProbCover: as much of the pool as possible within reach of a labelled case (Yehuda et al. 2022).

Reach is a ball around a case in a space of features that need no training here. Its radius is the largest at which balls
still hold cases of one kind alone, as far as clusters can tell.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from strategies.query.choose import size_of_choice
from strategies.query.strategy import Strategy
from strategies.query.typiclust import embeddings_alone, with_closed
from strategies.query.vectors import unit_length
from strategies.records import Choice, Scores, Selection

PURITY = 0.95
"""Share of balls that must hold one kind alone."""

KINDS = 10
"""Clusters that stand for the classes of the paper, whose balls are pure where they hold one class alone."""

_SAMPLE = 1000
_BLOCK = 512


def probcover(scores: Scores, count: int, rng: np.random.Generator) -> Selection:
    """Again and again the case whose ball holds most that no ball covers yet.

    Raises:
        ValueError: features are missing, or labelled ones have another length.
    """
    if scores.features is None:
        raise ValueError("probcover needs features of the pool, and none were computed")
    count = size_of_choice(scores, count)
    points = unit_length(with_closed(scores))
    known = None if scores.labelled_features is None else unit_length(scores.labelled_features)
    if known is not None and known.shape[1] != points.shape[1]:
        raise ValueError(f"features of the pool have length {points.shape[1]}, those of labelled cases {known.shape[1]}")
    radius = pure_radius(points, kinds=KINDS, rng=rng)
    rows, gains, others = cover(points, known, count, among=len(scores.case_ids), radius=radius, rng=rng)
    return Selection(
        tuple(
            Choice(
                scores.case_ids[row],
                float(gain) / len(points),
                f"like {also} other case{'' if also == 1 else 's'} that nothing annotated or chosen is like"
                if gain
                else "chosen at random: all cases are like an annotated or chosen one",
            )
            for row, gain, also in zip(rows, gains, others, strict=True)
        )
    )


def cover(
    points: NDArray[np.float32],
    labelled: NDArray[np.float32] | None,
    count: int,
    *,
    among: int | None = None,
    radius: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Rows in the order chosen, how many cases each covered that were not before (0 at the end), and how many but itself.

    A case that is covered itself may be chosen for the sake of others.

    Greedy: at least 1 − 1/e of what any `count` balls cover. Distances are computed twice and never kept: O(N² · F) time at
    most, O(N) memory beside the points.

    Args:
        points: (N, F) of unit length.
        among: so many of the first rows may be chosen, at least `count`; all of them by default.
        labelled: (L, F) of unit length, whose balls are there already; or None.
    """
    luck = rng.permutation(len(points))
    bare = np.ones(len(points), dtype=bool)
    for _, near in _balls(points, labelled, radius) if labelled is not None and len(labelled) else ():
        bare &= ~near.any(axis=0)
    gain = np.zeros(len(points), dtype=np.intp)
    for _, near in _balls(points, points[bare], radius):
        gain += near.sum(axis=0)
    left = np.arange(len(points)) < (len(points) if among is None else among)
    rows, gains, others = (np.empty(count, dtype=np.intp) for _ in range(3))
    for n in range(count):
        best = np.flatnonzero(left & (gain == gain[left].max()))
        row = int(best[np.argmin(luck[best])])
        rows[n], gains[n], others[n], left[row] = row, gain[row], gain[row] - bare[row], False
        if gain[row]:
            new = np.flatnonzero(bare & (points @ points[row] >= _cosine(radius)))
            bare[new] = False
            for _, near in _balls(points, points[new], radius):
                gain -= near.sum(axis=0)
            # blocks of other sizes round otherwise, so that a case on the edge of a ball may leave it though it never came in
            np.maximum(gain, 0, out=gain)
    return rows, gains, others


def pure_radius(points: NDArray[np.float32], *, kinds: int, rng: np.random.Generator) -> float:
    """The largest radius at which `PURITY` of the balls hold one of `kinds` clusters alone; up to `_SAMPLE` balls are asked.

    A ball is pure up to the distance of the nearest case of another kind, so that the radius is a quantile of these.
    """
    kinds = min(kinds, len(np.unique(points, axis=0)))
    if kinds < 2:
        return 0.0
    cluster = KMeans(kinds, n_init=1, random_state=int(rng.integers(2**31))).fit_predict(points)
    asked = rng.permutation(len(points))[:_SAMPLE]
    to_other = np.empty(len(asked))
    for start in range(0, len(asked), _BLOCK):
        some = asked[start : start + _BLOCK]
        cosine = points[some] @ points.T
        cosine[cluster[some][:, None] == cluster[None]] = -np.inf
        to_other[start : start + _BLOCK] = np.sqrt(np.maximum(2 - 2 * cosine.max(axis=1), 0))
    return float(np.quantile(to_other, 1 - PURITY))


def _balls(points: NDArray[np.float32], centres: NDArray[np.float32], radius: float) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Which points (columns) are in reach of which centres (rows), a block of centres at a time."""
    for start in range(0, len(centres), _BLOCK):
        yield start, centres[start : start + _BLOCK] @ points.T >= _cosine(radius)


def _cosine(radius: float) -> np.float32:
    """Of unit vectors `radius` apart, with room for rounding: a point is always in its own ball."""
    return np.float32(1 - radius * radius / 2 - 1e-5)


PROBCOVER = Strategy(
    "probcover",
    probcover,
    look=embeddings_alone,
    labelled=True,
    embeds=True,
)
