"""SAM's masks as a target for the specialist: which of them to believe, what the target says, and the loss on it.

The target is made from the teacher's prediction and SAM's answers alone. There is no argument through which a label
of an unlabelled image could come in.

A mask is kept only where SAM expects it to be good and where it agrees with the component it was asked about; all
that no kept mask speaks of is ignored. A target of foreground alone would make every mask grow, so background is part
of it, but only where
it is agreed on: near a kept object, outside every kept mask, and where the teacher is sure of background. That a mask
passed the gate does not make it better than the specialist, so the weight of this loss is ramped *down* over a run.

Source: SemiSAM (Zhang et al., arXiv 2312.06316). Two slips of its released code are excluded here by construction:
s/(s+1e-16), a loss without gradient, and logits compared with thresholds of probabilities.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from strategies.semi.losses import IGNORE, SMOOTH
from strategies.semi.prompts import Prompts


def agreement(masks: Tensor, components: Tensor) -> Tensor:
    """Dice of masks (P, H, W) bool with components (P, H, W) bool: (P,) in [0, 1]; two empty ones agree fully."""
    overlap = (masks & components).sum((1, 2)).float()
    total = (masks.sum((1, 2)) + components.sum((1, 2))).float()
    return torch.where(total > 0, 2 * overlap / total.clamp(min=1), torch.ones_like(total))


@torch.no_grad()
def target_from(
    prompts: Prompts,
    mask_logits: Tensor,
    iou: Tensor,
    teacher_probs: Tensor,
    *,
    min_iou: float,
    min_agreement: float,
    background_confidence: float = 0.8,
    background_margin_px: int = 4,
) -> Tensor:
    """The class map that SAM and the teacher agree on.

    - A mask (logits above 0) is kept if its predicted IoU is at least `min_iou` and its Dice with the teacher's
      component is at least `min_agreement`; all others are as if they had not been asked for.
    - A pixel in kept masks of one class is of that class; a pixel in kept masks of several classes is ignored.
    - A pixel in no kept mask is background if it lies in the box of a kept prompt, or within `background_margin_px`
      of one, and the teacher gives background at least `background_confidence` there.
    - All other pixels are ignored.

    Args:
        prompts: what was asked, P prompts about B images.
        mask_logits: (P, H, W), SAM's answers as logits; never probabilities.
        iou: (P,), the IoU that SAM predicts for them.
        teacher_probs: (B, C+1, H, W), the prediction that the prompts were made from.

    Returns:
        (B, H, W) int64 of classes 0..C and IGNORE, without gradient.
    """
    images, channels, height, width = teacher_probs.shape
    masks = mask_logits > 0
    kept = (iou >= min_iou) & (agreement(masks, prompts.components) >= min_agreement)
    image, class_, masks, boxes = prompts.image_index[kept], prompts.class_index[kept], masks[kept], prompts.boxes[kept]

    votes = torch.zeros(images * channels, height, width, dtype=torch.int32, device=teacher_probs.device)
    votes.index_add_(0, image * channels + class_, masks.int())
    claimed = votes.view(images, channels, height, width) > 0
    claims = claimed.sum(1)

    near = torch.zeros(images, height, width, dtype=torch.int32, device=teacher_probs.device)
    near.index_add_(0, image, _inside(boxes, background_margin_px, height, width).int())
    background = (claims == 0) & (near > 0) & (teacher_probs[:, 0] >= background_confidence)

    target = torch.full((images, height, width), IGNORE, dtype=torch.int64, device=teacher_probs.device)
    target[background] = 0
    return torch.where(claims == 1, claimed.int().argmax(1), target)


def _inside(boxes: Tensor, margin: int, height: int, width: int) -> Tensor:
    """(P, H, W) bool: pixels whose centre lies in boxes (P, 4) widened by `margin`."""
    x = torch.arange(width, device=boxes.device) + 0.5
    y = torch.arange(height, device=boxes.device) + 0.5
    columns = (x >= boxes[:, :1] - margin) & (x <= boxes[:, 2:3] + margin)
    rows = (y >= boxes[:, 1:2] - margin) & (y <= boxes[:, 3:] + margin)
    return rows[:, :, None] & columns[:, None, :]


def sam_loss(logits: Tensor, target: Tensor) -> Tensor:
    """½(cross-entropy + Dice loss) of logits (B, C+1, H, W) against a target (B, H, W) with IGNORE: a scalar ≥ 0.

    Both terms are taken per image over its counted pixels, then averaged over the images that have any, so that no
    image's share of the gradient depends on another's pixels. Dice is averaged over the foreground classes that the
    target holds. Where everything is ignored the loss is 0, with a gradient of 0 rather than none.
    """
    counted = target != IGNORE
    classes = torch.where(counted, target, 0)
    valid = counted.float()
    pixels = valid.sum((1, 2))
    entropy = F.cross_entropy(logits, classes, reduction="none")
    entropy = (entropy * valid).sum((1, 2)) / pixels.clamp(min=1)

    foreground = logits.softmax(1)[:, 1:] * valid[:, None]
    truth = F.one_hot(classes, logits.shape[1]).movedim(-1, 1)[:, 1:] * valid[:, None]
    overlap, total = (foreground * truth).sum((2, 3)), foreground.sum((2, 3)) + truth.sum((2, 3))
    present = (truth.sum((2, 3)) > 0).float()
    dice = ((1 - (2 * overlap + SMOOTH) / (total + SMOOTH)) * present).sum(1) / present.sum(1).clamp(min=1)

    return (0.5 * (entropy + dice)).sum() / (pixels > 0).sum().clamp(min=1)
