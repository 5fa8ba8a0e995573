"""BADGE: gradients are those that autograd finds, and sampling follows squared distances."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from strategies.query.badge import badge, d2_sampling, gradient_embedding
from strategies.records import Scores


@pytest.mark.parametrize("kernel_px", [1, 3])
def test_gradients_are_those_of_the_loss_against_the_models_own_answer(kernel_px: int) -> None:
    generator = torch.Generator().manual_seed(0)
    taken = torch.randn(3, 2, 6, 5, generator=generator)
    inside = torch.ones(3, 6, 5, dtype=torch.bool)
    inside[1, :2] = False
    inside[2, :, 3:] = False
    with torch.random.fork_rng():
        torch.manual_seed(1)
        conv = torch.nn.Conv2d(2, 4, kernel_px, padding=kernel_px // 2)
    beside = torch.randn(3, 4, 6, 5, generator=generator)  # a residual path adds what does not depend on the weights
    logits = conv(taken) + beside
    found = gradient_embedding(logits.detach(), taken, inside, kernel_px=kernel_px)
    for case in range(3):
        pixels = F.cross_entropy(logits, logits.argmax(1), reduction="none")[case][inside[case]]
        (expected,) = torch.autograd.grad(pixels.mean(), conv.weight, retain_graph=True)
        torch.testing.assert_close(found[case], expected.flatten(), atol=1e-6, rtol=1e-4)


def test_a_sure_model_has_nothing_to_learn() -> None:
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 1] = 100.0
    taken = torch.ones(1, 2, 4, 4)
    assert gradient_embedding(logits, taken, torch.ones(1, 4, 4, dtype=torch.bool), kernel_px=3).abs().max() < 1e-6


def test_the_longest_comes_first_and_then_chance_follows_squared_distance() -> None:
    """From (9, 0): the others lie 1, 2 and 9 away, so they come second with chances of 1, 4 and 81 in 86."""
    points = np.array([[8.0, 0.0], [9.0, 0.0], [7.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    seconds: Counter[int] = Counter()
    for seed in range(3000):
        rows, distances = d2_sampling(points, 2, np.random.default_rng(seed))
        assert rows[0] == 1
        assert distances[0] == 9
        assert distances[1] == abs(points[rows[1], 0] - 9)
        seconds[int(rows[1])] += 1
    for row, chance in ((0, 1 / 86), (2, 4 / 86), (3, 81 / 86)):
        assert seconds[row] / 3000 == pytest.approx(chance, abs=4 * (chance * (1 - chance) / 3000) ** 0.5)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 12), count=st.integers(0, 12), copies=st.booleans(), seed=st.integers(0, 99))
def test_none_is_drawn_twice_and_each_distance_is_to_the_nearest_before(n: int, count: int, copies: bool, seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(n, 3))
    points = points.round(0) if copies else points
    count = min(count, n)
    rows, distances = d2_sampling(points, count, np.random.default_rng(seed))
    assert len(set(rows.tolist())) == count
    for place in range(1, count):
        nearest = min(float(np.linalg.norm(points[rows[place]] - points[row])) for row in rows[:place])
        assert distances[place] == pytest.approx(nearest, abs=1e-6)


def test_copies_are_drawn_only_when_nothing_else_is_left() -> None:
    points = np.array([[1.0, 1.0]] * 5 + [[4.0, 4.0]])
    scores = Scores([f"{i}" for i in range(6)], ["p"] * 6, features=points.astype(np.float32))
    choices = badge(scores, 6, np.random.default_rng(0)).choices
    assert choices[0].case_id == "5"
    assert choices[1].score > 0
    assert [choice.score for choice in choices[2:]] == [0.0] * 4
    thirds = {badge(scores, 3, np.random.default_rng(seed)).choices[2].case_id for seed in range(60)}
    assert thirds == {"0", "1", "2", "3", "4"}, "which copy comes is left to chance"
