"""Coordination from sums and counts: k-means as of all cases in one place, groups told as a whole, and kinds shared out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.query.coordinate import (
    Census,
    Groups,
    census,
    cluster_sums,
    fill_up,
    first_centroids,
    kinds_of,
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


def alone(features: np.ndarray, annotated: tuple[int, ...] = ()) -> Groups:
    """Each case is a group; those in the rows `annotated` are, the others wait."""
    rows = np.arange(len(features))
    known = np.isin(rows, annotated)
    return Groups.of(features, rows, waits=~known, annotated=known)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), sites=st.integers(1, 4), clusters=st.integers(1, 5))
def test_a_step_over_sites_is_that_of_k_means_in_one_place(seed: int, sites: int, clusters: int) -> None:
    rng = np.random.default_rng(seed)
    pools = [rng.normal(size=(int(rng.integers(1, 12)), 3)) for _ in range(sites)]
    everything = np.concatenate(pools)
    centroids = rng.normal(size=(clusters, 3))
    parts = [cluster_sums(alone(pool), centroids) for pool in pools]
    sums, members_of = np.sum([s for s, _ in parts], axis=0), np.sum([c for _, c in parts], axis=0)
    found = next_centroids(centroids, sums, members_of)
    belongs = [int(np.linalg.norm(centroids - point, axis=1).argmin()) for point in everything]
    for k in range(clusters):
        members = [point for point, own in zip(everything, belongs, strict=True) if own == k]
        np.testing.assert_allclose(found[k], np.mean(members, axis=0) if members else centroids[k], atol=1e-9)


GROUPED = np.array([[0.0], [0.2], [0.9], [9.0], [9.2], [5.5]]), np.array([4, 4, 4, 7, 7, -1])
"""Two groups, with gaps in their numbers, and a case that is told nowhere."""


def test_groups_go_to_a_kind_as_a_whole_and_nothing_else_goes() -> None:
    """The case at .9 is nearer to the second centroid, its group to the first; it annotates its group's kind."""
    features, group = GROUPED
    annotated = np.array([False, False, True, False, False, False])
    groups = Groups.of(features, group, waits=~annotated, annotated=annotated)
    centroids = np.array([[0.0], [1.5], [9.0]])
    assert kinds_of(features, group, centroids).tolist() == [0, 0, 0, 2, 2, 2], "in no group, a case is of its own kind"
    sums, of_cluster = cluster_sums(groups, centroids)
    assert of_cluster.tolist() == [3, 0, 2]
    assert sums.ravel().tolist() == pytest.approx([1.1, 0.0, 18.2])
    np.testing.assert_allclose(moments(groups), [[1.1 + 18.2], [0.85 + 81 + 9.2**2]])
    said = census(groups, centroids, radius=0.15)
    assert (said.waiting.tolist(), said.annotated.tolist(), said.bare.tolist()) == ([2, 0, 2], [1, 0, 0], [0, 0, 2])


def test_bare_is_what_lies_near_its_centroid_and_far_from_all_that_is_annotated() -> None:
    features = np.array([[0.0], [0.1], [0.2], [9.0], [9.1], [9.9]])
    said = census(alone(features, annotated=(0,)), np.array([[0.1], [9.0]]), radius=0.15)
    assert said.waiting.tolist() == [2, 3]
    assert said.annotated.tolist() == [1, 0]
    assert said.bare.tolist() == [1, 2], ".1 is in reach of the annotated, 9.9 out of its centroid's"


