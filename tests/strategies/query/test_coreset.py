"""k-centre greedy against a slow version that keeps all pairwise distances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies.query.coreset import coreset, k_centre_greedy
from strategies.records import Scores


def pool(features: NDArray[np.float32], labelled: NDArray[np.float32] | None) -> Scores:
    n = len(features)
    return Scores([f"{i:05d}" for i in range(n)], ["p"] * n, features=features, labelled_features=labelled)


def slow_greedy(features: NDArray[np.float32], centres: NDArray[np.float32], count: int) -> tuple[list[int], list[float]]:
    """Every distance anew for every pick, O(N² · B); ties must not occur in what it is given."""
    taken: list[int] = []
    gaps: list[float] = []
    for _ in range(count):
        best, best_gap = -1, -math.inf
        for i in range(len(features)):
            if i in taken:
                continue
            others = [*centres, *(features[j] for j in taken)] or [features.astype(np.float64).mean(axis=0)]
            gap = min(math.dist(features[i].tolist(), np.asarray(other).tolist()) for other in others)
            if gap > best_gap:
                best, best_gap = i, gap
        taken.append(best)
        gaps.append(best_gap)
    return taken, gaps


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 20),
    labelled=st.integers(0, 4),
    width=st.integers(2, 5),
    count=st.integers(1, 20),
    seed=st.integers(0, 999),
)
def test_equals_the_slow_version(n: int, labelled: int, width: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, width)).astype(np.float32)
    centres = rng.normal(size=(labelled, width)).astype(np.float32)
    expected, gaps = slow_greedy(features, centres, min(count, n))

    selection = coreset(pool(features, centres), count, np.random.default_rng(seed))
    if labelled or n != 2:  # two points lie equally far from their mean: chance decides
        assert [int(case) for case in selection.case_ids] == expected
    assert [c.score for c in selection.choices] == pytest.approx(gaps)

    chosen, distances = k_centre_greedy(features, centres, min(count, n))
    assert sorted(chosen.tolist()) == sorted(expected)
    assert distances.tolist() == pytest.approx(gaps)


def test_goes_where_nothing_is_labelled() -> None:
    """Three clusters, one of them labelled: the first two picks are one from each of the others."""
    rng = np.random.default_rng(0)
    cluster = np.repeat([0, 1, 2], 10)
    features = (np.array([[0, 0], [10, 0], [0, 10]])[cluster] + rng.normal(scale=0.1, size=(30, 2))).astype(np.float32)
    selection = coreset(pool(features, features[:1]), 2, rng)
    assert {int(cluster[int(case)]) for case in selection.case_ids} == {1, 2}


def test_without_centres_starts_farthest_from_the_mean() -> None:
    features = np.array([[0.0], [1.0], [2.0], [9.0]], dtype=np.float32)  # mean 3
    first, second, *_ = coreset(pool(features, None), 3, np.random.default_rng(0)).choices
    assert (first.case_id, first.score) == ("00003", 6.0)
    assert (second.case_id, second.score) == ("00000", 9.0)  # from the first one, no longer from the mean
    assert "none is annotated yet" in first.reason
    assert "unlike all cases annotated or chosen" in second.reason


def test_no_labelled_rows_are_no_centres() -> None:
    features = np.random.default_rng(3).normal(size=(9, 3)).astype(np.float32)
    empty = np.empty((0, 3), dtype=np.float32)
    picks = [coreset(pool(features, centres), 4, np.random.default_rng(0)).case_ids for centres in (None, empty)]
    assert picks[0] == picks[1]


def test_copies_are_chosen_last_but_they_are_chosen() -> None:
    """With nothing but copies of labelled cases left, the grant is still met, and none is chosen twice."""
    features = np.array([[1.0, 1.0]] * 4 + [[5.0, 5.0]], dtype=np.float32)
    selection = coreset(pool(features, features[:1]), 5, np.random.default_rng(0))
    assert selection.case_ids[0] == "00004"
    assert sorted(selection.case_ids) == [f"{i:05d}" for i in range(5)]


def test_many_labelled_cases_go_in_chunks() -> None:
    """More rows than a chunk, against one big distance matrix."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(2500, 3)).astype(np.float32)
    centres = rng.normal(size=(40, 3)).astype(np.float32)
    chosen, distances = k_centre_greedy(features, centres, 1)
    wide = features.astype(np.float64)[:, None] - centres.astype(np.float64)[None]
    nearest = np.sqrt((wide**2).sum(axis=2)).min(axis=1)
    assert chosen[0] == nearest.argmax()
    assert distances[0] == pytest.approx(nearest.max())


def test_features_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match="length 3, those of labelled cases 2"):
        coreset(pool(np.zeros((4, 3), dtype=np.float32), np.zeros((1, 2), dtype=np.float32)), 1, np.random.default_rng(0))
