"""Mean teacher: what each of the two networks sees, what counts, what learns, and how the teacher follows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from strategies.networks import build_network
from strategies.semi import losses, mean_teacher
from strategies.semi.augment import draw_intensity, draw_warp
from strategies.semi.batch import Batch, Outcome, Time
from strategies.semi.ramps import ema_decay


class Recorder(nn.Module):
    """A pixelwise network that remembers what it was shown: it commutes with everything that moves pixels."""

    def __init__(self, *, factor: float = 2.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.0, factor, -factor]))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        return images * self.weight.view(1, -1, 1, 1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch(*, warped: bool = True, side: int = 32) -> Batch:
    drawn = generator(1)
    unlabelled = torch.rand(3, 1, side, side, generator=drawn)
    return Batch(
        images=torch.rand(2, 1, side, side, generator=drawn),
        labels=torch.randint(0, 3, (2, side, side), generator=drawn),
        unlabelled=unlabelled,
        warp=draw_warp(3, size=(side, side), generator=drawn) if warped else None,
        intensity=draw_intensity(unlabelled.shape, generator=drawn) if warped else None,
    )


def network(seed: int = 0) -> nn.Module:
    return build_network("unet_tiny", in_channels=1, classes=2, norm="instance", dropout=0.0, seed=seed)


def run(batch: Batch, student: nn.Module, teacher: nn.Module | None, *, seed: int = 3) -> Outcome:
    helpers = {} if teacher is None else {"teacher": teacher}
    return mean_teacher.terms(batch, student, helpers, time=Time(progress=0.5, ramp=1.0), generator=generator(seed))


def test_losses_equal_the_formula_with_two_forward_passes() -> None:
    batch, student, teacher = make_batch(), network(0), mean_teacher.make_teacher(network(1))
    outcome = run(batch, student, teacher)
    view, warp, unlabelled = batch.student_view(), batch.warp, batch.unlabelled
    assert view is not None
    assert warp is not None
    assert unlabelled is not None

    torch.testing.assert_close(outcome.losses["supervised"], losses.supervised(student(batch.images), batch.labels))
    noise = (0.1 * torch.randn(unlabelled.shape, generator=generator(3))).clamp(-0.2, 0.2)
    noise *= unlabelled.std(dim=(1, 2, 3), keepdim=True)
    probs = teacher(unlabelled + noise).softmax(1)
    squares = (student(view).softmax(1) - warp.probs(probs)).square().mean(1)
    valid = warp.valid
    expected = torch.stack([image[mask].mean() for image, mask in zip(squares, valid, strict=True)]).mean()
    torch.testing.assert_close(outcome.losses["consistency"], expected)
    assert outcome.logits_unlabelled is not None
    torch.testing.assert_close(outcome.logits_unlabelled, student(view), rtol=1e-4, atol=1e-5)
    assert outcome.teacher_probs is not None
    torch.testing.assert_close(outcome.teacher_probs, probs)
    assert set(outcome.losses) == {"supervised", "consistency"}


def test_one_pass_each_and_each_sees_its_own_view() -> None:
    batch, student, teacher = make_batch(), Recorder(), Recorder()
    run(batch, student, teacher)
    (shown,), (taught,) = student.seen, teacher.seen
    view = batch.student_view()
    assert view is not None
    assert batch.unlabelled is not None
    assert torch.equal(shown, torch.cat([batch.images, view]))
    noise = taught - batch.unlabelled
    spread = batch.unlabelled.std(dim=(1, 2, 3))
    for added, unit in zip(noise, spread, strict=True):
        assert added.abs().max() <= 0.2 * unit + 1e-6
        assert added.std() == pytest.approx(0.1 * float(unit), rel=0.1)


def test_a_perfect_pupil_has_nothing_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise, a pixelwise network agrees with its own warped answer: the warp is applied the right way round."""
    monkeypatch.setattr(mean_teacher, "NOISE_STD", 0.0)
    smooth = torch.linspace(0.0, 1.0, 32).view(1, 1, 1, 32) * torch.linspace(0.2, 1.0, 32).view(1, 1, 32, 1)
    warp = draw_warp(3, size=(32, 32), generator=generator(2))
    images, labels = torch.rand(1, 1, 32, 32), torch.zeros(1, 32, 32, dtype=torch.int64)
    batch = Batch(images=images, labels=labels, unlabelled=smooth.repeat(3, 1, 1, 1), warp=warp)
    right = run(batch, Recorder(), Recorder()).losses["consistency"]
    assert right < 1e-6
    assert run(batch, Recorder(), Recorder(factor=-2.0)).losses["consistency"] > 1e-3, "one of another opinion has"


