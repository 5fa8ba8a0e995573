"""Losses: against a slow implementation in plain loops, image by image, with ignored pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from strategies.semi.losses import (
    EVIDENCE_WEIGHT,
    IGNORE,
    consistency,
    cross_entropy,
    evidential,
    supervised,
    supervised_per_image,
)


def slow_supervised(logits: Tensor, labels: Tensor) -> list[float]:
    """½ (CE + Dice) of each image, written from the formula: one pixel and one class at a time."""
    values = []
    for z, y in zip(logits.double().numpy(), labels.numpy(), strict=True):
        channels = z.shape[0]
        entropy, pixels = 0.0, 0
        overlap, predicted, true = np.zeros(channels), np.zeros(channels), np.zeros(channels)
        for row, column in np.ndindex(*y.shape):
            if y[row, column] == IGNORE:
                continue
            scores = [math.exp(value) for value in z[:, row, column]]
            probs = [score / sum(scores) for score in scores]
            entropy -= math.log(probs[y[row, column]])
            pixels += 1
            for c in range(channels):
                overlap[c] += probs[c] * (y[row, column] == c)
                predicted[c] += probs[c]
                true[c] += y[row, column] == c
        dice = [1 - (2 * overlap[c] + 1e-5) / (predicted[c] + true[c] + 1e-5) for c in range(1, channels)]
        values.append(0.5 * (entropy / max(pixels, 1) + sum(dice) / len(dice)))
    return values


def case(seed: int, *, batch: int, classes: int, height: int, width: int, ignored: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes + 1, height, width, generator=generator)
    labels = torch.randint(0, classes + 1, (batch, height, width), generator=generator)
    hidden = torch.rand(labels.shape, generator=generator) < ignored
    return logits, labels.masked_fill(hidden, IGNORE)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    classes=st.integers(1, 4),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_equals_the_formula_image_by_image(seed: int, batch: int, classes: int, height: int, width: int, ignored: float) -> None:
    logits, labels = case(seed, batch=batch, classes=classes, height=height, width=width, ignored=ignored)
    expected = torch.tensor(slow_supervised(logits, labels))
    torch.testing.assert_close(supervised_per_image(logits, labels).double(), expected.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ignored", [0.0, 0.5])
def test_a_batch_is_the_mean_of_its_images(ignored: float) -> None:
    """Unequal images, one without foreground, one half ignored: batch Dice or a mean over pixels would differ."""
    logits, labels = case(3, batch=4, classes=2, height=8, width=8, ignored=ignored)
    labels[0] = 0
    labels[1, :4] = IGNORE
    single = torch.stack([supervised(logits[i : i + 1], labels[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(supervised(logits, labels), single.mean())
    torch.testing.assert_close(supervised_per_image(logits, labels), single)


def test_a_case_worked_by_hand() -> None:
    """Two pixels, both even between background and class 1, the second of class 1: CE ln 2, Dice 1 − 2·½/(1 + 1)."""
    logits, labels = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])
    assert supervised(logits, labels).item() == pytest.approx(0.5 * (math.log(2) + 0.5), abs=1e-5)


def test_ignored_pixels_have_no_gradient_and_the_rest_has() -> None:
    logits, labels = case(5, batch=2, classes=2, height=6, width=6, ignored=0.4)
    logits.requires_grad_()
    torch.autograd.backward(supervised(logits, labels))
    assert logits.grad is not None
    size = logits.grad.abs().sum(dim=1)
    assert (size[labels == IGNORE] == 0).all()
    assert (size[labels != IGNORE] > 0).all()


def test_an_image_with_nothing_but_ignored_pixels_gives_zero_with_a_finite_gradient() -> None:
    logits, labels = torch.randn(1, 3, 4, 4, requires_grad=True), torch.full((1, 4, 4), IGNORE)
    loss = supervised(logits, labels)
    torch.autograd.backward(loss)
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_confident_and_right_is_near_zero_confident_and_wrong_is_not() -> None:
    labels = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    right = 30.0 * torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    assert supervised(right, labels).item() < 1e-4
    assert supervised(-right, labels).item() > 1.0


def test_consistency_counts_valid_pixels_image_by_image() -> None:
    generator = torch.Generator().manual_seed(1)
    probs = torch.randn(3, 4, 5, 5, generator=generator).softmax(1).requires_grad_()
    target = torch.randn(3, 4, 5, 5, generator=generator).softmax(1).requires_grad_()
    valid = torch.rand(3, 5, 5, generator=generator) < 0.5
    valid[2] = False
    expected = sum(((probs[i] - target[i]) ** 2)[:, valid[i]].mean().item() if valid[i].any() else 0.0 for i in range(3))
    loss = consistency(probs, target, valid)
    assert loss.item() == pytest.approx(expected / 3, rel=1e-5)
    torch.autograd.backward(loss)
    assert target.grad is None, "the target must not learn from its pupil"
    assert probs.grad is not None
    assert (probs.grad.abs().sum(1) > 0).equal(valid)


def test_consistency_without_a_mask_is_the_mean_squared_error() -> None:
    probs, target = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(consistency(probs, target), torch.nn.functional.mse_loss(probs, target))
    everything = torch.ones(2, 4, 4, dtype=torch.bool)
    torch.testing.assert_close(consistency(probs, target, everything), torch.nn.functional.mse_loss(probs, target))


def test_cross_entropy_divides_by_valid_pixels_and_so_counts_ignored_ones() -> None:
    probs = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.3, 0.3, 0.4]])
    logits = probs.log().T.reshape(1, 3, 1, 4)
    labels = torch.tensor([[[0, IGNORE, 2, 1]]])
    valid = torch.tensor([[[True, True, True, False]]])
    first, third, fourth = -math.log(0.5), -math.log(0.6), -math.log(0.3)
    assert float(cross_entropy(logits, labels)) == pytest.approx((first + third + fourth) / 4)
    assert float(cross_entropy(logits, labels, valid)) == pytest.approx((first + third) / 3)
    assert float(cross_entropy(logits, labels, torch.zeros_like(valid))) == 0
    two, both = logits.repeat(2, 1, 1, 1), torch.cat([valid, torch.ones_like(valid)])
    expected = ((first + third) / 3 + (first + third + fourth) / 4) / 2
    assert float(cross_entropy(two, labels.repeat(2, 1, 1), both)) == pytest.approx(expected)


def test_ignored_pixels_of_cross_entropy_have_no_gradient() -> None:
    logits, labels = case(0, batch=2, classes=2, height=4, width=4, ignored=0.5)
    logits.requires_grad_()
    cross_entropy(logits, labels, torch.ones_like(labels, dtype=torch.bool)).backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(1) > 0).equal(labels != IGNORE)


@given(seed=st.integers(0, 1000), classes=st.integers(1, 4), ignored=st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=20, deadline=None)
def test_evidential_loss_against_torchs_own_divergence(seed: int, classes: int, ignored: float) -> None:
    """KL(Dir(α̃) ‖ Dir(1)), α̃ being α with 1 in the place of the true class, pixel by pixel."""
    logits, labels = case(seed, batch=2, classes=classes, height=5, width=4, ignored=ignored)
    logits = logits.abs()
    per_image = []
    for z, y in zip(logits.double(), labels, strict=True):
        found = []
        for row, column in np.ndindex(*y.shape):
            if y[row, column] != IGNORE:
                alpha = z[:, row, column].exp()
                alpha[y[row, column]] = 1.0
                flat = torch.distributions.Dirichlet(torch.ones(classes + 1, dtype=torch.float64))
                found.append(float(torch.distributions.kl_divergence(torch.distributions.Dirichlet(alpha), flat)))
        per_image.append(sum(found) / max(len(found), 1))
    expected = float(supervised(logits, labels)) + EVIDENCE_WEIGHT * sum(per_image) / len(per_image)
    assert float(evidential(logits, labels)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_evidence_for_wrong_classes_alone_costs_more() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    right, wrong = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    right[:, 0] = 3.0
    wrong[:, :2] = 3.0
    assert float(evidential(right, labels)) == pytest.approx(float(supervised(right, labels)), abs=1e-6)
    assert float(evidential(wrong, labels)) > float(supervised(wrong, labels)) + 0.01
