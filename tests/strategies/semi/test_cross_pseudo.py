"""CPS: symmetric, each network taught by the other's classes, on labelled and unlabelled images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from strategies.networks import build_network
from strategies.semi import cross_pseudo, losses
from strategies.semi.augment import draw_intensity, draw_warp
from strategies.semi.batch import Batch, Outcome, Time
from strategies.semi.cross_pseudo import crossed


def network(seed: int) -> nn.Module:
    return build_network("unet_tiny", in_channels=1, classes=3, norm="instance", dropout=0.0, seed=seed)


def make_batch() -> Batch:
    drawn = torch.Generator().manual_seed(1)
    unlabelled = torch.rand(3, 1, 32, 32, generator=drawn)
    return Batch(
        images=torch.rand(2, 1, 32, 32, generator=drawn),
        labels=torch.randint(0, 4, (2, 32, 32), generator=drawn),
        unlabelled=unlabelled,
        warp=draw_warp(3, size=(32, 32), generator=drawn),
        intensity=draw_intensity(unlabelled.shape, generator=drawn),
    )


def run(batch: Batch, student: nn.Module, peer: nn.Module) -> Outcome:
    return cross_pseudo.terms(batch, student, {"second": peer}, time=Time(0.5, 1.0), generator=torch.Generator())


def logits(*pixels: list[float]) -> Tensor:
    """One image of one row, from the logs of probabilities."""
    return torch.tensor(pixels).log().T.reshape(1, len(pixels[0]), 1, len(pixels))


def test_a_case_worked_by_hand() -> None:
    first = logits([0.7, 0.2, 0.1], [0.1, 0.3, 0.6])
    second = logits([0.2, 0.5, 0.3], [0.1, 0.1, 0.8])
    # pixel 1: the first says 0, the second 1; pixel 2: both say 2
    by_first = -(math.log(0.2) + math.log(0.8)) / 2
    by_second = -(math.log(0.2) + math.log(0.6)) / 2
    assert float(crossed(first, second)) == pytest.approx(by_first + by_second)
    assert float(crossed(second, first)) == pytest.approx(by_first + by_second)
    only_second = torch.tensor([[[False, True]]])
    assert float(crossed(first, second, only_second)) == pytest.approx(-math.log(0.8) - math.log(0.6))


def test_each_network_is_pulled_to_the_other_s_class_and_none_is_pushed_to_be_followed() -> None:
    first, second = logits([0.7, 0.2, 0.1]).requires_grad_(), logits([0.2, 0.5, 0.3]).requires_grad_()
    crossed(first, second).backward()
    for network_, other in ((first, 1), (second, 0)):
        assert network_.grad is not None
        expected = network_.detach().softmax(1)
        expected[0, other] -= 1
        torch.testing.assert_close(network_.grad, expected)


def test_the_terms_are_the_paper_s_sums_over_two_networks_and_two_kinds_of_images() -> None:
    batch, student, peer = make_batch(), network(0), network(1)
    outcome, view = run(batch, student, peer), batch.student_view()
    assert view is not None
    assert batch.warp is not None
    assert batch.unlabelled is not None
    of_labels = losses.supervised(student(batch.images), batch.labels) + losses.supervised(peer(batch.images), batch.labels)
    torch.testing.assert_close(outcome.losses["supervised"], of_labels)

    expected = torch.zeros(())
    everywhere = torch.ones(2, 32, 32, dtype=torch.bool)
    for images, counts in ((batch.images, everywhere), (view, batch.warp.valid)):
        for one, other in ((student(images), peer(images)), (peer(images), student(images))):
            taken = one.log_softmax(1).gather(1, other.argmax(1, keepdim=True)).squeeze(1)
            expected = expected - torch.stack([t[c].mean() for t, c in zip(taken, counts, strict=True)]).mean()
    torch.testing.assert_close(outcome.losses["consistency"], expected, rtol=1e-4, atol=1e-4)
    assert outcome.teacher_probs is not None
    guess = (student(batch.unlabelled).softmax(1) + peer(batch.unlabelled).softmax(1)) / 2
    torch.testing.assert_close(outcome.teacher_probs, guess)
    assert outcome.logits_unlabelled is not None
    torch.testing.assert_close(outcome.logits_unlabelled, student(view), rtol=1e-4, atol=1e-5)


def test_student_and_peer_are_treated_alike() -> None:
    batch, one, other = make_batch(), network(0), network(1)
    there, back = run(batch, one, other), run(batch, other, one)
    for term in there.losses:
        torch.testing.assert_close(there.losses[term], back.losses[term])


def test_twins_teach_each_other_only_what_they_think_already() -> None:
    """With equal weights both directions are the same entropy minimisation: a peer must begin elsewhere."""
    batch, student = make_batch(), network(0)
    outcome = run(Batch(batch.images, batch.labels), student, network(0))
    answer = student(batch.images).log_softmax(1)
    torch.testing.assert_close(outcome.losses["consistency"], -2 * answer.max(1).values.mean())
    assert outcome.logits_unlabelled is None
    assert outcome.teacher_probs is None
