"""Units: every case in one, none lost, scores the mean of their cases'."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies.query.parse import parse_query
from strategies.query.units import grouped, means_of_units, spread_out
from strategies.records import Choice, Scores, Selection

CASES = ["a", "b", "c", "d", "e"]
UNITS = {"a": "v2", "b": "v1", "c": "v2", "d": "v1", "e": "v2"}


def test_a_unit_has_the_mean_of_its_cases_and_foreground_where_any_has() -> None:
    scores = Scores(
        case_ids=CASES,
        patients=["p2", "p1", "p2", "p1", "p2"],
        values=np.array([1.0, 2.0, 3.0, 4.0, 8.0]),
        features=np.array([[1, 0], [0, 2], [1, 3], [4, 0], [1, 0]], dtype=np.float32),
        labelled_features=np.ones((1, 2), dtype=np.float32),
        foreground=np.array([False, False, False, False, True]),
        by_class=np.array([[1.0], [2.0], [3.0], [4.0], [8.0]]),
        predicted_pixels=np.array([[5.0], [1.0], [0.0], [2.0], [4.0]]),
        labelled_pixels=np.array([7.0]),
    )
    units = grouped(scores, UNITS)
    assert list(units.case_ids) == ["v1", "v2"]
    assert list(units.patients) == ["p1", "p2"]
    assert units.values is not None
    assert units.features is not None
    assert units.foreground is not None
    assert units.values.tolist() == [3.0, 4.0]
    np.testing.assert_allclose(units.features, [[2, 1], [1, 1]], atol=1e-6)
    assert units.features.dtype == np.float32
    assert units.foreground.tolist() == [False, True]
    assert units.by_class is not None
    assert units.predicted_pixels is not None
    assert units.by_class.tolist() == [[3.0], [4.0]]
    assert units.predicted_pixels.tolist() == [[3.0], [9.0]], "a volume shows all that its slices do"
    assert units.labelled_features is scores.labelled_features
    assert units.labelled_pixels is scores.labelled_pixels


def test_what_is_not_known_of_cases_is_not_known_of_units() -> None:
    units = grouped(Scores(case_ids=CASES, patients=["p"] * 5), UNITS)
    assert not units.arrays()


def test_chosen_units_come_back_as_their_cases_best_first() -> None:
    chosen = Selection((Choice("v2", 4.0, "unsure"), Choice("v1", 3.0, "less so")))
    spread = spread_out(chosen, {"v1": ["b", "d"], "v2": ["a", "c", "e"]})
    assert [c.case_id for c in spread.choices] == ["a", "c", "e", "b", "d"]
    assert [c.score for c in spread.choices] == [4.0, 4.0, 4.0, 3.0, 3.0]
    assert spread.choices[0].reason == "unsure; with all 3 slices"


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 5)), min_size=1, max_size=30))
def test_a_unit_of_one_case_each_changes_nothing_and_means_are_those_of_a_loop(
    drawn: list[tuple[int, float]],
) -> None:
    ids = [f"c{n:02d}" for n in range(len(drawn))]
    scores = Scores(case_ids=ids, patients=[f"p{u}" for u, _ in drawn], values=np.array([v for _, v in drawn]))
    alone = grouped(scores, {case: case for case in ids})
    assert list(alone.case_ids) == ids
    assert alone.values is not None
    assert alone.values.tolist() == [value for _, value in drawn]
    together = grouped(scores, {case: f"u{u}" for case, (u, _) in zip(ids, drawn, strict=True)})
    assert together.values is not None
    for unit, value in zip(together.case_ids, together.values, strict=True):
        own = [v for u, v in drawn if f"u{u}" == unit]
        assert abs(value - sum(own) / len(own)) < 1e-9


def volumes(centre: float, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(count · 8, 8) slices of volumes of a kind: each lies 4 from the volume's middle in a direction of its own."""
    middles = np.eye(8)[0] * centre + 0.05 * rng.normal(size=(count, 1, 8)) + 3
    slices = middles + 4 * np.concatenate([np.eye(8)[:4], -np.eye(8)[:4]])
    return np.asarray(slices.reshape(-1, 8), dtype=np.float32)


@pytest.mark.parametrize("name", ["coreset", "typiclust"])
@pytest.mark.parametrize("seed", range(3))
def test_volumes_of_a_kind_that_is_annotated_are_not_taken_for_new_ones(name: str, seed: int) -> None:
    """One of nine alike is annotated, and two of another kind wait: one of these is next, near as the annotated slices are."""
    rng = np.random.default_rng(seed)
    pool = np.concatenate([volumes(0, 8, rng), volumes(3, 2, rng)])
    labelled = volumes(0, 1, rng)
    ids = [f"v{n // 8}.{n % 8}" for n in range(len(pool))]
    known = means_of_units(labelled, [f"l{n // 8}" for n in range(len(labelled))])
    units = grouped(
        Scores(ids, [case[:2] for case in ids], features=pool, labelled_features=known), {case: case[:2] for case in ids}
    )
    first = parse_query(name).choose(units, 1, np.random.default_rng(seed)).case_ids
    assert first[0] in ("v8", "v9")


def test_means_of_units_are_of_their_own_cases_in_the_order_of_ids() -> None:
    features = np.array([[1, 0], [0, 2], [3, 4]], dtype=np.float32)
    found = means_of_units(features, ["v2", "v1", "v2"])
    assert found.tolist() == [[0, 2], [2, 2]]
    assert found.dtype == np.float32
