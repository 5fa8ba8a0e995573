"""Wrappers: a cap that holds while it can, classes in turn, and composition as it is written."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies.query.balanced import class_balanced
from strategies.query.cap import capped
from strategies.query.choose import top
from strategies.query.feal import FEAL
from strategies.query.parse import parse_query
from strategies.query.strategy import Seen
from strategies.query.uncertainty import ENTROPY
from strategies.query.wrappers import class_balanced as balanced_wrapper
from strategies.query.wrappers import power, stochastic_batches
from strategies.records import Choice, Scores, Selection

highest = partial(top, why="score")


def of_patients(*patients: int, values: list[float] | None = None) -> Scores:
    n = len(patients)
    given_values = np.arange(n, 0, -1.0) if values is None else np.array(values)
    return Scores([f"{i:02d}" for i in range(n)], [f"p{p}" for p in patients], values=given_values)


def test_what_is_refused_makes_room_for_the_next_best() -> None:
    selection = capped(of_patients(1, 1, 1, 2, 2, 3), 4, np.random.default_rng(0), choose=highest, cap=2)
    assert selection.case_ids == ["00", "01", "03", "04"]


def test_a_grant_is_met_though_only_patients_at_the_cap_are_left() -> None:
    choices = capped(of_patients(1, 1, 1, 2), 4, np.random.default_rng(0), choose=highest, cap=1).choices
    assert [choice.case_id for choice in choices] == ["00", "03", "01", "02"]
    assert ["no other patient is left" in choice.reason for choice in choices] == [False, False, True, True]


def test_ranks_are_told_in_the_whole_pool_after_a_refusal_too() -> None:
    """The second choice is the best of two cases that may be chosen still, and the fourth of all."""
    choices = capped(of_patients(1, 1, 1, 2, 2), 2, np.random.default_rng(0), choose=highest, cap=1).choices
    assert [choice.reason for choice in choices] == ["score 5, rank 1 of 5", "score 2, rank 4 of 5"]


def test_what_is_chosen_after_a_refusal_keeps_its_distance_from_the_batch() -> None:
    """On a line: 10 is farthest from 0; 9 is of the same patient; then 5, and not 8, which is farther from 0 alone."""
    places = np.array([[10.0], [9.0], [5.0], [8.0]], dtype=np.float32)
    scores = Scores(list("abcd"), ["p", "p", "q", "r"], features=places, labelled_features=np.zeros((1, 1), dtype=np.float32))
    greedy_pair = capped(scores, 2, np.random.default_rng(0), choose=first_by_distance, cap=1)
    assert greedy_pair.case_ids == ["a", "c"]


def test_badge_goes_on_from_what_is_chosen() -> None:
    """A copy, but for a hair, of the case chosen first is far less likely than what points elsewhere: .01 to 181."""
    gradients = np.array([[10.0, 0.0], [0.0, 9.5], [9.9, 0.0], [0.0, 9.0]], dtype=np.float32)
    scores = Scores(["c0", "c1", "c2", "c3"], ["p", "p", "q", "q"], features=gradients)
    choose = parse_query("badge+cap", per_patient=1).choose
    chosen = [choose(scores, 2, np.random.default_rng(seed)) for seed in range(40)]
    assert {tuple(selection.case_ids) for selection in chosen} == {("c0", "c3")}
    first, second = chosen[0].choices
    assert (first.score, second.score) == pytest.approx((10.0, 181**0.5))
    assert "teaches something else" in second.reason


def test_feal_still_knows_whose_neighbours_may_not_be_chosen() -> None:
    """Five alike of one patient, who is then out, a copy of theirs, and one unlike: the copy still has five likes, and waits."""
    alike, other, unlike = np.eye(3, dtype=np.float32)
    features = np.stack([alike, other, alike, alike, alike, alike, alike, unlike])
    values = np.arange(8, 0, -1.0)
    scores = Scores([f"{i}" for i in range(8)], ["p"] * 6 + ["q", "r"], values=values, features=features)
    choices = parse_query("feal+cap", per_patient=1).choose(scores, 2, np.random.default_rng(0)).choices
    assert [choice.case_id for choice in choices] == ["0", "7"]
    assert all("none alike" in choice.reason for choice in choices)


def test_logo_takes_another_kind_than_those_of_the_batch() -> None:
    features = np.array([[0.0], [0.1], [5.0], [0.2], [5.1]], dtype=np.float32)
    scores = Scores(list("abcde"), list("pqpqr"), values=np.array([0.9, 0.8, 0.7, 0.6, 0.1]), features=features)
    chosen = parse_query("logo+cap", per_patient=1).choose(scores, 2, np.random.default_rng(0))
    assert chosen.case_ids == ["a", "e"]


@pytest.mark.parametrize("labelled", [None, np.empty((0, 1), np.float32)])
def test_coreset_keeps_its_distance_from_the_batch_before_anything_is_annotated(labelled: NDArray[np.float32] | None) -> None:
    """On a line with mean 5.7 it begins at 0; 10 is of the same patient; then 9, and not 1, which is farthest from the others."""
    places = np.array([[10.0], [0.0], [1.0], [9.0], [8.5]], dtype=np.float32)
    scores = Scores(list("abcde"), list("ppqqq"), features=places, labelled_features=labelled)
    chosen = parse_query("coreset+cap", per_patient=1).choose(scores, 2, np.random.default_rng(0))
    assert chosen.case_ids == ["b", "d"]


def test_classes_of_what_is_chosen_count_when_others_follow() -> None:
    """Class 2 comes first, and its best case brings 30 pixels of it; the next best for class 1 is refused, and not forgotten."""
    scores = Scores(
        list("abcd"),
        ["p", "p", "q", "r"],
        values=np.array([0.9, 0.8, 0.5, 0.4]),
        predicted_pixels=np.array([[0.0, 30.0], [20.0, 0.0], [0.0, 9.0], [40.0, 0.0]]),
        labelled_pixels=np.array([25.0, 10.0]),
    )
    chosen = parse_query("entropy+balanced+cap", per_patient=1).choose(scores, 2, np.random.default_rng(0))
    assert chosen.case_ids == ["a", "d"]


def first_by_distance(scores: Scores, count: int, rng: np.random.Generator) -> Selection:
    """A strategy that takes two by distance from labelled cases alone, as if each were the only one."""
    assert scores.features is not None
    assert scores.labelled_features is not None
    far = np.abs(scores.features - scores.labelled_features.T).min(axis=1)
    return Selection(tuple(Choice(scores.case_ids[row], float(far[row]), "far") for row in np.argsort(-far)[:count]))


@settings(max_examples=60, deadline=None)
@given(
    patients=st.lists(st.integers(0, 4), max_size=20), count=st.integers(0, 20), cap=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_no_patient_has_more_than_it_must(patients: list[int], count: int, cap: int, seed: int) -> None:
    scores = of_patients(*patients)
    choose = parse_query("random+cap", per_patient=cap).choose
    selection = choose(scores, count, np.random.default_rng(seed))
    assert len(selection.choices) == min(count, len(patients))
    patient_of = dict(zip(scores.case_ids, scores.patients, strict=True))
    asked = Counter(patient_of[case] for case in selection.case_ids)
    there = Counter(scores.patients)
    most = max(asked.values(), default=0)
    if most > cap:
        assert all(asked[patient] >= min(there[patient], most - 1) for patient in there), "none could have taken its place"


def shown(*rows: tuple[float, float], values: list[float], labelled: tuple[float, float]) -> Scores:
    return Scores(
        [f"{i}" for i in range(len(rows))],
        ["p"] * len(rows),
        values=np.array(values),
        predicted_pixels=np.array(rows),
        labelled_pixels=np.array(labelled),
    )


def test_the_class_with_least_pixels_comes_first() -> None:
    """Class 2 has 10 pixels annotated, class 1 has 25. The best with class 2 brings 30 of it; then class 1 is behind."""
    scores = shown((20, 0), (5, 30), (0, 9), (40, 0), values=[0.9, 0.5, 0.4, 0.1], labelled=(25, 10))
    choices = class_balanced(scores, 3, np.random.default_rng(0), why="score").choices
    assert [choice.case_id for choice in choices] == ["1", "0", "2"]
    assert "class 2" in choices[0].reason
    assert "class 1" in choices[1].reason
    assert "class 2" in choices[2].reason


def test_a_class_is_said_to_be_least_annotated_only_where_none_is_less_so() -> None:
    """Nothing of class 1 is annotated, and no case left shows it; then what is chosen brings both classes level."""
    (only,) = class_balanced(shown((0, 5), values=[0.2], labelled=(0, 1000)), 1, np.random.default_rng(0), why="score").choices
    assert only.reason.endswith("for class 2, of which least is annotated or chosen among those that a case left shows")
    (only,) = class_balanced(shown((0, 5), values=[0.2], labelled=(9, 9)), 1, np.random.default_rng(0), why="score").choices
    assert only.reason.endswith("for class 2, of which least is annotated or chosen"), "as much as of class 1"


def test_of_classes_with_as_much_annotated_chance_decides_which_comes_first() -> None:
    scores = shown((5, 0), (0, 5), values=[0.2, 0.1], labelled=(9, 9))
    first = [class_balanced(scores, 1, np.random.default_rng(seed), why="score").case_ids[0] for seed in range(20)]
    assert 3 < first.count("0") < 17


def test_where_nothing_is_predicted_the_best_scores_follow() -> None:
    scores = shown((0, 0), (0, 0), (3, 0), values=[0.2, 0.9, 0.1], labelled=(0, 0))
    choices = class_balanced(scores, 3, np.random.default_rng(0), why="score").choices
    assert [choice.case_id for choice in choices] == ["2", "1", "0"]
    assert "no class is predicted" in choices[1].reason


def seen(seed: int) -> Seen:
    logits = torch.randn(1, 3, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return Seen(torch.ones(3, 4, 4, dtype=torch.bool), {"global": logits}, {"global": torch.zeros(3, 2)}, {}, (1.0, 1.0, 1.0))


def test_a_balanced_strategy_also_looks_at_classes() -> None:
    wrapped = balanced_wrapper(ENTROPY)
    assert wrapped.look is not None
    assert ENTROPY.look is not None
    columns = wrapped.look(seen(0))
    assert columns["predicted_pixels"].shape == (3, 2)
    classes = seen(0).logits["global"][0].argmax(1)
    assert columns["predicted_pixels"][:, 0].tolist() == (classes == 1).sum((1, 2)).tolist()
    finished = wrapped.finish(columns)
    assert set(finished) == {"values", "predicted_pixels"}
    np.testing.assert_array_equal(finished["values"], ENTROPY.look(seen(0))["values"])


def test_composition_is_as_it_is_written() -> None:
    wrapped, parsed = stochastic_batches(FEAL), parse_query("feal+stochastic")
    assert wrapped.name == parsed.name == "feal+stochastic"
    assert parsed.look is FEAL.look
    assert parsed.evidential
    scores = of_patients(*range(12), values=np.random.default_rng(0).random(12).tolist())
    draws = [strategy.choose(scores, 4, np.random.default_rng(5)) for strategy in (wrapped, parsed)]
    assert draws[0] == draws[1]
    assert power(ENTROPY, beta=2.0).name == "entropy+power"
    assert parse_query("entropy+power+cap").name == "entropy+power+cap"


def test_a_cap_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="per_patient is 0"):
        parse_query("entropy+cap", per_patient=0)
