"""ProbCover: balls counted by hand and by a slow greedy, and a radius at which kinds stay apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies.query import probcover as module
from strategies.query.probcover import cover, probcover, pure_radius
from strategies.query.vectors import unit_length
from strategies.records import Scores


def on_circle(*degrees: float) -> NDArray[np.float32]:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


POINTS = on_circle(0, 1, 2, 3, 4, 90, 91, 92, 180)
"""Five alike, three alike, and one alone; a radius of 0.08 reaches 4.6 degrees."""


def test_the_largest_ball_comes_first_and_what_it_covers_counts_no_more() -> None:
    rows, gains, others = cover(POINTS, None, 4, radius=0.08, rng=np.random.default_rng(0))
    assert gains.tolist() == [5, 3, 1, 0]
    assert others.tolist() == [4, 2, 0, 0]
    assert rows[0] in range(5)
    assert rows[1] in (5, 6, 7)
    assert rows[2] == 8


def test_a_case_on_the_edge_that_rounding_moves_leaves_no_gain_below_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where balls are counted again, for what they cover no more, each reaches further than it did at first."""
    balls, calls = module._balls, []

    def rounded(points: NDArray[np.float32], centres: NDArray[np.float32], radius: float) -> Iterator[tuple[int, Any]]:
        calls.append(radius)
        return balls(points, centres, radius if len(calls) == 1 else 2 * radius)

    monkeypatch.setattr(module, "_balls", rounded)
    _, gains, _ = cover(on_circle(*range(0, 60, 3)), None, 20, radius=0.08, rng=np.random.default_rng(0))
    assert (gains >= 0).all()


def test_what_is_annotated_is_covered() -> None:
    rows, gains, _ = cover(POINTS, on_circle(2), 2, radius=0.08, rng=np.random.default_rng(0))
    assert gains.tolist() == [3, 1]
    assert rows[1] == 8


def test_cases_that_may_not_be_chosen_are_there_to_be_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The case at 91.5 degrees is like three that a cap has closed, those at 180 like each other alone."""
    monkeypatch.setattr(module, "pure_radius", lambda *_, **__: 0.08)
    scores = Scores(
        list("abc"),
        ["q", "r", "r"],
        features=on_circle(91.5, 180, 181),
        labelled_features=on_circle(2),
        closed_features=on_circle(0, 1, 3, 90, 91, 92),
    )
    (chosen,) = probcover(scores, 1, np.random.default_rng(0)).choices
    assert (chosen.case_id, chosen.reason) == ("a", "like 3 other cases that nothing annotated or chosen is like")


def test_reasons_say_how_many_are_like_it_and_when_all_are_covered() -> None:
    scores = Scores([f"{i}" for i in range(9)], ["p"] * 9, features=POINTS)
    choices = probcover(scores, 9, np.random.default_rng(0)).choices
    assert len({choice.case_id for choice in choices}) == 9
    assert "other cases that nothing annotated or chosen is like" in choices[0].reason
    assert "at random" in choices[-1].reason


def test_a_case_that_is_covered_and_chosen_for_others_is_none_of_them() -> None:
    """An annotated case and two bare ones around one in their middle, which alone reaches all: it is like both."""
    points = unit_length(np.array([[1, 0, 0], [1, 0.07, 0], [1, -0.07, 0]]))
    labelled = unit_length(np.array([[1, 0, 0.07]]))
    rows, gains, others = cover(points, labelled, 1, radius=0.08, rng=np.random.default_rng(0))
    assert (rows.tolist(), gains.tolist(), others.tolist()) == ([0], [2], [2])


def test_cases_are_alike_by_direction_however_long_their_features_are() -> None:
    """Of what waits and of what is annotated."""

    def chosen(scale: float) -> list[str]:
        lengths = scale ** np.arange(len(POINTS))[:, None]
        scores = Scores(
            [f"{i}" for i in range(9)],
            ["p"] * 9,
            features=POINTS * lengths.astype(np.float32),
            labelled_features=scale * POINTS[:2],
        )
        return [f"{choice.case_id}: {choice.reason}" for choice in probcover(scores, 4, np.random.default_rng(0)).choices]

    assert chosen(2.0) == chosen(1.0) == chosen(0.5)


def slow(points: NDArray[np.float32], labelled: NDArray[np.float32], count: int, radius: float) -> list[int]:
    """Gains of greedy covering; which of equals is taken does not matter for the first one only, so points differ."""
    wide = np.linalg.norm(points[:, None].astype(float) - points[None].astype(float), axis=2) <= radius
    bare = np.ones(len(points), dtype=bool)
    for known in labelled:
        bare &= np.linalg.norm(points.astype(float) - known.astype(float), axis=1) > radius
    left, gains = set(range(len(points))), []
    for _ in range(count):
        gains.append(max(int((wide[row] & bare).sum()) for row in left))
        candidates = [row for row in left if (wide[row] & bare).sum() == gains[-1]]
        if len(candidates) > 1 and gains[-1] > 0 and len({tuple(wide[row] & bare) for row in candidates}) > 1:
            return gains  # from here on the order of equals matters
        left.remove(candidates[0])
        bare &= ~wide[candidates[0]]
    return gains


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), known=st.integers(0, 4), radius=st.floats(0.05, 1.0), seed=st.integers(0, 999))
def test_greedy_covering_as_in_a_slow_version(n: int, known: int, radius: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = unit_length(rng.normal(size=(n, 3)))
    labelled = unit_length(rng.normal(size=(known, 3)))
    rows, gains, _ = cover(points, labelled, n, radius=radius, rng=rng)
    assert sorted(rows.tolist()) == list(range(n))
    assert (gains >= 0).all()
    assert (np.diff(gains) <= 0).all(), "a greedy gain never rises"
    expected = slow(points, labelled, n, radius)
    on_edge = np.abs(np.linalg.norm(points[:, None] - points[None], axis=2) - radius) < 1e-3
    on_edge |= bool(known) and bool((np.abs(np.linalg.norm(points[:, None] - labelled[None], axis=2) - radius) < 1e-3).any())
    if not on_edge.any():
        assert gains[: len(expected)].tolist() == expected


def test_the_radius_keeps_kinds_apart() -> None:
    """Two kinds, 90 degrees or √2 apart, each 4 degrees wide: a pure ball reaches from one to almost the other."""
    points = on_circle(*range(5), *range(90, 95))
    radius = pure_radius(points, kinds=2, rng=np.random.default_rng(0))
    assert 2 * np.sin(np.radians(84) / 2) < radius < 2 * np.sin(np.radians(90) / 2) + 1e-3


def test_nineteen_of_twenty_balls_are_pure() -> None:
    """Two kinds, 40 degrees wide and 20 apart: how far it is to the other one depends much on where a case lies."""
    degrees = np.concatenate([np.linspace(0, 40, 100), np.linspace(60, 100, 100)])
    first = degrees < 50
    radius = pure_radius(on_circle(*degrees), kinds=2, rng=np.random.default_rng(0))
    apart = 2 * np.sin(np.radians(np.abs(degrees[:, None] - degrees[None])) / 2)
    pure = [not (first[apart[row] < radius] != first[row]).any() for row in range(200)]
    assert np.mean(pure) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("kinds", [1, 5])
def test_without_kinds_to_tell_apart_balls_hold_copies_alone(kinds: int) -> None:
    assert pure_radius(on_circle(10, 10, 10), kinds=kinds, rng=np.random.default_rng(0)) == 0.0
