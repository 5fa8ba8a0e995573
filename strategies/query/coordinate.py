"""Which kinds of cases each site asks for, so that two sites don't ask for the same: federated TypiClust and ProbCover.

Kinds are clusters of SAM's embeddings over all sites. They are found by k-means from sums and counts alone (what a k-means step
needs is, for each cluster, the sum of its members and how many they are), so that no case's embedding leaves its site, and from
clusters with enough patients alone. Then each site says how many of its cases of each kind wait and are annotated, and the
coordinator shares the kinds out. Pure: arrays in, arrays out.
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
    """What a site tells of its cases by kind, each (K,): how many wait, and how many are annotated or asked for.

    A kind with fewer patients than the site's `min_patients` counts 0 in both.
    """

    waiting: Counts
    annotated: Counts


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


def census(
    waiting: NDArray[np.floating],
    waiting_patients: Sequence[str],
    annotated: NDArray[np.floating],
    annotated_patients: Sequence[str],
    centroids: Floats,
    *,
    min_patients: int,
) -> Census:
    """A site's cases by kind."""
    counts = []
    clusters = [nearest(features, centroids) for features in (waiting, annotated)]
    patients = [
        *zip(clusters[0].tolist(), waiting_patients, strict=True),
        *zip(clusters[1].tolist(), annotated_patients, strict=True),
    ]
    behind = [len({patient for cluster, patient in patients if cluster == k}) for k in range(len(centroids))]
    few = np.array(behind) < max(min_patients, 1)
    for cluster in clusters:
        count = np.bincount(cluster, minlength=len(centroids)).astype(np.int64)
        counts.append(np.where(few, 0, count))
    return Census(*counts)


def share_out(censuses: Mapping[str, Census], *, total: int, covering: bool, rng: np.random.Generator) -> dict[str, list[int]]:
    """Which kinds each site asks for, one entry a case, in the order in which they were given out.

    Again and again a kind is picked: of those that wait somewhere the one with fewest cases annotated or given out, of equals
    the largest (TypiClust); or, `covering`, the one with most waiting cases of which none is annotated or given out, then as
    before (ProbCover). The site with most cases of that kind waiting gets it; of equals the one with the smallest grant so far.

    Args:
        total: cases of all sites together; fewer where fewer wait.
    """
    left = {site: one.waiting.copy() for site, one in censuses.items()}
    given: dict[str, list[int]] = {site: [] for site in censuses}
    kinds = len(next(iter(left.values()))) if left else 0
    taken = sum((one.annotated for one in censuses.values()), np.zeros(kinds, dtype=np.int64))
    luck = rng.permutation(kinds)
    for _ in range(total):
        waits = sum(left.values(), np.zeros(kinds, dtype=np.int64))
        there = np.flatnonzero(waits)
        if not len(there):
            break
        if covering:
            kind = min(there.tolist(), key=lambda k: (taken[k] > 0, -waits[k] if taken[k] == 0 else taken[k], -waits[k], luck[k]))
        else:
            kind = min(there.tolist(), key=lambda k: (taken[k], -waits[k], luck[k]))
        site = min(sorted(left), key=lambda name: (-left[name][kind], len(given[name])))
        given[site].append(kind)
        left[site][kind] -= 1
        taken[kind] += 1
    return given


def most_typical_of(
    kinds: Sequence[int], features: NDArray[np.floating], centroids: Floats, values: Floats | None, luck: NDArray[np.intp]
) -> list[int]:
    """Rows of a site's pool (N, F), one for each kind that it was given: the nearest to its centroid, or, with `values`, the
    highest of that kind. A kind that the site has no case of any more is left out.

    Args:
        luck: a permutation of the rows, which decides between equals.
    """
    cluster = nearest(features, centroids)
    distance = np.linalg.norm(np.asarray(features, dtype=np.float64) - centroids[cluster], axis=1)
    rank = distance if values is None else -values
    queues = {
        kind: sorted(np.flatnonzero(cluster == kind).tolist(), key=lambda row: (rank[row], luck[row])) for kind in set(kinds)
    }
    return [queues[kind].pop(0) for kind in kinds if queues[kind]]
