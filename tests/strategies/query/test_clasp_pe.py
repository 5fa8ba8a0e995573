"""ClaSP PE: classes have their share, and noise wanes."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.query.clasp_pe import beta_of, clasp_pe, class_entropies, class_shares
from strategies.query.parse import parse_query
from strategies.records import Scores


def test_entropy_counts_where_the_class_is_predicted() -> None:
    """Background and class 1 level: H = ln 2, half of it class 1's, nothing class 2's."""
    probabilities = torch.tensor([0.5, 0.5, 0.0]).reshape(1, 1, 3, 1, 1)
    assert class_entropies(probabilities).flatten().tolist() == pytest.approx([math.log(2) / 2, 0.0], abs=1e-6)


def test_noise_wanes_exponentially() -> None:
    assert [beta_of(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 10.0, 100.0])


@settings(deadline=None)
@given(count=st.integers(0, 50), classes=st.integers(1, 6), seed=st.integers(0, 99))
def test_two_thirds_are_shared_equally(count: int, classes: int, seed: int) -> None:
    shares = class_shares(count, classes, np.random.default_rng(seed))
    assert shares.sum() == round(0.66 * count)
    assert shares.max() - shares.min() <= 1


def test_each_class_gets_its_best_cases_and_entropy_the_rest() -> None:
    """With next to no noise: two for class 1, two for class 2, two by entropy, none of them twice."""
    n = 12
    by_class = np.full((n, 2), 0.01)
    by_class[[3, 4], 0] = 0.5, 0.4
    by_class[[3, 7], 1] = 0.9, 0.8  # case 3 is best for both, and counts for one
    by_class[8, 1] = 0.7
    by_class[5, 0] = 0.3
    values = np.full(n, 0.1)
    values[[0, 1, 4]] = 2.0, 1.0, 3.0
    scores = Scores([f"{i:02d}" for i in range(n)], ["p"] * n, values=values, by_class=by_class)
    choices = clasp_pe(scores, 6, np.random.default_rng(0), beta=1e6).choices
    assert [choice.case_id for choice in choices] == ["03", "04", "07", "08", "00", "01"]
    assert "class 1" in choices[0].reason
    assert "class 2" in choices[3].reason
    assert "anything" in choices[5].reason


def test_a_case_is_drawn_in_proportion_to_the_power_of_its_entropy() -> None:
    """The one case of a grant goes to the only class; ln s + Gumbel(0, 1/β) is highest with a chance in proportion to s^β."""
    values = np.array([0.5, 1.0, 2.0, 4.0])
    scores = Scores(list("abcd"), ["p"] * 4, values=values[::-1].copy(), by_class=values[:, None])
    rng, draws = np.random.default_rng(0), 4000
    counts = Counter(clasp_pe(scores, 1, rng, beta=2.0).case_ids[0] for _ in range(draws))
    for case, chance in zip("abcd", values**2 / (values**2).sum(), strict=True):
        assert counts[case] / draws == pytest.approx(chance, abs=4 * (0.25 / draws) ** 0.5)


def test_a_run_relies_on_chance_less_and_less() -> None:
    n = 30
    values = np.linspace(1.0, 2.0, n)
    scores = Scores([f"{i:02d}" for i in range(n)], ["p"] * n, values=values, by_class=values[:, None])

    def overlap(progress: float) -> float:
        """With the ten highest, over seeds."""
        choose = parse_query("clasp_pe", progress=progress).choose
        found = [set(choose(scores, 10, np.random.default_rng(seed)).case_ids) for seed in range(20)]
        return float(np.mean([len(one & set(scores.case_ids[-10:])) for one in found]))

    assert overlap(0.0) < overlap(0.5) < overlap(1.0)
    assert overlap(1.0) > 9
