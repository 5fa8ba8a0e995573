"""Which of SAM's masks to believe: three questions, each of which can be left out alone by a threshold of 0.

- Does SAM itself expect the mask to be good (its predicted IoU)?
- Does the mask stay the same when the prompt is moved a little (stability under jitter)?
- Does it agree with the component that the specialist asked about?

Agreement alone is no proof: a SAM that is weaker than the specialist agrees with it on what both get wrong. How much the
masks that pass may count is another question (`strategies/semi/sam_trust.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor


def agreement(masks: Tensor, components: Tensor) -> Tensor:
    """Dice of masks (P, H, W) bool with components (P, H, W) bool: (P,) in [0, 1]; two empty ones agree fully."""
    overlap = (masks & components).sum((1, 2)).float()
    total = (masks.sum((1, 2)) + components.sum((1, 2))).float()
    return torch.where(total > 0, 2 * overlap / total.clamp(min=1), torch.ones_like(total))


def stability(masks: Tensor, jittered: Tensor) -> Tensor:
    """IoU of masks (P, H, W) bool with the answers to jittered prompts: (P,) in [0, 1]; two empty ones are not stable."""
    return (masks & jittered).sum((1, 2)) / (masks | jittered).sum((1, 2)).clamp(min=1)


@torch.no_grad()
def gate(
    masks: Tensor,
    components: Tensor,
    iou: Tensor,
    jittered: Tensor | None = None,
    *,
    min_iou: float,
    min_agreement: float,
    min_stability: float = 0.0,
) -> Tensor:
    """(P,) bool: the masks to keep. An empty mask is never kept: it says nothing.

    Args:
        masks, components: (P, H, W) bool, SAM's answers and what the specialist asked about.
        iou: (P,), the IoU that SAM predicts for its answers.
        jittered: (P, H, W) bool, answers to the same prompts moved a little; not looked at when `min_stability` is 0.
        min_iou, min_agreement, min_stability: in [0, 1]; 0 leaves a question out.
    """
    kept = masks.flatten(1).any(1)
    if min_iou > 0:
        kept &= iou >= min_iou
    if min_agreement > 0:
        kept &= agreement(masks, components) >= min_agreement
    if min_stability > 0:
        if jittered is None:
            raise ValueError("stability needs answers to jittered prompts")
        kept &= stability(masks, jittered) >= min_stability
    return kept
