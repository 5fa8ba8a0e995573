"""Uncertainty-aware mean teacher, UA-MT (Yu et al., MICCAI 2019, section 2.2): follow the teacher only where it is sure.

    p̄ = mean of T = 8 teacher passes over differently noised images
    consistency = MSE(softmax f(x), p̄) over the pixels with H(p̄) < (0.75 + 0.25·λ/λmax)·ln C

ln C is the highest entropy of C classes (background is one); the released code has ln 2, for its two classes. Its target
is one more noisy pass, a ninth; ours is p̄ itself, which the entropy is of. Its teacher also drops features in each pass;
ours, in evaluation mode as in every framework here, does not: the noise of the images is all that differs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from strategies.semi import losses
from strategies.semi.batch import Batch, Outcome, Time
from strategies.semi.mean_teacher import noise_like

PASSES = 8
LOWEST, HIGHEST = 0.75, 1.0
"""Shares of the highest entropy below which the teacher counts as sure: at the foot of the ramp and at its peak."""


def terms(
    batch: Batch, student: nn.Module, helpers: Mapping[str, nn.Module], *, time: Time, generator: torch.Generator
) -> Outcome:
    """The supervised loss of the labelled images and the consistency of the sure pixels of the unlabelled ones."""
    view = batch.student_view()
    if view is None or batch.unlabelled is None:
        return Outcome(losses={"supervised": batch.loss(student(batch.images), batch.labels)})

    labelled, unlabelled = student(torch.cat([batch.images, view])).split([len(batch.images), len(view)])
    probs = mean_of_passes(helpers["teacher"], batch.unlabelled, generator=generator)
    target = probs if batch.warp is None else batch.warp.probs(probs)
    counts = is_sure(target, ramp=time.ramp)
    if batch.warp is not None:
        counts &= batch.warp.valid.to(counts.device)
    return Outcome(
        losses={
            "supervised": batch.loss(labelled, batch.labels),
            "consistency": losses.consistency(unlabelled.softmax(dim=1), target, counts),
        },
        logits_unlabelled=unlabelled,
        guess=lambda: probs,
    )


@torch.no_grad()
def mean_of_passes(teacher: nn.Module, images: Tensor, *, generator: torch.Generator) -> Tensor:
    """p̄ (B, C + 1, H, W) of images (B, K, H, W): the mean over `PASSES` noisy passes, taken in one call."""
    repeated = images.repeat(PASSES, 1, 1, 1)
    probs: Tensor = teacher(repeated + noise_like(repeated, generator=generator)).softmax(dim=1)
    return probs.view(PASSES, len(images), *probs.shape[1:]).mean(dim=0)


def is_sure(probs: Tensor, *, ramp: float) -> Tensor:
    """(B, H, W) bool: whether the entropy of probabilities (B, C + 1, H, W) is below the threshold at `ramp` = λ/λmax."""
    threshold = (LOWEST + (HIGHEST - LOWEST) * ramp) * math.log(probs.shape[1])
    sure: Tensor = torch.special.entr(probs).sum(dim=1) < threshold
    return sure
