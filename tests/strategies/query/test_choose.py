"""What every way of choosing promises, and what is particular to each."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies.query import query_names
from strategies.query.choose import at_random, at_random_foreground, power, stochastic_batches, top
from strategies.query.parse import parse_query
from strategies.query.strategy import Choose
from strategies.records import Scores, Selection


def make_scores(
    values: list[float] | NDArray[np.float64],
    *,
    foreground: NDArray[np.bool_] | None = None,
    features: NDArray[np.float32] | None = None,
    **others: NDArray[Any],
) -> Scores:
    n = len(values)
    return Scores(
        case_ids=[f"p{i // 3:03d}.img.{i:04d}" for i in range(n)],
        patients=[f"p{i // 3:03d}" for i in range(n)],
        values=np.asarray(values, dtype=np.float64),
        features=features,
        foreground=foreground,
        **others,
    )


def full_scores(n: int, seed: int) -> Scores:
    """Scores with everything any strategy may need; many values are tied."""
    rng = np.random.default_rng(seed)
    return make_scores(
        np.round(rng.random(n), 1),
        foreground=rng.random(n) < 0.3,
        features=rng.normal(size=(n, 4)).astype(np.float32),
        by_class=np.round(rng.random((n, 2)), 1),
        predicted_pixels=rng.integers(0, 3, size=(n, 2)).astype(np.float64),
        labelled_features=rng.normal(size=(n % 3, 4)).astype(np.float32),
        labelled_pixels=np.array([3.0, 1.0]),
    )


def permuted(scores: Scores, order: list[int]) -> Scores:
    """The same pool read in another order, then sorted by id, as whoever builds Scores has to."""
    by_id = sorted(order, key=lambda i: scores.case_ids[i])
    arrays = {name: array[by_id] if name in Scores.OF_CASES else array for name, array in scores.arrays().items()}
    return Scores([scores.case_ids[i] for i in by_id], [scores.patients[i] for i in by_id], **arrays)


def pick(choose: Choose, scores: Scores, count: int, seed: int = 0) -> Selection:
    return choose(scores, count, np.random.default_rng(seed))


IN_TURNS = ("badge", "typiclust", "clasp_pe", "feal", "logo")
"""Their choices follow each other by class, kind or chance, and not by one score."""


@pytest.mark.parametrize("name", query_names())
@settings(max_examples=10, deadline=None)
@given(data=st.data(), n=st.integers(0, 25), count=st.integers(0, 30), seed=st.integers(0, 1000))
def test_promises_of_every_strategy(name: str, data: st.DataObject, n: int, count: int, seed: int) -> None:
    scores = full_scores(n, seed)
    choose = parse_query(name).choose
    selection = pick(choose, scores, count, seed)

    assert len(selection.choices) == min(count, n)  # all there is when the pool is small, never an error
    assert len(set(selection.case_ids)) == len(selection.case_ids)
    assert set(selection.case_ids) <= set(scores.case_ids)
    assert all(math.isfinite(choice.score) for choice in selection.choices)
    ranked = [choice.score for choice in selection.choices]
    if name == "coreset" and not n % 3:
        ranked = ranked[1:]  # without labelled cases the first is measured from the mean
    if name.split("+")[0] not in IN_TURNS and not {"balanced", "cap"} & set(name.split("+")):
        assert ranked == sorted(ranked, reverse=True)
    for choice in selection.choices:
        assert choice.reason
        assert "\n" not in choice.reason
        assert choice.case_id not in choice.reason

    order = data.draw(st.permutations(range(n)))
    assert pick(choose, permuted(scores, order), count, seed) == selection


@pytest.mark.parametrize("name", query_names())
def test_inputs_stay_as_they_are(name: str) -> None:
    scores = full_scores(20, 1)
    pick(parse_query(name).choose, scores, 7)
    for name_, array in full_scores(20, 1).arrays().items():
        np.testing.assert_array_equal(getattr(scores, name_), array)


@pytest.mark.parametrize("name", query_names())
def test_a_negative_grant_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="-1 cases"):
        pick(parse_query(name).choose, full_scores(5, 0), -1)


@pytest.mark.parametrize("name", query_names())
def test_constant_scores_leave_it_to_chance(name: str) -> None:
    """A constant score must not become NaN, nor a choice of the first or the last cases: every case comes up."""
    n, count = 12, 3
    scores = make_scores(
        np.full(n, 0.25),
        foreground=np.zeros(n, dtype=bool),
        features=np.zeros((n, 2), dtype=np.float32),
        by_class=np.full((n, 2), 0.1),
        predicted_pixels=np.ones((n, 2)),
    )
    choose = parse_query(name).choose
    counts = Counter(case for seed in range(200) for case in pick(choose, scores, count, seed).case_ids)
    assert len(counts) == n
    assert max(counts.values()) < 3 * min(counts.values())  # 50 each is expected
    if name != "coreset":
        assert all(math.isfinite(c.score) for c in pick(choose, scores, count).choices)


# ----------------------------------------------------------------------------------------------------------------- top


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=30), count=st.integers(1, 30), seed=st.integers(0, 99))
def test_top_takes_the_highest(values: list[float], count: int, seed: int) -> None:
    selection = top(make_scores(values), count, np.random.default_rng(seed), why="x")
    assert [c.score for c in selection.choices] == sorted(values, reverse=True)[:count]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 30), count=st.integers(1, 10), seed=st.integers(0, 99))
def test_top_follows_the_order_of_scores_alone(n: int, count: int, seed: int) -> None:
    """Any rising function of the score makes the same choice."""
    scores = full_scores(n, seed)
    assert scores.values is not None
    stretched = make_scores(np.exp(3 * scores.values) - 7)
    assert pick(parse_query("entropy").choose, scores, count).case_ids == (
        pick(parse_query("entropy").choose, stretched, count).case_ids
    )


def test_reasons_tell_value_and_rank() -> None:
    values = np.linspace(0.0, 0.3, 80)
    values[10] = 0.314
    first, second = pick(parse_query("entropy").choose, make_scores(values), 2).choices
    assert first.reason == "the model is unsure here: mean entropy 0.314, rank 1 of 80"
    assert second.reason == "the model is unsure here: mean entropy 0.3, rank 2 of 80"


def test_equal_scores_share_a_rank() -> None:
    reasons = [c.reason for c in pick(parse_query("bald").choose, make_scores([1.0, 2.0, 2.0]), 3).choices]
    assert [reason.split(", ")[-1] for reason in reasons] == ["rank 1 of 3", "rank 1 of 3", "rank 3 of 3"]


# --------------------------------------------------------------------------------------------------------------- power


def test_power_refuses_negative_scores() -> None:
    with pytest.raises(ValueError, match=r"p000\.img\.0001 is -0\.5"):
        power(make_scores([0.1, -0.5]), 1, np.random.default_rng(0), why="x", beta=1.0)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf])
def test_power_refuses_a_beta_that_divides_by_nothing(beta: float) -> None:
    with pytest.raises(ValueError, match="power_beta"):
        power(make_scores([0.1]), 1, np.random.default_rng(0), why="x", beta=beta)
    with pytest.raises(ValueError, match="power_beta"):
        parse_query("bald+power", power_beta=beta)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_power_draws_in_proportion_to_the_power_of_the_score(beta: float) -> None:
    """The Gumbel-max identity: the best of ln s + Gumbel(0, 1/β) is case i with probability s_i^β / Σ s^β."""
    values = np.array([0.5, 1.0, 2.0, 4.0])
    rng = np.random.default_rng(0)
    draws = 4000
    scores = make_scores(values)
    counts = Counter(power(scores, 1, rng, why="x", beta=beta).case_ids[0] for _ in range(draws))
    expected = values**beta / (values**beta).sum()
    observed = np.array([counts[case] for case in scores.case_ids]) / draws
    np.testing.assert_allclose(observed, expected, atol=4 * np.sqrt(0.25 / draws))  # four standard errors


def test_power_with_a_large_beta_is_the_top() -> None:
    scores = make_scores([0.1, 0.4, 0.2, 0.3])
    chosen = power(scores, 3, np.random.default_rng(0), why="x", beta=1e9)
    assert chosen.case_ids == top(scores, 3, np.random.default_rng(0), why="x").case_ids


def test_power_formula_on_one_draw() -> None:
    """Scores below 1e-12 count as that, so that a score of 0 can still be drawn and ranks last, not NaN."""
    values = np.array([0.0, 0.5, 1.0])
    scores = make_scores(values)
    selection = power(scores, 3, np.random.default_rng(7), why="x", beta=2.0)
    noise = np.random.default_rng(7).gumbel(0.0, 0.5, 3)
    expected = {case: math.log(max(v, 1e-12)) + g for case, v, g in zip(scores.case_ids, values, noise, strict=True)}
    assert {c.case_id: c.score for c in selection.choices} == pytest.approx(expected)


# -------------------------------------------------------------------------------------------------- stochastic batches


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), count=st.integers(1, 12), seed=st.integers(0, 999))
def test_stochastic_batches_equal_a_slow_version(n: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values: list[float] = rng.random(n).tolist()
    scores = make_scores(values)
    chosen = stochastic_batches(scores, count, np.random.default_rng(seed), why="x")

    shuffled = np.random.default_rng(seed).permutation(n).tolist()
    size = min(count, n)
    groups = [shuffled[i : i + size] for i in range(0, n, size)]
    whole = [group for group in groups if len(group) == size]
    best = max(whole, key=lambda group: sum(values[i] for i in group) / size)
    expected = sorted(best, key=lambda i: -values[i])
    assert chosen.case_ids == [scores.case_ids[i] for i in expected]


def test_stochastic_batches_of_one_are_the_top() -> None:
    scores = make_scores([0.1, 0.4, 0.2])
    assert stochastic_batches(scores, 1, np.random.default_rng(0), why="x").case_ids == [scores.case_ids[1]]


# ------------------------------------------------------------------------------------------------------------- randoms


def test_random_gives_every_case_the_same_chance() -> None:
    scores = make_scores([0.0] * 10)
    counts = Counter(c for seed in range(1000) for c in pick(parse_query("random").choose, scores, 3, seed).case_ids)
    assert len(counts) == 10
    assert all(abs(count - 300) < 75 for count in counts.values())  # five standard deviations


@pytest.mark.parametrize("count", [2, 3, 5])
def test_named_cases_come_first_each_with_the_same_chance(count: int) -> None:
    scores = make_scores([0.0] * 8)
    named = set(scores.case_ids[2:5])
    counts: Counter[str] = Counter()
    for seed in range(600):
        selection = pick(partial(at_random, first=named), scores, count, seed)
        told = [choice.case_id in named for choice in selection.choices]
        assert told == [True] * min(count, 3) + [False] * (count - min(count, 3))
        assert ["named by the site" in choice.reason for choice in selection.choices] == told
        counts.update(selection.case_ids)
    assert all(abs(counts[case] - 600 * min(count, 3) / 3) < 75 for case in named)


@pytest.mark.parametrize(("count", "first_third"), [(1, 1), (2, 1), (3, 2), (4, 3), (6, 4), (7, 5), (9, 6), (12, 8)])
def test_random_fg_takes_two_thirds_where_there_is_foreground(count: int, first_third: int) -> None:
    foreground = np.arange(400) % 4 == 0
    scores = make_scores(np.zeros(400), foreground=foreground)
    seen = set(np.array(scores.case_ids)[foreground])
    extra = []
    for seed in range(60):
        selection = pick(at_random_foreground, scores, count, seed)
        told = [c.case_id for c in selection.choices if "with a structure" in c.reason]
        assert len(told) == first_third
        assert set(told) <= seen
        extra += [case in seen for case in selection.case_ids[first_third:]]
    if extra:  # the last third is uniform over the whole pool, of which a quarter is foreground
        assert abs(np.mean(extra) - 0.25) < 5 * math.sqrt(0.19 / len(extra))


def test_random_fg_fills_a_shortfall_at_random() -> None:
    """Two foreground cases where six are wanted: both are taken, the rest is drawn from the others at any place."""
    foreground = np.zeros(20, dtype=bool)
    foreground[[4, 11]] = True
    scores = make_scores(np.zeros(20), foreground=foreground)
    counts: Counter[str] = Counter()
    for seed in range(400):
        selection = pick(at_random_foreground, scores, 9, seed)
        assert len(selection.case_ids) == 9
        counts.update(selection.case_ids)
    for case, wanted in zip(scores.case_ids, foreground, strict=True):
        expected = 400 if wanted else 400 * 7 / 18
        assert abs(counts[case] - expected) <= (0 if wanted else 5 * math.sqrt(400 * 7 / 18 * 11 / 18))


# ----------------------------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize("name", [n for n in query_names() if n.split("+")[0] != "random"])
def test_what_a_strategy_needs_must_be_there(name: str) -> None:
    bare = Scores(case_ids=["a", "b"], patients=["p", "q"])
    with pytest.raises(ValueError, match=r"needs|no scores were computed"):
        pick(parse_query(name).choose, bare, 1)
