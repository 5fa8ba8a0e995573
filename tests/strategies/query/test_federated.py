"""LoGo, KAFAL and FairFAL's switch: each formula by hand, absent classes and empty pools without NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.query.fairfal import balance, divergence, global_model_scores
from strategies.query.kafal import EPSILON, specialised_disagreement
from strategies.query.logo import logo, unsure_features
from strategies.records import Scores

# ---------------------------------------------------------------------------------------------------------------- LoGo


def test_features_weigh_as_much_as_the_model_is_unsure() -> None:
    probabilities = torch.tensor([[[[0.5, 1.0, 0.6]], [[0.5, 0.0, 0.4]]]])
    inside = torch.tensor([[[True, True, False]]])
    found = unsure_features(probabilities, torch.tensor([[2.0, 4.0]]), inside)
    assert found.tolist() == [[0.5, 1.0]]  # doubts of 0.5 and 0 inside: 0.25


def test_each_cluster_gives_its_most_uncertain_case() -> None:
    features = np.array([[0, 0], [0.1, 0], [5, 5], [5.1, 5], [9, 0]], dtype=np.float32)
    values = np.array([0.9, 0.8, 0.2, 0.3, 0.1])
    scores = Scores(list("abcde"), ["p"] * 5, values=values, features=features)
    selection = logo(scores, 3, np.random.default_rng(0))
    assert selection.case_ids == ["a", "d", "e"]  # not b, though it is second by score
    assert "2 cases that the site's own model finds alike" in selection.choices[0].reason


def test_copies_make_no_clusters_and_the_shortfall_is_filled_by_score() -> None:
    scores = Scores(
        list("abcd"), ["p"] * 4, values=np.array([0.1, 0.4, 0.2, 0.3]), features=np.array([[0.0]] * 3 + [[1.0]], dtype=np.float32)
    )
    selection = logo(scores, 4, np.random.default_rng(0))
    assert selection.case_ids == ["b", "d", "c", "a"]
    assert ["fill up" in choice.reason for choice in selection.choices] == [False, False, True, True]


# --------------------------------------------------------------------------------------------------------------- KAFAL


def test_disagreement_by_hand() -> None:
    """Counts of 3 and 0 shift by ln 4 and ln 1: level logits become 0.8 and 0.2; the client's, ln 4 ahead, 0.5 and 0.5."""
    server = torch.zeros(1, 2, 1, 1)
    client = torch.tensor([0.0, math.log(4)]).reshape(1, 2, 1, 1)
    assert EPSILON == 1
    forward = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    backward = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    found = specialised_disagreement(server, client, (3.0, 0.0))
    assert found.item() == pytest.approx((forward + backward) / 2, abs=1e-6)


@settings(deadline=None)
@given(seed=st.integers(0, 999), counts=st.lists(st.sampled_from([0.0, 5.0, 1e6]), min_size=3, max_size=3))
def test_disagreement_is_finite_symmetric_and_nothing_among_equals(seed: int, counts: list[float]) -> None:
    one, other = 10 * torch.randn(2, 2, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    found = specialised_disagreement(one, other, counts)
    assert found.isfinite().all()
    assert (found >= 0).all()
    torch.testing.assert_close(found, specialised_disagreement(other, one, counts))
    assert specialised_disagreement(one, one, counts).abs().max() == 0


def test_a_site_is_asked_about_the_classes_that_it_knows() -> None:
    """The same contradiction, between background and class 1 or class 2: it counts where the site has labels of that class."""
    server = torch.tensor([[2.0, 0.0, -9.0], [2.0, -9.0, 0.0]])[:, :, None, None]
    client = torch.tensor([[0.0, 2.0, -9.0], [0.0, -9.0, 2.0]])[:, :, None, None]
    of_first, of_second = specialised_disagreement(server, client, (100.0, 100.0, 0.0)).flatten().tolist()
    assert of_first > 4 * of_second


# ------------------------------------------------------------------------------------------------------------- FairFAL


def test_balance_by_hand() -> None:
    assert balance((0.6, 0.3, 0.1)) == pytest.approx(1 / 6)
    assert balance((5.0, 5.0)) == 1.0
    assert balance((5.0, 0.0)) == 0.0
    assert balance((0.0, 0.0)) == 0.0
    assert balance(()) == 0.0


def test_divergence_by_hand_and_a_class_that_nobody_finds() -> None:
    assert divergence((0.6, 0.2, 0.0), (0.2, 0.2, 0.0)) == pytest.approx(0.5 / 3)
    assert divergence((0.0,), (0.0,)) == 0.0
    assert divergence((1.0, 0.0), (0.0, 1.0)) == 1.0


@pytest.mark.parametrize(("d", "gamma", "global_"), [(0.0, 0.0, True), (0.2, 0.2, True), (0.25, 0.25, False), (0.0, 1.0, False)])
def test_the_global_model_scores_above_three_quarters(d: float, gamma: float, global_: bool) -> None:
    assert global_model_scores(divergence=d, mean_balance=gamma) is global_
