"""Mean teacher (Tarvainen and Valpola, NeurIPS 2017): agree with a moving average of yourself on unlabelled images.

    consistency = MSE(softmax f(x), softmax f_EMA(x + clip(N(0, 0.1), ±0.2)))

The teacher sees an unlabelled image in its original frame, with noise; the student sees it augmented. The teacher's
probabilities are warped into the student's frame, and pixels that the warp brings in from outside the image do not
count.
"""

from __future__ import annotations

import copy
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
        return Outcome(losses={"supervised": losses.supervised(student(batch.images), batch.labels)})
    logits = student(torch.cat([batch.images, view]))
    labelled, unlabelled = logits.split([len(batch.images), len(view)])
    with torch.no_grad():
        probs = helpers["teacher"](batch.unlabelled + noise_like(batch.unlabelled, generator=generator)).softmax(dim=1)
        target = probs if batch.warp is None else batch.warp.probs(probs)
    valid = None if batch.warp is None else batch.warp.valid
    return Outcome(
        losses={
            "supervised": losses.supervised(labelled, batch.labels),
            "consistency": losses.consistency(unlabelled.softmax(dim=1), target, valid),
        },
        logits_unlabelled=unlabelled,
        guess=lambda: probs,
    )


def noise_like(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """clip(N(0, 0.1), ±0.2) in the shape, dtype and device of `images`."""
    noise = torch.randn(images.shape, generator=generator, device=generator.device)
    return (noise * NOISE_STD).clamp_(-NOISE_CLIP, NOISE_CLIP).to(images)


def make_teacher(student: nn.Module) -> nn.Module:
    """A copy of the student that no gradient changes, in evaluation mode: dropout would make its answers vary."""
    return copy.deepcopy(student).requires_grad_(False).eval()


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
