"""Mean teacher (Tarvainen and Valpola, NeurIPS 2017): agree with a moving average of yourself on unlabelled images.

    consistency = MSE(softmax f(x), softmax f_EMA(x + clip(N(0, 0.1), ±0.2)))

The teacher sees an unlabelled image in its original frame, with noise in units of the image's standard deviation; the
student sees it augmented. The teacher's probabilities are warped into the student's frame, and pixels that the warp
brings in from outside the image do not count.

In a federation the average is that of the global model, round by round, and within a round it goes on with the site's
student. A teacher that follows its own site alone forgets the classes that the site has no label of, and teaches the
student to.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from strategies.semi import losses
from strategies.semi.batch import Batch, Outcome, Time
from strategies.semi.ramps import ema_decay

NOISE_STD = 0.1
NOISE_CLIP = 0.2


def terms(
    batch: Batch, student: nn.Module, helpers: Mapping[str, nn.Module], *, time: Time, generator: torch.Generator
) -> Outcome:
    """The supervised loss of the labelled images and the consistency of the unlabelled ones.

    One forward pass of the student over both: its normalisation looks at one image at a time, so this is the same as
    two.
    """
    view = batch.student_view()
    if view is None or batch.unlabelled is None:
        return Outcome(losses={"supervised": batch.loss(student(batch.images), batch.labels)})
    logits = student(torch.cat([batch.images, view]))
    labelled, unlabelled = logits.split([len(batch.images), len(view)])
    with torch.no_grad():
        probs = helpers["teacher"](batch.unlabelled + noise_like(batch.unlabelled, generator=generator)).softmax(dim=1)
        target = probs if batch.warp is None else batch.warp.probs(probs)
    valid = None if batch.warp is None else batch.warp.valid
    return Outcome(
        losses={
            "supervised": batch.loss(labelled, batch.labels),
            "consistency": losses.consistency(unlabelled.softmax(dim=1), target, valid),
        },
        logits_unlabelled=unlabelled,
        guess=lambda: probs,
    )


def noise_like(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """clip(N(0, 0.1), ±0.2) times the standard deviation of each image, in the shape, dtype and device of `images`.

    The published noise is for images of mean 0 and variance 1; ours lie between 0 and 1, where as much of it would drown
    soft tissue.
    """
    noise = torch.randn(images.shape, generator=generator, device=generator.device)
    return (noise * NOISE_STD).clamp_(-NOISE_CLIP, NOISE_CLIP).to(images) * images.std(dim=(1, 2, 3), keepdim=True)


def make_teacher(student: nn.Module) -> nn.Module:
    """A copy of the student that no gradient changes, in evaluation mode: dropout would make its answers vary."""
    return copy.deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def carry_over(teacher: nn.Module, before: Mapping[str, Tensor], *, since: int, step: int) -> None:
    """Take a teacher on into a round: β·before + (1 − β)·teacher, in place, β what an update at each step would have kept.

    Nothing is kept of a teacher as old as the run (`since` = 0): it is the initial model.

    Args:
        teacher: the global model that this round begins with, as `make_teacher` copies it.
        before: the state dict of the teacher that the site's last round began with, at step `since`.
        step: t of this round's first step, as `update_teacher` counts.
    """
    kept = math.prod(ema_decay(t) for t in range(since, step))
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            value.lerp_(before[name].to(value), kept)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, step: int) -> None:
    """teacher ← α·teacher + (1 − α)·student, in place, with α = min(1 − 1/(t + 1), 0.99); the student is left alone.

    Args:
        teacher, student: networks of the same shape, on the same device. Buffers, if any, are copied.
        step: t ≥ 0, steps since the start of the run (not of the round) before the one just taken. At 0 the teacher
            becomes the student.
    """
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1.0 - ema_decay(step))
    for mine, other in zip(teacher.buffers(), student.buffers(), strict=True):
        mine.copy_(other)
