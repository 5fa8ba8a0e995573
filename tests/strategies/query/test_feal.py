"""FEAL: both uncertainties by other means, a constant pool without NaN, and neighbours apart as in a slow version."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies.query import feal as module
from strategies.query.feal import NEIGHBOURS, SIMILAR, aleatoric, epistemic, evidential_scores, feal, relaxed
from strategies.query.vectors import unit_length
from strategies.records import Scores


def alphas(seed: int, *shape: int) -> torch.Tensor:
    return 1 + 5 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_epistemic_is_the_entropy_of_the_dirichlet() -> None:
    alpha = alphas(0, 2, 4, 3, 5)
    expected = torch.distributions.Dirichlet(alpha.movedim(1, -1)).entropy()
    torch.testing.assert_close(epistemic(alpha), expected, atol=1e-4, rtol=1e-4)


def test_no_evidence_at_all_by_hand() -> None:
    """Dir(1, 1, 1) is flat over a triangle of area ½: entropy −ln 2; the mean entropy of what it draws is ψ(4) − ψ(2) = 5/6."""
    none = torch.ones(1, 3, 1, 1)
    assert epistemic(none).item() == pytest.approx(-math.log(2), abs=1e-6)
    assert aleatoric(none).item() == pytest.approx(1 / 2 + 1 / 3, abs=1e-6)


def test_aleatoric_is_the_mean_entropy_of_what_the_dirichlet_draws() -> None:
    alpha = torch.tensor([1.0, 3.0, 7.0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = torch.distributions.Dirichlet(alpha).sample((200_000,))
    expected = torch.special.entr(drawn).sum(1).mean().item()
    assert aleatoric(alpha[None, :, None, None]).item() == pytest.approx(expected, abs=3e-3)


def test_more_evidence_is_less_epistemic() -> None:
    grown = torch.stack([torch.tensor([1.0, 1.0, 1.0]) * factor for factor in (1, 2, 5, 20)])[:, :, None, None]
    falling = epistemic(grown).flatten()
    assert (falling[1:] < falling[:-1]).all()


def test_scores_by_hand() -> None:
    found = evidential_scores(np.array([-3.0, -1.0, -2.0]), np.array([0.2, 0.4, 0.1]), np.array([0.2, 0.2, 0.3]))
    assert found == pytest.approx([0.0, 0.6, 0.2])


@pytest.mark.parametrize("n", [0, 1, 4])
def test_a_constant_epistemic_uncertainty_leaves_it_to_the_other(n: int) -> None:
    ours, theirs = np.linspace(0.1, 0.4, n), np.linspace(0.3, 0.2, n)
    found = evidential_scores(np.full(n, -1.5), ours, theirs)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, ours + theirs)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_uncertainty_that_is_not_finite_is_not_ranked(which: int, bad: float) -> None:
    """Scaled with the others a NaN would say that all are the same, and so be hidden."""
    parts = [np.array([1.0, 2.0, 3.0]) for _ in range(3)]
    parts[which][1] = bad
    with pytest.raises(FloatingPointError, match=r"uncertainty of case 1 of the pool is .*: the model diverged"):
        evidential_scores(*parts)


def slow(features: NDArray[np.float32], order: list[int], count: int) -> list[int]:
    chosen: list[int] = []
    for row in order:
        if len(chosen) == count:
            break

        def cosine(other: int, row: int = row) -> float:
            a, b = features[row].astype(float), features[other].astype(float)
            return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

        others = sorted((other for other in range(len(features)) if other != row), key=cosine, reverse=True)
        near = [other for other in others[:NEIGHBOURS] if cosine(other) > SIMILAR]
        if len(near) < NEIGHBOURS or not set(near) & set(chosen):
            chosen.append(row)
    return chosen


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), kinds=st.integers(1, 6), count=st.integers(1, 20), seed=st.integers(0, 999))
def test_neighbours_apart_as_in_a_slow_version(n: int, kinds: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(kinds, 3))
    features = (centres[rng.integers(kinds, size=n)] + 0.1 * rng.normal(size=(n, 3))).astype(np.float32)
    order = rng.permutation(n)
    assert relaxed(unit_length(features), order, min(count, n)) == slow(features, order.tolist(), min(count, n))


def test_a_case_whose_likes_are_chosen_is_passed_over_but_one_with_few_likes_is_not() -> None:
    """Seven alike and five alike: of the five each has but four neighbours, so that all may be taken."""
    many, few = [1.0, 0.0], [0.0, 1.0]
    features = np.array([many] * 7 + [few] * 5, dtype=np.float32)
    values = np.arange(12, 0, -1.0)
    scores = Scores([f"{i:02d}" for i in range(12)], ["p"] * 12, values=values, features=features)
    assert feal(scores, 4, np.random.default_rng(0)).case_ids == ["00", "07", "08", "09"]


@pytest.mark.parametrize(("cosine", "chosen"), [(0.84, 7), (0.86, 1)])
def test_alike_is_a_cosine_above_085(cosine: float, chosen: int) -> None:
    """Seven cases, each as like any other: a direction that all share, and one of its own."""
    features = np.hstack([np.full((7, 1), cosine**0.5), (1 - cosine) ** 0.5 * np.eye(7)]).astype(np.float32)
    assert len(relaxed(features, np.arange(7), 7)) == chosen


def test_cases_are_alike_by_direction_however_long_their_features_are() -> None:
    """Six alike, of which one is taken, and another kind; features of deeper networks are hundreds long or hundredths."""
    features = np.array([[1.0, 0.1 * n] for n in range(6)] + [[0.0, 1.0]], dtype=np.float32)
    features *= 2.0 ** np.array([-9, 9, 0, -3, 4, -6, 7])[:, None]
    scores = Scores([f"{i}" for i in range(7)], ["p"] * 7, values=np.arange(7, 0, -1.0), features=features)
    assert feal(scores, 2, np.random.default_rng(0)).case_ids == ["0", "6"]


def test_a_shortfall_is_filled_by_score() -> None:
    features = np.ones((8, 2), dtype=np.float32)
    values = np.array([0.1, 0.9, 0.3, 0.8, 0.2, 0.7, 0.4, 0.6])
    choices = feal(
        Scores([f"{i}" for i in range(8)], ["p"] * 8, values=values, features=features), 4, np.random.default_rng(0)
    ).choices
    assert choices[0].case_id == "1"
    filled = [int(choice.case_id) for choice in choices if "fill up" in choice.reason]
    assert [values[row] for row in filled] == sorted((values[row] for row in filled), reverse=True)
    assert len({choice.case_id for choice in choices}) == 4


def test_no_more_candidates_are_looked_at_than_grow_with_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    neighbours = module._neighbours

    def watched(unit: NDArray[np.float32], rows: NDArray[np.intp]) -> list[NDArray[np.intp]]:
        looked.extend(rows.tolist())
        return neighbours(unit, rows)

    monkeypatch.setattr(module, "_neighbours", watched)
    features = np.ones((500, 2), dtype=np.float32)
    rows = relaxed(unit_length(features), np.arange(500), 5)
    assert len(looked) == 50
    assert rows[0] == 0


def test_what_is_like_none_chosen_is_found_however_far_down() -> None:
    """A hub, thirty that are like it and like each other less, and below them one case of another kind; then more of the same."""
    features = np.hstack([np.full((62, 1), 0.95), (1 - 0.95**2) ** 0.5 * np.eye(62)]).astype(np.float32)
    features[0] = np.eye(63)[0]
    features[31] = np.eye(63)[32]
    values = np.arange(len(features), 0, -1.0)
    scores = Scores([f"{i:02d}" for i in range(len(features))], ["p"] * len(features), values=values, features=features)
    first, second = feal(scores, 2, np.random.default_rng(0)).choices
    assert (first.case_id, second.case_id) == ("00", "31")
    assert second.reason.endswith("none alike chosen before it")


@pytest.mark.parametrize("block", [1, 3, 4, 100])
def test_likes_are_found_in_blocks_as_at_once(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    unit = unit_length(np.random.default_rng(0).normal(size=(14, 2)))
    rows, before = [8, 3, 0, 5, 1, 9, 2], np.array([12, 13])
    told = module._likeness(unit, rows, before)
    earlier = [12, 13]
    for row in rows:
        assert ("none alike" in told[row]) == all(unit[row] @ unit[other] <= SIMILAR for other in earlier)
        earlier.append(row)
    assert len(set(told.values())) == 2


def test_reasons_say_whether_one_alike_is_chosen_before() -> None:
    """Two copies have too few likes to be passed over, and the second is not said to be unlike the first."""
    features = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    choices = feal(
        Scores(list("abc"), ["p"] * 3, values=np.array([3.0, 2.0, 1.0]), features=features), 3, np.random.default_rng(0)
    ).choices
    assert ["none alike" in choice.reason for choice in choices] == [True, False, True]
