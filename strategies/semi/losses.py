"""Loss terms that frameworks share. Every loss is a mean over images of a number that depends on that image alone.

A Dice or a mean over the pixels of the whole batch would couple patients: their gradients could not be told apart, nor
clipped one by one for differential privacy.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

import strategies.torchvision_ops  # noqa: F401  before MONAI, which imports torchvision where it finds it

from monai.losses.dice import DiceLoss  # isort: skip

IGNORE = 255
"""Label of a pixel that counts in no loss."""

SMOOTH = 1e-5

_dice = DiceLoss(include_background=False, reduction="none", smooth_nr=SMOOTH, smooth_dr=SMOOTH, batch=False)


def supervised(logits: Tensor, labels: Tensor) -> Tensor:
    """½ (cross entropy + Dice loss), the mean over images of `supervised_per_image`: a scalar."""
    return supervised_per_image(logits, labels).mean()


def supervised_per_image(logits: Tensor, labels: Tensor) -> Tensor:
    """½ (cross entropy + Dice loss) of each image.

    Cross entropy is the mean over the image's pixels. The Dice loss of a class is 1 − (2 Σ p·y + 1e-5) / (Σ p + Σ y +
    1e-5) over the image's pixels; it is averaged over the foreground classes, also those that the image does not show.

    Args:
        logits: (B, C + 1, H, W).
        labels: (B, H, W) int64, 0..C or IGNORE. Ignored pixels count nowhere; an image of nothing else gives 0.

    Returns:
        (B,), each ≥ 0.
    """
    counts = (labels != IGNORE).to(logits.dtype)
    pixels = counts.sum(dim=(1, 2))
    log_probs = logits.log_softmax(dim=1)
    entropy = functional.nll_loss(log_probs, labels, ignore_index=IGNORE, reduction="none").sum(dim=(1, 2))
    target = torch.zeros_like(logits).scatter_(1, labels.where(labels != IGNORE, 0).unsqueeze(1), 1.0)
    mask = counts.unsqueeze(1)
    dice: Tensor = _dice(log_probs.exp() * mask, target * mask).flatten(1).mean(dim=1)
    return 0.5 * (entropy / pixels.clamp(min=1) + dice)


EVIDENCE_WEIGHT = 0.003
"""Of the term that takes evidence for wrong classes back. By validation Dice (hippocampus, 120 labels, 500 steps, one seed): .33,
.67, .73 and .72 with .1, .01, .003 and 0, where a softmax has .74."""


def evidential(logits: Tensor, labels: Tensor) -> Tensor:
    """`supervised`, for a network with an evidential head, and what keeps it from claiming evidence for wrong classes.

    Logits of such a head are ln α, so that their softmax is the mean α/S of Dir(α), and its cross-entropy the Type II maximum
    likelihood (Sensoy et al., NeurIPS 2018, equation 3). Added is `EVIDENCE_WEIGHT` · KL(Dir(α̃) ‖ Dir(1)), where α̃ is α without
    the evidence for the true class (equation 5): per image over its counted pixels, then over images.

    Args:
        logits: (B, C + 1, H, W), each ≥ 0; labels: (B, H, W) int64, 0..C or IGNORE.
    """
    counts = (labels != IGNORE).to(logits.dtype)
    true = torch.zeros_like(logits).scatter_(1, labels.where(labels != IGNORE, 0).unsqueeze(1), 1.0)
    alpha = torch.where(true > 0, 1.0, logits.double().exp())  # in single precision large values cancel to noise
    total = alpha.sum(dim=1)
    constant = torch.lgamma(torch.tensor(float(logits.shape[1])))
    divergence = (
        torch.lgamma(total)
        - constant
        - torch.lgamma(alpha).sum(dim=1)
        + ((alpha - 1) * (torch.digamma(alpha) - torch.digamma(total)[:, None])).sum(dim=1)
    )
    wrong = (divergence * counts).sum(dim=(1, 2)) / counts.sum(dim=(1, 2)).clamp(min=1)
    return supervised(logits, labels) + EVIDENCE_WEIGHT * wrong.mean().to(logits.dtype)


def consistency(probs: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean squared difference of two predictions: per image over its valid pixels and all classes, then over images.

    Args:
        probs: (B, C + 1, H, W), probabilities of the one that learns.
        target: (B, C + 1, H, W), probabilities to be consistent with; no gradient flows into them.
        valid: (B, H, W) bool, the pixels that count; all by default. An image without any gives 0.

    Returns:
        A scalar in [0, 1].
    """
    squares = (probs - target.detach()).square().mean(dim=1)
    if valid is None:
        return squares.mean()
    mask = valid.to(squares)
    return ((squares * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp(min=1)).mean()


def cross_entropy(logits: Tensor, labels: Tensor, valid: Tensor | None = None) -> Tensor:
    """Cross entropy with pseudo-labels: per image summed and divided by its valid pixels, then the mean over images.

    Args:
        logits: (B, C + 1, H, W).
        labels: (B, H, W) int64, 0..C or IGNORE. An ignored pixel adds nothing to the sum but is divided by: the fewer
            pixels are sure, the smaller the loss (FixMatch, Sohn et al., NeurIPS 2020, equation 4).
        valid: (B, H, W) bool, the pixels that count at all; all by default. An image without any gives 0.

    Returns:
        A scalar ≥ 0.
    """
    entropy = functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    if valid is None:
        return entropy.mean()
    mask = valid.to(entropy)
    return ((entropy * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp(min=1)).mean()
