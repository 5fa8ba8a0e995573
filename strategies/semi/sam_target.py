"""SAM's masks as a target for the specialist: what the target says, and the loss on it.

The target is made from the teacher's prediction and SAM's answers alone. There is no argument through which a label
of an unlabelled image could come in.

Which masks count at all is the gate's matter; all that no kept mask speaks of is ignored. A target of foreground alone
would make every mask grow, so background is part of it, but only where it is agreed on: near a kept object, outside
every kept mask, and where the teacher is sure of background. That a mask passed the gate does not make it better than
the specialist, so classes count by the trust that SAM has earned in them, and the weight of this loss is ramped *down*
over a run.

Source: SemiSAM (Zhang et al., arXiv 2312.06316). Two slips of its released code are excluded here by construction:
s/(s+1e-16), a loss without gradient, and logits compared with thresholds of probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from strategies.networks import class_map
from strategies.semi.augment import Warp
from strategies.semi.losses import IGNORE, SMOOTH
from strategies.semi.prompts import Prompts


@dataclass(frozen=True)
class Target:
    """What SAM says of a batch of unlabelled images.

    Attributes:
        classes: (B, H, W) int64, 0..C and IGNORE.
        weight: (B, H, W) float32 in [0, 1], how much each pixel counts; 0 where ignored.
    """

    classes: Tensor
    weight: Tensor

    def warped(self, warp: Warp) -> Target:
        """The same in the frame of another view; pixels from outside the image are ignored."""
        classes = warp.labels(self.classes, outside=IGNORE)
        weight = warp.probs(self.weight[:, None])[:, 0]
        return Target(classes, torch.where(classes == IGNORE, 0.0, weight))


@torch.no_grad()
def target_from(
    prompts: Prompts,
    masks: Tensor,
    kept: Tensor,
    teacher_probs: Tensor,
    *,
    trust: Tensor | None = None,
    background_confidence: float = 0.8,
    background_margin_px: int = 4,
) -> Target:
    """The class map that SAM and the teacher agree on, and how much each pixel of it counts.

    - Masks that are not kept, and masks of classes in which SAM is not trusted, are as if they had not been asked for.
    - A pixel in kept masks of one class is of that class; a pixel in kept masks of several classes is ignored.
    - A pixel in no kept mask is background if it lies in the box of a kept prompt, or within `background_margin_px`
      of one, and the teacher gives background at least `background_confidence` there.
    - All other pixels are ignored.
    - A pixel counts by the trust in its class; background by the trust in the class whose box it is near to, the
      highest of them.

    Args:
        prompts: what was asked, P prompts about B images.
        masks: (P, H, W) bool, SAM's answers.
        kept: (P,) bool, those to believe (`strategies/semi/sam_gate.py`).
        teacher_probs: (B, C+1, H, W), the prediction that the prompts were made from.
        trust: (C+1,) in [0, 1] by class, background's is not looked at; 1 for all by default.
    """
    images, channels, height, width = teacher_probs.shape
    device = teacher_probs.device
    trust = torch.ones(channels, device=device) if trust is None else trust.to(device, torch.float32)
    kept = kept & (trust[prompts.class_index] > 0)
    image, class_, masks, boxes = prompts.image_index[kept], prompts.class_index[kept], masks[kept], prompts.boxes[kept]

    votes = torch.zeros(images * channels, height, width, dtype=torch.int32, device=device)
    votes.index_add_(0, image * channels + class_, masks.int())
    claimed = votes.view(images, channels, height, width) > 0
    claims = claimed.sum(1)

    near = torch.zeros(images, height, width, device=device)
    trusted_boxes = _inside(boxes, background_margin_px, height, width) * trust[class_, None, None]
    near.scatter_reduce_(0, image[:, None, None].expand_as(trusted_boxes), trusted_boxes, "amax")
    background = (claims == 0) & (near > 0) & (teacher_probs[:, 0] >= background_confidence)

    classes = torch.full((images, height, width), IGNORE, dtype=torch.int64, device=device)
    classes[background] = 0
    classes = torch.where(claims == 1, class_map(claimed.to(torch.uint8)), classes)
    weight = torch.where(background, near, trust[torch.where(classes == IGNORE, 0, classes)])
    return Target(classes, torch.where(classes == IGNORE, 0.0, weight))


def _inside(boxes: Tensor, margin: int, height: int, width: int) -> Tensor:
    """(P, H, W) bool: pixels whose centre lies in boxes (P, 4) widened by `margin`."""
    x = torch.arange(width, device=boxes.device) + 0.5
    y = torch.arange(height, device=boxes.device) + 0.5
    columns = (x >= boxes[:, :1] - margin) & (x <= boxes[:, 2:3] + margin)
    rows = (y >= boxes[:, 1:2] - margin) & (y <= boxes[:, 3:] + margin)
    return rows[:, :, None] & columns[:, None, :]


def sam_loss(logits: Tensor, target: Target) -> Tensor:
    """½(cross-entropy + Dice loss) of logits (B, C+1, H, W) against a target with IGNORE: a scalar ≥ 0.

    Both terms are taken per image over its counted pixels, then averaged over the images that have any: one that SAM
    is silent about takes nothing from the others, and so the weight of an image depends on how many others count.
    Dice is averaged over the foreground classes that the target holds. Weights scale what a pixel, and a class's
    Dice, adds; they don't change what it is divided by, so that little trust is little loss. Where everything is
    ignored the loss is 0, with a gradient of 0 rather than none.
    """
    counted = target.classes != IGNORE
    classes = torch.where(counted, target.classes, 0)
    valid = counted.float()
    pixels = valid.sum((1, 2))
    entropy = F.cross_entropy(logits, classes, reduction="none")
    entropy = (entropy * target.weight * valid).sum((1, 2)) / pixels.clamp(min=1)

    foreground = logits.softmax(1)[:, 1:] * valid[:, None]
    truth = F.one_hot(classes, logits.shape[1]).movedim(-1, 1)[:, 1:] * valid[:, None]
    area = truth.sum((2, 3))
    overlap, total = (foreground * truth).sum((2, 3)), foreground.sum((2, 3)) + area
    trust = (truth * target.weight[:, None]).sum((2, 3)) / area.clamp(min=1)
    present = (area > 0).float()
    dice = ((1 - (2 * overlap + SMOOTH) / (total + SMOOTH)) * trust * present).sum(1) / present.sum(1).clamp(min=1)

    return (0.5 * (entropy + dice)).sum() / (pixels > 0).sum().clamp(min=1)
