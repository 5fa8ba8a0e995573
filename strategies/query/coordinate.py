"""Which kinds of cases each site asks for, so that two sites don't ask for the same: federated TypiClust and ProbCover.

Kinds are clusters of SAM's embeddings over all sites. They are found by k-means from sums and counts alone: what a k-means step
needs is, for each cluster, the sum of its members and how many they are. A site's members are groups of its cases, each of
several patients, that go to a cluster as a whole (`groups.py`). Then each site says how many of its cases of each kind wait, are
annotated and lie within reach of none that is, and the coordinator shares the kinds out. Pure: arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Number = TypeVar("Number", np.float64, np.int64)

MOST_CLUSTERS = 500


@dataclass(frozen=True)
class Groups:
    """All that a site's answers are made of, by group of its cases, and nothing of a case alone.

    Attributes:
        sums, squares: (G, F) of the features of a group's cases.
        cases: (G,) how many these are, at least 1.
        waiting, annotated: (G,) how many of these wait, and how many are annotated or asked for.
    """

    sums: Floats
    squares: Floats
    cases: Counts
    waiting: Counts
    annotated: Counts

    @classmethod
    def of(
        cls, features: NDArray[np.floating], group: NDArray[np.intp], *, waits: NDArray[np.bool_], annotated: NDArray[np.bool_]
    ) -> Groups:
        """From features (N, F), numbers of groups (N,), below 0 for cases that are told nowhere, and what cases are (N,)."""
        rows = group >= 0
        points = np.asarray(features[rows], dtype=np.float64)
        numbers, own = np.unique(group[rows], return_inverse=True)
        return cls(
            _by(own, points, len(numbers)),
            _by(own, np.square(points), len(numbers)),
            _by(own, np.ones(len(own), dtype=np.int64), len(numbers)),
            _by(own, waits[rows].astype(np.int64), len(numbers)),
            _by(own, annotated[rows].astype(np.int64), len(numbers)),
        )

    @property
    def means(self) -> Floats:
        """(G, F), where a group lies."""
        return self.sums / self.cases[:, None]


@dataclass(frozen=True)
class Census:
    """What a site tells of its cases by kind, each (K,): how many wait, how many are annotated or asked for, and how many of
    those that wait lie in reach of their centroid and of none that is annotated.
    """

    waiting: Counts
    annotated: Counts
    bare: Counts


def moments(groups: Groups) -> Floats:
    """(2, F): sum and sum of squares of a site's cases."""
    return np.stack([groups.sums.sum(axis=0), groups.squares.sum(axis=0)])


def first_centroids(sums: Floats, count: int, *, clusters: int, rng: np.random.Generator) -> Floats:
    """(clusters, F) places to begin with, drawn like the cases of all sites together: their mean, their spread.

    Args:
        sums: (2, F) moments of all sites together; `count`: how many cases they are of, at least 1.
    """
    mean = sums[0] / count
    spread = np.sqrt(np.maximum(sums[1] / count - np.square(mean), 0))
    return np.asarray(mean + spread * rng.standard_normal((clusters, len(mean))))


def nearest(features: NDArray[np.floating], centroids: Floats) -> NDArray[np.intp]:
    """(N,) number of the centroid that each case is closest to; the first of equals."""
    points = np.asarray(features, dtype=np.float64)
    distances = np.square(centroids).sum(axis=1) - 2 * points @ centroids.T  # but for what all centroids share
    return np.asarray(distances.argmin(axis=1))


def kinds_of(features: NDArray[np.floating], group: NDArray[np.intp], centroids: Floats) -> NDArray[np.intp]:
    """(N,) kind of each case (N, F): that of its group, by the group's mean; its own where it is in none (below 0)."""
    points = np.asarray(features, dtype=np.float64)
    numbers, own = np.unique(group, return_inverse=True)
    means = _by(own, points, len(numbers)) / np.bincount(own)[:, None]
    return np.asarray(nearest(np.where((group < 0)[:, None], points, means[own]), centroids))


def cluster_sums(groups: Groups, centroids: Floats) -> tuple[Floats, Counts]:
    """A site's part of a k-means step: (K, F) sums and (K,) counts of the cases of its groups, by the nearest centroid."""
    cluster = nearest(groups.means, centroids)
    return _by(cluster, groups.sums, len(centroids)), _by(cluster, groups.cases, len(centroids))


def next_centroids(centroids: Floats, sums: Floats, counts: Counts) -> Floats:
    """Means of all sites' sums; a centroid without cases stays where it is."""
    means = sums / np.maximum(counts, 1)[:, None]
    return np.where(counts[:, None] > 0, means, centroids)


def reach(centroids: Floats, counts: Counts) -> float:
    """How far a case lies from its centroid in the root mean square, for features of unit length.

    Their squares add up to how many they are, so this follows from what the same k-means step tells of the same cases.

    Args:
        centroids: (K, F) means of the cases that `counts` (K,) counts.
    """
    within = float((counts * (1 - np.square(centroids).sum(axis=1))).sum())
    return float(np.sqrt(max(within, 0.0) / max(int(counts.sum()), 1)))