def test_the_first_centroids_lie_where_the_cases_do() -> None:
    rng = np.random.default_rng(0)
    pools = [rng.normal(loc=(5.0, -3.0), scale=(2.0, 0.1), size=(200, 2)) for _ in range(3)]
    centroids = first_centroids(
        np.sum([moments(alone(pool)) for pool in pools], axis=0), 600, clusters=20_000, rng=np.random.default_rng(1)
    )
    everything = np.concatenate(pools)
    np.testing.assert_allclose(centroids.mean(axis=0), everything.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(centroids.std(axis=0), everything.std(axis=0), rtol=0.05)


def told(waiting: tuple[int, ...], annotated: tuple[int, ...], bare: tuple[int, ...] | None = None) -> Census:
    return Census(counts(*waiting), counts(*annotated), counts(*(waiting if bare is None else bare)))


def test_kinds_are_shared_out_by_hand() -> None:
    """Kind 0 is annotated three times, kind 1 never, kind 2 never and rarer: 1, 2, then 1 again, since 0 has three already."""
    censuses = {"A": told((5, 4, 0), (2, 0, 0)), "B": told((0, 3, 2), (1, 0, 0))}
    assert share_out(censuses, total=3, covering=False, rng=np.random.default_rng(0)) == {"A": [1, 1], "B": [2]}
    all_ = share_out(censuses, total=99, covering=False, rng=np.random.default_rng(0))
    assert {site: sorted(kinds) for site, kinds in all_.items()} == {"A": [0] * 5 + [1] * 4, "B": [1] * 3 + [2] * 2}


def test_a_site_without_a_label_is_given_one_first_though_its_kinds_are_known_elsewhere() -> None:
    """B's one kind is annotated more than any, and A has more of it: left to kinds alone B would wait for the eighth grant."""
    censuses = {"A": told((5, 5), (9, 0)), "B": told((2, 0), (0, 0)), "C": told((0, 0), (0, 0))}
    assert share_out(censuses, total=3, covering=False, rng=np.random.default_rng(0)) == {"A": [1, 1], "B": [0], "C": []}


def test_covering_takes_what_none_is_in_reach_of_though_it_is_annotated() -> None:
    """Kind 0 is annotated once, but most of it lies far from that: it comes first, and covers the rest of it; then 2, then 1."""
    censuses = {"A": told((9, 3, 4), (1, 0, 0), (8, 1, 4))}
    covering, not_ = (share_out(censuses, total=3, covering=c, rng=np.random.default_rng(0))["A"] for c in (True, False))
    assert covering == [0, 2, 1]
    assert not_ == [2, 1, 0]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(2, 30))
def test_the_reach_is_the_root_mean_square_distance_to_the_centroids(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, 4))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    kind = rng.integers(3, size=n)
    sizes = np.bincount(kind, minlength=3)
    centroids = np.stack([points[kind == k].mean(axis=0) if sizes[k] else np.full(4, 7.0) for k in range(3)])
    expected = np.sqrt(np.square(points - centroids[kind]).sum(axis=1).mean())
    assert reach(centroids, sizes) == pytest.approx(expected, abs=1e-7)


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


@settings(max_examples=60, deadline=None)
@given(
    given_out=st.dictionaries(st.sampled_from("ABCD"), st.tuples(st.integers(0, 5), st.none() | st.integers(0, 8)), min_size=1),
    rest=st.integers(0, 20),
)
def test_a_rest_goes_where_cases_are_left_and_levels_grants(given_out: dict[str, tuple[int, int | None]], rest: int) -> None:
    before = {site: number for site, (number, _) in given_out.items()}
    pools = {site: None if left is None else number + left for site, (number, left) in given_out.items()}
    total = sum(before.values()) + rest
    grants = fill_up(before, pools, total=total)
    room = sum(1000 if left is None else left for _, left in given_out.values())
    assert sum(grants.values()) == sum(before.values()) + min(rest, room), "nothing is lost that somebody could use"
    full = {site for site, pool in pools.items() if pool is not None and grants[site] == pool}
    for site, grant in grants.items():
        pool = pools[site]
        assert grant >= before[site]
        assert pool is None or grant <= pool
        if grant > before[site]:
            assert all(grant - 1 <= grants[other] for other in grants if other not in full)


def test_of_a_kind_the_nearest_to_its_centroid_is_chosen() -> None:
    features, centroids = np.array([[0.0], [0.4], [0.1], [9.0]]), np.array([[0.05], [9.0]])
    kind = nearest(features, centroids)
    assert kind.tolist() == [0, 0, 0, 1]
    assert most_typical_of([0, 1, 0, 1], features, kind, centroids, np.arange(4)) == [0, 3, 2]
    even = features * 0
    assert most_typical_of([0, 0], even, kind * 0, centroids, np.arange(4)[::-1]) == [3, 2], "luck decides between equals"
