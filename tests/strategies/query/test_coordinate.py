"""Coordination from sums and counts: k-means as of all cases in one place, kinds shared out, and sums of few patients kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.query.coordinate import (
    Census,
    census,
    cluster_sums,
    first_centroids,
    moments,
    most_typical_of,
    nearest,
    next_centroids,
    reach,
    refilled,
    share_out,
)


def counts(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), sites=st.integers(1, 4), clusters=st.integers(1, 5))
def test_a_step_over_sites_is_that_of_k_means_in_one_place(seed: int, sites: int, clusters: int) -> None:
    rng = np.random.default_rng(seed)
    pools = [rng.normal(size=(int(rng.integers(1, 12)), 3)) for _ in range(sites)]
    everything = np.concatenate(pools)
    centroids = rng.normal(size=(clusters, 3))
    parts = [cluster_sums(pool, [f"p{n}" for n in range(len(pool))], centroids, min_patients=1) for pool in pools]
    sums, members_of = np.sum([s for s, _ in parts], axis=0), np.sum([c for _, c in parts], axis=0)
    found = next_centroids(centroids, sums, members_of)
    belongs = [int(np.linalg.norm(centroids - point, axis=1).argmin()) for point in everything]
    for k in range(clusters):
        members = [point for point, own in zip(everything, belongs, strict=True) if own == k]
        np.testing.assert_allclose(found[k], np.mean(members, axis=0) if members else centroids[k], atol=1e-9)


def test_sums_of_few_patients_stay_at_the_site() -> None:
    """Two kinds; of the second there are three cases, but of one patient."""
    features = np.array([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]])
    patients = ["a", "b", "c", "d", "d", "d"]
    sums, of_cluster = cluster_sums(features, patients, np.array([[0.0], [9.0]]), min_patients=2)
    assert of_cluster.tolist() == [3, 0]
    assert sums.ravel().tolist() == pytest.approx([0.3, 0.0])
    said = census(features, patients, features[:1], ["a"], np.array([[0.1], [9.0]]), radius=0.15, min_patients=2)
    assert said.waiting.tolist() == [3, 0]
    assert said.annotated.tolist() == [1, 0]
    assert said.bare.tolist() == [1, 0], "of 0, .1 and .2 the last alone is in reach of the centroid and not of the annotated"


def test_the_first_centroids_lie_where_the_cases_do() -> None:
    rng = np.random.default_rng(0)
    pools = [rng.normal(loc=(5.0, -3.0), scale=(2.0, 0.1), size=(200, 2)) for _ in range(3)]
    centroids = first_centroids(
        np.sum([moments(pool) for pool in pools], axis=0), 600, clusters=20_000, rng=np.random.default_rng(1)
    )
    everything = np.concatenate(pools)
    np.testing.assert_allclose(centroids.mean(axis=0), everything.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(centroids.std(axis=0), everything.std(axis=0), rtol=0.05)


def told(waiting: tuple[int, ...], annotated: tuple[int, ...], bare: tuple[int, ...] | None = None) -> Census:
    return Census(counts(*waiting), counts(*annotated), counts(*(waiting if bare is None else bare)))


def test_kinds_are_shared_out_by_hand() -> None:
    """Kind 0 is annotated twice, kind 1 never, kind 2 never and rarer: 1, 2, then 1 again, since 0 has two already."""
    censuses = {"A": told((5, 4, 0), (2, 0, 0)), "B": told((0, 3, 2), (0, 0, 0))}
    assert share_out(censuses, total=3, covering=False, rng=np.random.default_rng(0)) == {"A": [1, 1], "B": [2]}
    all_ = share_out(censuses, total=99, covering=False, rng=np.random.default_rng(0))
    assert {site: sorted(kinds) for site, kinds in all_.items()} == {"A": [0] * 5 + [1] * 4, "B": [1] * 3 + [2] * 2}


def test_covering_takes_what_none_is_in_reach_of_though_it_is_annotated() -> None:
    """Kind 0 is annotated once, but most of it lies far from that: it comes first, and covers the rest of it; then 2, then 1."""
    censuses = {"A": told((9, 3, 4), (1, 0, 0), (8, 1, 4))}
    covering, not_ = (share_out(censuses, total=3, covering=c, rng=np.random.default_rng(0))["A"] for c in (True, False))
    assert covering == [0, 2, 1]
    assert not_ == [2, 1, 0]


def test_the_reach_is_the_root_mean_square_distance_to_the_centroids() -> None:
    points = np.array([[0.0, 0.0], [2.0, 0.0], [9.0, 0.0], [9.0, 4.0]])
    centroids = np.array([[1.0, 0.0], [9.0, 2.0]])
    assert reach(float(np.square(points).sum()), centroids, counts(2, 2)) == pytest.approx(np.sqrt((1 + 1 + 4 + 4) / 4))


def test_empty_kinds_are_moved_beside_the_largest() -> None:
    centroids = np.array([[0.0, 0.0], [5.0, 5.0], [99.0, 99.0]])
    moved = refilled(centroids, counts(3, 8, 0), np.random.default_rng(0))
    np.testing.assert_array_equal(moved[:2], centroids[:2])
    assert 0 < np.linalg.norm(moved[2] - centroids[1]) < 3
    np.testing.assert_array_equal(refilled(centroids, counts(1, 1, 1), np.random.default_rng(0)), centroids)


@settings(max_examples=60, deadline=None)
@given(
    pools=st.dictionaries(
        st.sampled_from("ABCD"), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=4, max_size=4), min_size=1
    ),
    total=st.integers(0, 40),
    covering=st.booleans(),
)
def test_no_site_is_given_what_it_has_not(pools: dict[str, list[tuple[int, int]]], total: int, covering: bool) -> None:
    censuses = {site: told(tuple(w for w, _ in kinds), tuple(a for _, a in kinds)) for site, kinds in pools.items()}
    given_out = share_out(censuses, total=total, covering=covering, rng=np.random.default_rng(0))
    for site, kinds in given_out.items():
        assert (np.bincount(kinds, minlength=4) <= censuses[site].waiting).all()
    assert sum(map(len, given_out.values())) == min(total, sum(int(one.waiting.sum()) for one in censuses.values()))


def test_of_a_kind_the_nearest_to_its_centroid_is_chosen() -> None:
    features, centroids = np.array([[0.0], [0.4], [0.1], [9.0]]), np.array([[0.05], [9.0]])
    assert nearest(features, centroids).tolist() == [0, 0, 0, 1]
    assert most_typical_of([0, 1, 0, 1], features, centroids, np.arange(4)) == [0, 3, 2]
    even = np.array([[0.0], [0.4], [0.1], [9.0]]) * 0
    assert most_typical_of([0, 0], even, centroids, np.arange(4)[::-1]) == [3, 2], "luck decides between equals"