def refilled(centroids: Floats, counts: Counts, rng: np.random.Generator) -> Floats:
    """Centroids without a case moved beside the largest ones, so that they part these in the next step."""
    empty = np.flatnonzero(counts == 0)
    largest = np.argsort(-counts, kind="stable")[: len(empty)]
    moved = centroids.copy()
    scale = centroids[counts > 0].std(axis=0) if (counts > 0).any() else 0.0
    for k, beside in zip(empty.tolist(), largest.tolist(), strict=True):
        moved[k] = centroids[beside] + 0.1 * scale * rng.standard_normal(centroids.shape[1])
    return moved


def census(groups: Groups, centroids: Floats, *, radius: float) -> Census:
    """A site's cases by kind. What is in reach of what is seen by groups too: from mean to centroid, and from mean to mean."""
    means, kinds = groups.means, len(centroids)
    kind = nearest(means, centroids)
    bare = np.linalg.norm(means - centroids[kind], axis=1) <= radius
    for annotated in means[groups.annotated > 0]:
        bare &= np.linalg.norm(means - annotated, axis=1) > radius
    return Census(
        _by(kind, groups.waiting, kinds), _by(kind, groups.annotated, kinds), _by(kind, np.where(bare, groups.waiting, 0), kinds)
    )


def share_out(censuses: Mapping[str, Census], *, total: int, covering: bool, rng: np.random.Generator) -> dict[str, list[int]]:
    """Which kinds each site asks for, one entry a case, in the order in which they were given out.

    Again and again a kind is picked of those that wait somewhere. TypiClust: the one with fewest cases annotated or given out, of
    equals the largest. ProbCover (`covering`): the one with most cases that none is in reach of, until nothing is bare, then as
    TypiClust; who is given out covers what is bare of its kind. The site with most cases of that kind waiting gets it; of equals
    the one with the smallest grant so far. Sites with nothing annotated come first, until each has been given a case: one that
    has no label can't take part in supervised training at all, however well its kinds are known elsewhere.

    Args:
        total: cases of all sites together; fewer where fewer wait.
    """
    left = {site: one.waiting.copy() for site, one in censuses.items()}
    given: dict[str, list[int]] = {site: [] for site in censuses}
    kinds = len(next(iter(left.values()))) if left else 0
    none = np.zeros(kinds, dtype=np.int64)
    taken = sum((one.annotated for one in censuses.values()), none)
    bare = sum((one.bare for one in censuses.values()), none) if covering else none
    luck = rng.permutation(kinds)
    for _ in range(total):
        unseen = [site for site, one in censuses.items() if not one.annotated.any() and not given[site] and left[site].any()]
        among = sorted(unseen or left)
        waits = sum((left[site] for site in among), none)
        there = np.flatnonzero(waits).tolist()
        if not there:
            break
        kind = min(there, key=lambda k: (-bare[k], taken[k], -waits[k], luck[k]))
        site = min(among, key=lambda name: (-left[name][kind], len(given[name])))
        given[site].append(kind)
        left[site][kind] -= 1
        taken = taken + np.eye(1, kinds, kind, dtype=np.int64)[0]
        bare = np.where(np.arange(kinds) == kind, 0, bare)
    return given


def fill_up(given: Mapping[str, int], pools: Mapping[str, int | None], *, total: int) -> dict[str, int]:
    """Grants raised to `total` in all, a case at a time to whom has the smallest and a case left for it; of equals by name.

    Args:
        given: grants so far, by site.
        pools: how many cases wait there, or None where that is not known.
    """
    grants = dict(given)
    for _ in range(total - sum(given.values())):
        pool = {site: pools.get(site) for site in grants}
        open_ = [site for site in sorted(grants) if (left := pool[site]) is None or left > grants[site]]
        if not open_:
            break
        grants[min(open_, key=lambda site: grants[site])] += 1
    return grants


def most_typical_of(
    kinds: Sequence[int], features: NDArray[np.floating], kind: NDArray[np.intp], centroids: Floats, luck: NDArray[np.intp]
) -> list[int]:
    """Rows of a site's pool (N, F), one for each kind that it was given: the nearest to its centroid that is left.

    A kind that the site has no case of any more is left out.

    Args:
        kind: (N,) of each case (`kinds_of`).
        luck: a permutation of the rows, which decides between equals.
    """
    distance = np.linalg.norm(np.asarray(features, dtype=np.float64) - centroids[kind], axis=1)
    queues = {one: sorted(np.flatnonzero(kind == one).tolist(), key=lambda row: (distance[row], luck[row])) for one in set(kinds)}
    return [queues[one].pop(0) for one in kinds if queues[one]]


def _by(number: NDArray[np.intp], rows: NDArray[Number], count: int) -> NDArray[Number]:
    """(count, …) sums of the rows that have each number."""
    sums = np.zeros((count, *rows.shape[1:]), dtype=rows.dtype)
    np.add.at(sums, number, rows)
    return sums
