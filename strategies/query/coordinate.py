"""Which kinds of cases each site asks for, so that two sites don't ask for the same: federated TypiClust and ProbCover.

Kinds are clusters of SAM's embeddings over all sites. They are found by k-means from sums and counts alone: what a k-means step
needs is, for each cluster, the sum of its members and how many they are; of clusters with enough patients alone. Then each site
says how many of its cases of each kind wait, are annotated and lie within reach of none that is, and the coordinator shares
the kinds out. A sum over many is not an embedding of one, but who sees the sums of two steps, between which one case has changed
its cluster, can work that one out: this is for federations that trust their coordinator with that. Pure: arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

MOST_CLUSTERS = 500


@dataclass(frozen=True)
class Census:
    """What a site tells of its cases by kind, each (K,): how many wait, how many are annotated or asked for, and how many of
    those that wait lie in reach of their centroid and of none that is annotated.

    A kind with fewer patients than the site's `min_patients` counts 0 in all.
    """

    waiting: Counts
    annotated: Counts
    bare: Counts


def moments(features: NDArray[np.floating]) -> Floats:
    """(2, F): sum and sum of squares of a site's cases (N, F)."""
    points = np.asarray(features, dtype=np.float64)
    return np.stack([points.sum(axis=0), np.square(points).sum(axis=0)])


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


def cluster_sums(
    features: NDArray[np.floating], patients: Sequence[str], centroids: Floats, *, min_patients: int
) -> tuple[Floats, Counts]:
    """A site's part of a k-means step: (K, F) sums and (K,) counts of its cases by the nearest centroid.

    Clusters with cases of fewer than `min_patients` patients are all 0: their sum would tell of few.
    """
    cluster = nearest(features, centroids)
    sums, counts = np.zeros(centroids.shape), np.zeros(len(centroids), dtype=np.int64)
    for k in range(len(centroids)):
        members = np.flatnonzero(cluster == k)
        if len({patients[n] for n in members.tolist()}) >= max(min_patients, 1):
            sums[k], counts[k] = np.asarray(features[members], dtype=np.float64).sum(axis=0), len(members)
    return sums, counts


def next_centroids(centroids: Floats, sums: Floats, counts: Counts) -> Floats:
    """Means of all sites' sums; a centroid without cases stays where it is."""
    means = sums / np.maximum(counts, 1)[:, None]
    return np.where(counts[:, None] > 0, means, centroids)


def reach(sum_of_squares: float, centroids: Floats, counts: Counts) -> float:
    """How far a case lies from its centroid in the root mean square, from what a k-means step tells.

    Args:
        sum_of_squares: of all features of all cases; `counts`: cases by the centroids, which are their means.
    """
    within = sum_of_squares - float((counts * np.square(centroids).sum(axis=1)).sum())
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


def census(
    waiting: NDArray[np.floating],
    waiting_patients: Sequence[str],
    annotated: NDArray[np.floating],
    annotated_patients: Sequence[str],
    centroids: Floats,
    *,
    radius: float,
    min_patients: int,
) -> Census:
    """A site's cases by kind."""
    of_waiting, of_annotated = nearest(waiting, centroids), nearest(annotated, centroids)
    behind: list[set[str]] = [set() for _ in centroids]
    for clusters, patients in ((of_waiting, waiting_patients), (of_annotated, annotated_patients)):
        for k, patient in zip(clusters.tolist(), patients, strict=True):
            behind[k].add(patient)
    few = np.array([len(patients) < max(min_patients, 1) for patients in behind])
    covered = np.zeros(len(waiting), dtype=bool)
    for one in np.asarray(annotated, dtype=np.float64):
        covered |= np.linalg.norm(waiting - one, axis=1) <= radius
    near = np.linalg.norm(waiting - centroids[of_waiting], axis=1) <= radius

    def counted(clusters: NDArray[np.intp]) -> Counts:
        return np.where(few, 0, np.bincount(clusters, minlength=len(centroids)).astype(np.int64))

    return Census(counted(of_waiting), counted(of_annotated), counted(of_waiting[near & ~covered]))


def share_out(censuses: Mapping[str, Census], *, total: int, covering: bool, rng: np.random.Generator) -> dict[str, list[int]]:
    """Which kinds each site asks for, one entry a case, in the order in which they were given out.

    Again and again a kind is picked of those that wait somewhere. TypiClust: the one with fewest cases annotated or given out, of
    equals the largest. ProbCover (`covering`): the one with most cases that none is in reach of, until nothing is bare, then as
    TypiClust; who is given out covers what is bare of its kind. The site with most cases of that kind waiting gets it; of equals
    the one with the smallest grant so far.

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
        waits = sum(left.values(), none)
        there = np.flatnonzero(waits).tolist()
        if not there:
            break
        kind = min(there, key=lambda k: (-bare[k], taken[k], -waits[k], luck[k]))
        site = min(sorted(left), key=lambda name: (-left[name][kind], len(given[name])))
        given[site].append(kind)
        left[site][kind] -= 1
        taken = taken + np.eye(1, kinds, kind, dtype=np.int64)[0]
        bare = np.where(np.arange(kinds) == kind, 0, bare)
    return given


def most_typical_of(kinds: Sequence[int], features: NDArray[np.floating], centroids: Floats, luck: NDArray[np.intp]) -> list[int]:
    """Rows of a site's pool (N, F), one for each kind that it was given: the nearest to its centroid that is left.

    A kind that the site has no case of any more is left out.

    Args:
        luck: a permutation of the rows, which decides between equals.
    """
    cluster = nearest(features, centroids)
    distance = np.linalg.norm(np.asarray(features, dtype=np.float64) - centroids[cluster], axis=1)
    queues = {
        kind: sorted(np.flatnonzero(cluster == kind).tolist(), key=lambda row: (distance[row], luck[row])) for kind in set(kinds)
    }
    return [queues[kind].pop(0) for kind in kinds if queues[kind]]
