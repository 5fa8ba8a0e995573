"""UA-MT: the threshold for any number of classes, and the masked loss against a slow implementation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from strategies.networks import build_network
from strategies.semi import uncertainty_aware
from strategies.semi.augment import draw_intensity, draw_warp
from strategies.semi.batch import Batch, Time
from strategies.semi.mean_teacher import make_teacher
from strategies.semi.uncertainty_aware import PASSES, is_sure, mean_of_passes


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int, *, factor: float = 1.0) -> nn.Module:
    """Four classes; `factor` makes the answers surer."""
    made = build_network("unet_tiny", in_channels=1, classes=3, norm="instance", dropout=0.0, seed=seed)
    with torch.no_grad():
        for parameter in list(made.parameters())[-2:]:
            parameter.mul_(factor)
    return made


def pixels(*probs: list[float]) -> Tensor:
    return torch.tensor(probs).T.reshape(1, len(probs[0]), 1, len(probs))


def test_the_threshold_is_a_share_of_ln_c_not_of_ln_2() -> None:
    """Four classes: two even ones have H = ln 2 = ½ ln 4, below 0.75 ln 4, but above 0.75 ln 2 and all of ln 2's shares."""
    two, three, all_ = [0.5, 0.5, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0], [0.25] * 4
    entropies = [math.log(2), math.log(3), math.log(4)]
    for ramp, expected in ((1e-6, [True, False, False]), (0.9, [True, True, False])):
        threshold = (0.75 + 0.25 * ramp) * math.log(4)
        assert expected == [entropy < threshold for entropy in entropies], "the case is worked right"
        assert is_sure(pixels(two, three, all_), ramp=ramp).flatten().tolist() == expected


@pytest.mark.parametrize("classes", [2, 3, 4, 9])
def test_nothing_is_surer_than_certainty_nor_less_than_evenness(classes: int) -> None:
    certain = torch.nn.functional.one_hot(torch.tensor([[[1]]]), classes).movedim(-1, 1).float()
    even = torch.full((1, classes, 1, 1), 1 / classes)
    for ramp in (0.01, 0.5, 0.99):
        assert is_sure(certain, ramp=ramp).all()
        assert not is_sure(even, ramp=ramp).any()


def test_the_mean_is_over_eight_passes_of_different_noise() -> None:
    teacher, images = make_teacher(network(1)), torch.rand(3, 1, 32, 32, generator=generator())
    shown: list[Tensor] = []
    hook = teacher.register_forward_pre_hook(lambda _module, inputs: shown.append(inputs[0].clone()))
    probs = mean_of_passes(teacher, images, generator=generator(4))
    hook.remove()
    passes = [part for call in shown for part in call.split(len(images))]
    assert len(passes) == PASSES == 8
    for number, one in enumerate(passes):
        assert 0 < (one - images).abs().max() <= 0.2 + 1e-6
        assert all(not torch.equal(one, other) for other in passes[:number])
    torch.testing.assert_close(probs, torch.stack([teacher(one).softmax(1) for one in passes]).mean(0))


@pytest.mark.parametrize("ramp", [0.01, 1.0])
def test_the_loss_is_its_formula_pixel_by_pixel(ramp: float) -> None:
    drawn = generator(1)
    unlabelled = torch.rand(2, 1, 16, 16, generator=drawn)
    labels = torch.randint(0, 4, (1, 16, 16), generator=drawn)
    warp = draw_warp(2, size=(16, 16), generator=drawn)
    intensity = draw_intensity(unlabelled.shape, generator=drawn)
    batch = Batch(torch.rand(1, 1, 16, 16, generator=drawn), labels, unlabelled, warp, intensity)
    student, teacher = network(0), make_teacher(network(1, factor=1.5))
    outcome = uncertainty_aware.terms(batch, student, {"teacher": teacher}, time=Time(0.3, ramp), generator=generator(9))
    view = batch.student_view()
    assert view is not None
    drawn = generator(9)
    noise = (0.1 * torch.randn(16, 1, 16, 16, generator=drawn)).clamp(-0.2, 0.2)
    noise *= unlabelled.std(dim=(1, 2, 3), keepdim=True).repeat(8, 1, 1, 1)
    passes = [teacher(unlabelled + noise[2 * n : 2 * n + 2]).softmax(1) for n in range(8)]
    target = warp.probs(sum(passes, torch.zeros(())) / 8).double()
    probs, valid = student(view).softmax(1).double(), warp.valid
    means, counted = [], 0
    for image in range(2):
        squares = []
        for row in range(16):
            for column in range(16):
                p, q = probs[image, :, row, column].tolist(), target[image, :, row, column].tolist()
                entropy = -sum(value * math.log(value) for value in q if value > 0)
                if valid[image, row, column] and entropy < (0.75 + 0.25 * ramp) * math.log(4):
                    squares.append(sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / 4)
        counted += len(squares)
        means.append(sum(squares) / len(squares))
    assert ramp == 1 or 0 < counted < int(valid.sum()), "some pixels are sure and some are not"
    assert float(outcome.losses["consistency"].detach()) == pytest.approx(sum(means) / 2, rel=1e-4)
    assert outcome.teacher_probs is not None
    torch.testing.assert_close(outcome.teacher_probs, sum(passes, torch.zeros(())) / 8)


def test_unsure_pixels_and_pixels_from_outside_have_no_gradient() -> None:
    drawn = generator(2)
    unlabelled = torch.rand(2, 1, 32, 32, generator=drawn)
    batch = Batch(
        torch.rand(1, 1, 32, 32, generator=drawn),
        torch.zeros(1, 32, 32, dtype=torch.int64),
        unlabelled,
        draw_warp(2, size=(32, 32), generator=drawn),
    )
    teacher = make_teacher(network(1, factor=1.5))
    outcome = uncertainty_aware.terms(batch, network(0), {"teacher": teacher}, time=Time(0.0, 0.01), generator=generator(3))
    assert batch.warp is not None
    assert outcome.logits_unlabelled is not None
    assert outcome.teacher_probs is not None
    (gradient,) = torch.autograd.grad(outcome.losses["consistency"], outcome.logits_unlabelled)
    counts = is_sure(batch.warp.probs(outcome.teacher_probs), ramp=0.01) & batch.warp.valid
    assert 0 < counts.sum() < batch.warp.valid.sum() < counts.numel()
    assert (gradient.abs().sum(1) > 0).equal(counts)
