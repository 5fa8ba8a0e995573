"""Masks as a half-trained specialist would draw them: what SAM is given to improve on while it learns."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


def rough_logits(masks: Tensor, generator: Generator, *, side: int) -> Tensor:
    """Masks (P, S, S) of 0 and 1 as logits (P, 1, side, side), positive inside; of a small one nothing may be left.

    Borders are blurred away below an eighth of the picture's cells, moved, and grown or shrunk; how sure the specialist is
    varies too.
    """
    count, device = len(masks), masks.device
    cells = side // 4

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator, device=device)

    blurred = F.interpolate(F.adaptive_avg_pool2d(masks[:, None], cells), size=(side, side), mode="bilinear", align_corners=False)
    knots = torch.randn(count, 1, 6, 6, generator=generator, device=device)
    wander = F.interpolate(knots, size=(side, side), mode="bilinear", align_corners=True)
    return uniform(4, 16) * (blurred - uniform(0.3, 0.7) + uniform(0, 0.2) * wander)
