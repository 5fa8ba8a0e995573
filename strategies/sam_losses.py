"""How good an answer of a promptable segmenter is, as losses to train it by."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def answer_losses(logits: Tensor, predicted_iou: Tensor, masks: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss of a batch of prompts, and mean Dice of the first masks.

    The loss of a mask is cross-entropy plus Dice against the share of each coarse pixel that the object covers. The
    mean cross-entropy in and around the box counts twice as much as the mean of all that is further away, however small
    the box: a small object would drown in background otherwise. The first mask answers prompts that are not ambiguous;
    of the others only the best learns (Kirillov et al. 2023, §3).

    Args:
        logits: (P, 4, h, w), predicted_iou: (P, 4); masks: (P, S, S), S a multiple of h; boxes: (P, 4) in pixels of S.
    """
    ratio = masks.shape[-1] // logits.shape[-1]
    share = F.avg_pool2d(masks[:, None], ratio)
    near = _focus(boxes / ratio, logits.shape[-1])[:, None]
    far = 1 - near
    weight = near / near.sum((2, 3), keepdim=True).clamp(min=1) + 0.5 * far / far.sum((2, 3), keepdim=True).clamp(min=1)
    entropy = F.binary_cross_entropy_with_logits(logits, share.expand_as(logits), reduction="none")
    entropy = (entropy * weight).sum((2, 3))
    probability = torch.sigmoid(logits)
    overlap = (probability * share).sum((2, 3))
    both = probability.square().sum((2, 3)) + share.square().sum((2, 3))
    each = entropy + 1 - (2 * overlap + 0.1) / (both + 0.1)
    best_of_three = each[:, 1:].amin(1)

    iou = _iou(logits.detach() > 0, share > 0.5)  # on the coarse grid, which takes a fraction of the time
    dice = 2 * iou[:, 0] / (1 + iou[:, 0])
    confidence = (predicted_iou - iou).square().mean(1)
    return (each[:, 0] + 0.5 * best_of_three + confidence).mean(), dice.mean()


def true_iou(logits: Tensor, masks: Tensor) -> Tensor:
    """IoU of answers (P, 4, h, w), scaled up to (S, S), with masks (P, S, S): (P, 4)."""
    fine = F.interpolate(logits, size=masks.shape[-2:], mode="bilinear", align_corners=False) > 0
    return _iou(fine, masks[:, None] > 0.5)


def _iou(answers: Tensor, meant: Tensor) -> Tensor:
    return (answers & meant).sum((2, 3)) / (answers | meant).sum((2, 3)).clamp(min=1)


def _focus(boxes: Tensor, side: int) -> Tensor:
    """(P, side, side): 1 in boxes a fifth larger on every side, and at least one pixel, 0 elsewhere."""
    place = torch.arange(side, device=boxes.device) + 0.5
    margin = (boxes[:, 2:] - boxes[:, :2]) / 5 + 1
    low, high = boxes[:, :2] - margin, boxes[:, 2:] + margin
    columns = (place >= low[:, :1]) & (place <= high[:, :1])
    rows = (place >= low[:, 1:]) & (place <= high[:, 1:])
    return (rows[:, :, None] & columns[:, None, :]).float()