def test_pixels_from_outside_of_the_image_do_not_count() -> None:
    batch = make_batch()
    outcome = run(batch, network(0), mean_teacher.make_teacher(network(1)))
    logits, warp = outcome.logits_unlabelled, batch.warp
    assert logits is not None
    assert warp is not None
    (gradient,) = torch.autograd.grad(outcome.losses["consistency"], logits)
    assert not warp.valid.all()
    assert (gradient.abs().sum(1) > 0).equal(warp.valid)


def test_only_the_student_learns_and_it_does() -> None:
    batch, student, teacher = make_batch(), network(0), copy.deepcopy(network(1))
    outcome = run(batch, student, teacher)
    assert outcome.teacher_probs is not None
    assert not outcome.teacher_probs.requires_grad
    torch.autograd.backward(outcome.losses["consistency"])
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert sum(float(p.grad.norm()) for p in student.parameters() if p.grad is not None) > 0


def test_the_generator_decides_the_noise_and_the_global_one_is_left_alone() -> None:
    batch, student, teacher = make_batch(), network(0), mean_teacher.make_teacher(network(1))
    state = torch.get_rng_state()
    first, second, other = (run(batch, student, teacher, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.losses["consistency"], second.losses["consistency"])
    assert not torch.equal(first.losses["consistency"], other.losses["consistency"])


def test_without_unlabelled_images_it_is_supervised() -> None:
    batch, student = make_batch(), network(0)
    outcome = run(Batch(batch.images, batch.labels), student, None)
    torch.testing.assert_close(outcome.losses["supervised"], losses.supervised(student(batch.images), batch.labels))
    assert set(outcome.losses) == {"supervised"}
    assert outcome.logits_unlabelled is None
    assert outcome.teacher_probs is None


def test_a_missing_teacher_is_named() -> None:
    with pytest.raises(KeyError, match="teacher"):
        run(make_batch(), network(0), None)


# -------------------------------------------------------------------------------------------------------------- teacher


def test_the_teacher_starts_as_a_copy_that_does_not_learn() -> None:
    student = network(0)
    teacher = mean_teacher.make_teacher(student)
    assert not teacher.training
    assert student.training
    for mine, other in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(mine, other)
        assert mine.data_ptr() != other.data_ptr()
        assert not mine.requires_grad
        assert other.requires_grad


def test_the_noise_of_an_image_grows_with_its_contrast() -> None:
    images = torch.rand(2, 1, 64, 64, generator=generator()) * torch.tensor([1.0, 0.1]).view(2, 1, 1, 1)
    strong, weak = mean_teacher.noise_like(images, generator=generator(1)).std(dim=(1, 2, 3)).tolist()
    assert weak == pytest.approx(strong / 10, rel=0.1)


@pytest.mark.parametrize(("since", "step"), [(0, 2), (4, 7), (475, 500), (400, 500)])
def test_taking_a_teacher_into_a_round_is_an_update_by_the_global_model_at_every_step_since(since: int, step: int) -> None:
    old, model = mean_teacher.make_teacher(network(0)), network(1)
    taken = mean_teacher.make_teacher(model)
    mean_teacher.carry_over(taken, old.state_dict(), since=since, step=step)
    for t in range(since, step):
        mean_teacher.update_teacher(old, model, t)
    for mine, other in zip(taken.parameters(), old.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("step", [0, 1, 7, 5000])
def test_the_teacher_moves_by_the_formula_and_the_student_stays(step: int) -> None:
    student, teacher = network(0), mean_teacher.make_teacher(network(1))
    student.register_buffer("count", torch.tensor(5))
    teacher.register_buffer("count", torch.tensor(0))
    before, theirs = copy.deepcopy(teacher), copy.deepcopy(student)
    mean_teacher.update_teacher(teacher, student, step)
    alpha = ema_decay(step)
    for new, old, other, kept in zip(
        teacher.parameters(), before.parameters(), student.parameters(), theirs.parameters(), strict=True
    ):
        torch.testing.assert_close(new, alpha * old + (1 - alpha) * other)
        assert torch.equal(other, kept)
        assert new.grad_fn is None
    assert int(teacher.get_buffer("count")) == 5
    if step == 0:
        for new, other in zip(teacher.parameters(), student.parameters(), strict=True):
            assert torch.equal(new, other)
