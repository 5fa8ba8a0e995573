"""TypiClust: kinds that nobody annotated first, and of each the case that most are like."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from strategies.query import typiclust as module
from strategies.query.typiclust import most_typical, typiclust
from strategies.query.vectors import unit_length
from strategies.records import Scores


def blobs(*counts: int, width: float = 0.02, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Cases around axes of a space, `counts` of them each, and which axis each is at; the first of each is its centre."""
    rng = np.random.default_rng(seed)
    kind = np.repeat(np.arange(len(counts)), counts)
    points = np.eye(len(counts))[kind] + width * rng.normal(size=(len(kind), len(counts)))
    points[np.unique(kind, return_index=True)[1]] = np.eye(len(counts))
    return points.astype(np.float32), kind


def test_the_largest_kind_that_nobody_annotated_comes_first() -> None:
    points, kind = blobs(30, 20, 10)
    labelled = np.array([[1.0, 0.01, 0.0]], dtype=np.float32)
    found = most_typical(points, labelled, 2, np.random.default_rng(0))
    assert [kind[one.row] for one in found] == [1, 2]
    assert [one.cluster_size for one in found] == [20, 10]


def test_of_a_kind_the_case_is_chosen_that_is_nearest_to_its_neighbours() -> None:
    points, kind = blobs(25, 15, width=0.05)
    found = most_typical(points, None, 2, np.random.default_rng(0))
    unit = unit_length(points).astype(float)
    for one in found:
        members = np.flatnonzero(kind == kind[one.row])
        typicality = {}
        for row in members.tolist():
            distances = np.sort(np.linalg.norm(unit[members] - unit[row], axis=1))[1:]
            typicality[row] = 1 / distances[: min(20, len(members) // 2)].mean()
        assert one.row == max(typicality, key=typicality.__getitem__)
        assert one.typicality == pytest.approx(typicality[one.row], rel=1e-4)


def test_kinds_take_turns_and_none_gives_a_case_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer clusters than choices: one from each before a second from any, and all in the end."""
    monkeypatch.setattr(module, "MOST_CLUSTERS", 2)
    points, kind = blobs(6, 8)
    found = most_typical(points, None, 14, np.random.default_rng(0))
    assert sorted(one.row for one in found) == list(range(14))
    kinds = [int(kind[one.row]) for one in found]
    assert kinds[:12] == [1, 0] * 6
    assert kinds[12:] == [1, 1]
    for one, other in pairwise([one for one in found if kind[one.row] == 1]):
        assert one.typicality >= other.typicality


def test_outliers_come_after_kinds_of_some_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CLUSTERS", 3)
    points, kind = blobs(4, 5, 6)
    found = most_typical(points, None, 3, np.random.default_rng(0))
    assert [int(kind[one.row]) for one in found] == [2, 1, 0]


def test_of_kinds_as_large_as_each_other_chance_decides_which_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever numbers k-means has given them."""
    points, kind = blobs(5, 5)
    monkeypatch.setattr(module, "_clusters", lambda *_: kind)
    first = [int(kind[most_typical(points, None, 1, np.random.default_rng(seed))[0].row]) for seed in range(20)]
    assert 3 < sum(first) < 17


def test_many_clusters_are_found_in_batches() -> None:
    """More than Lloyd's algorithm is used for; with as many cases as asked for each is chosen."""
    points, _ = blobs(*[2] * 40)
    found = most_typical(points, None, 80, np.random.default_rng(0))
    assert sorted(one.row for one in found) == list(range(80))


def test_features_that_differ_in_length_alone_are_of_one_kind() -> None:
    points = np.array([[1.0, 0.0], [50.0, 0.0], [2.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    assert {one.cluster_size for one in most_typical(points, None, 2, np.random.default_rng(0))} == {3, 1}


def test_cases_that_may_not_be_chosen_make_their_kind_no_smaller() -> None:
    """Of the second kind a cap has closed eight of nine; the third has three."""
    points, kind = blobs(2, 9, 3)
    closed = (kind == 1) & (np.arange(len(kind)) < 10)
    left = (kind > 0) & ~closed
    scores = Scores(
        [f"{n}" for n in range(4)],
        ["p"] * 4,
        features=points[left],
        closed_features=points[closed],
        labelled_features=points[kind == 0],
    )
    (chosen,) = typiclust(scores, 1, np.random.default_rng(0)).choices
    assert chosen.case_id == "0"
    assert chosen.reason.startswith("typical of a kind with 9 cases")


def test_reasons_tell_what_the_case_stands_for() -> None:
    points, _ = blobs(9, 6)
    scores = Scores([f"{n:02d}" for n in range(15)], ["p"] * 15, features=points)
    first = typiclust(scores, 1, np.random.default_rng(0)).choices[0]
    assert "typical of a kind with 15 cases" in first.reason


def test_features_of_another_sam_are_refused() -> None:
    with pytest.raises(ValueError, match="length 3, those of labelled cases 2"):
        most_typical(np.zeros((4, 3), np.float32), np.zeros((1, 2), np.float32), 1, np.random.default_rng(0))
