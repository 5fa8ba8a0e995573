"""UniMatch: unsure pixels teach nothing, mixing moves labels with pixels, and the loss is its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from strategies.networks import build_network, feature_dropout
from strategies.semi import losses, unimatch
from strategies.semi.augment import draw_intensity, draw_warp
from strategies.semi.batch import Batch, Outcome, Time
from strategies.semi.losses import IGNORE
from strategies.semi.mixing import draw_cutmix
from strategies.semi.unimatch import strong_view, sure_labels


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0) -> nn.Module:
    return build_network("unet_tiny", in_channels=1, classes=3, norm="instance", dropout=0.0, seed=seed)


def make_batch(*, unlabelled: int = 3, side: int = 16) -> Batch:
    drawn = generator(1)
    pool = torch.rand(unlabelled, 1, side, side, generator=drawn)
    return Batch(
        images=torch.rand(2, 1, side, side, generator=drawn),
        labels=torch.randint(0, 4, (2, side, side), generator=drawn),
        unlabelled=pool,
        warp=draw_warp(unlabelled, size=(side, side), generator=drawn, shift=0.4),  # much from outside
        intensity=draw_intensity(pool.shape, generator=drawn),
    )


def run(batch: Batch, student: nn.Module, *, seed: int = 3) -> Outcome:
    return unimatch.terms(batch, student, {}, time=Time(0.5, 1.0), generator=generator(seed))


def test_unsure_pixels_are_ignored_and_not_background() -> None:
    """The trap: the argmax of a probability that was set to zero is background."""
    probs = torch.tensor([[0.96, 0.02, 0.02], [0.9, 0.05, 0.05], [0.02, 0.02, 0.96], [0.06, 0.94, 0.0], [0.0, 0.95, 0.05]])
    labels = sure_labels(probs.clamp(min=1e-9).log().T.reshape(1, 3, 1, 5))
    assert labels.dtype == torch.int64
    assert labels.flatten().tolist()[:4] == [0, IGNORE, 2, IGNORE]
    exact = torch.tensor([0.0, 40.0, 0.0]).reshape(1, 3, 1, 1)
    assert sure_labels(exact).item() == 1


def test_a_student_that_is_never_sure_learns_nothing_from_unlabelled_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unimatch, "THRESHOLD", 1.01)
    student = network()
    outcome = run(make_batch(), student)
    assert float(outcome.losses["consistency"].detach()) == 0
    gradients = torch.autograd.grad(outcome.losses["consistency"], list(student.parameters()))
    assert all((gradient == 0).all() for gradient in gradients)


def slow_cross_entropy(logits: Tensor, teaching: Tensor, counts: Tensor, threshold: float) -> float:
    """1/B Σ_images 1/valid Σ_pixels 1[max p_w ≥ τ]·CE(p, argmax p_w), in loops."""
    means = []
    for z, p, valid in zip(logits.double(), teaching.double(), counts, strict=True):
        value = 0.0
        for row in range(z.shape[1]):
            for column in range(z.shape[2]):
                if valid[row, column] and float(p[:, row, column].max()) >= threshold:
                    scores = [math.exp(score) for score in z[:, row, column].tolist()]
                    value -= math.log(scores[int(p[:, row, column].argmax())] / sum(scores))
        means.append(value / max(int(valid.sum()), 1))
    return sum(means) / len(means)


@pytest.mark.parametrize("unlabelled", [1, 3])
def test_the_loss_is_its_formula(unlabelled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same draws in the same order, everything after them written again, slowly, one forward pass for each view."""
    monkeypatch.setattr(unimatch, "THRESHOLD", 0.4)
    batch, student, drawn = make_batch(unlabelled=unlabelled), network(), generator(3)
    outcome = run(batch, student)
    assert batch.unlabelled is not None
    assert batch.warp is not None
    weak, valid = batch.warp.images(batch.unlabelled), batch.warp.valid
    views = [strong_view(weak, generator=drawn) for _ in range(2)]
    cuts = [draw_cutmix(unlabelled, size=(16, 16), generator=drawn) for _ in range(2)]
    with feature_dropout(student, p=0.5, generator=drawn):
        on_dropped = student(weak).detach()
    probs = student(weak).softmax(1).detach()
    of_strong = []
    for view, cut in zip(views, cuts, strict=True):
        mixed, teaching, counts = view.clone(), probs.clone(), valid.clone()
        for image in range(unlabelled):
            for row, column in torch.nonzero(cut.inside[image]).tolist():
                other = int(cut.partner[image])
                mixed[image, :, row, column] = view[other, :, row, column]
                teaching[image, :, row, column] = probs[other, :, row, column]
                counts[image, row, column] = valid[other, row, column]
        of_strong.append(slow_cross_entropy(student(mixed).detach(), teaching, counts, 0.4))
    of_features = slow_cross_entropy(on_dropped, probs, valid, 0.4)
    of_labels = float(losses.supervised(student(batch.images), batch.labels).detach())
    expected = (of_labels + 0.25 * of_strong[0] + 0.25 * of_strong[1] + 0.5 * of_features) / 2
    assert 0 < int((probs.amax(1) >= 0.4).sum()) < probs[:, 0].numel(), "some pixels are sure and some are not"
    assert any(bool(cut.inside.any()) for cut in cuts)
    assert float(sum(outcome.losses.values(), torch.zeros(())).detach()) == pytest.approx(expected, rel=1e-4)
    assert float(outcome.losses["supervised"].detach()) == pytest.approx(of_labels / 2, rel=1e-5)


def test_the_answer_is_the_one_on_the_weak_view_and_the_guess_is_without_dropout() -> None:
    batch = make_batch()
    student = build_network("unet_tiny", in_channels=1, classes=3, norm="instance", dropout=0.3, seed=0)
    outcome = run(batch, student)
    assert batch.unlabelled is not None
    assert batch.warp is not None
    assert outcome.teacher_probs is not None
    torch.testing.assert_close(outcome.teacher_probs, student.eval()(batch.unlabelled).softmax(1).detach())
    calm = run(batch, network())
    assert calm.logits_unlabelled is not None
    torch.testing.assert_close(calm.logits_unlabelled, network()(batch.warp.images(batch.unlabelled)), rtol=1e-4, atol=1e-5)


def test_no_gradient_flows_through_the_pseudo_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unimatch, "THRESHOLD", 0.0)
    outcome = run(make_batch(), network())
    assert outcome.logits_unlabelled is not None
    (found,) = torch.autograd.grad(outcome.losses["consistency"], [outcome.logits_unlabelled], allow_unused=True)
    assert found is None


def test_strong_views_stay_in_range_and_differ_by_image() -> None:
    images = torch.rand(1, 2, 24, 24, generator=generator()).repeat(8, 1, 1, 1)
    views = strong_view(images, generator=generator(1))
    assert views.shape == images.shape
    assert 0 <= float(views.min()) < float(views.max()) <= 1 + 1e-5
    assert all(not torch.allclose(views[0], view) for view in views[1:])
    rough = (views[:, :, 1:] - views[:, :, :-1]).abs().mean((1, 2, 3))
    assert rough.min() < 0.3 * rough.max(), "some are blurred and some are not"
