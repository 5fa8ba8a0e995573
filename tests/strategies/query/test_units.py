"""Units: every case in one, none lost, scores the mean of their cases'."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from strategies.query.units import grouped, spread_out
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
