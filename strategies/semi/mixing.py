"""Rectangles of one image pasted into another: CutMix and copy-paste. What is drawn is a value that applies to all maps
of an image alike: grey values, labels, what is valid.

Pasting couples the two patients: no gradient of a mixed image is one patient's alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CUT_SHARE = (0.02, 0.4)
"""Area of a CutMix rectangle as a share of the image's (UniMatch's released code, as the next two)."""
CUT_ASPECT = (0.3, 1 / 0.3)
CUT_PROBABILITY = 0.5


def paste(inside: Tensor, outside: Tensor, where: Tensor) -> Tensor:
    """`inside` where `where` (B, H, W) is true and `outside` elsewhere; both (B, H, W) or (B, K, H, W)."""
    return torch.where(where.unsqueeze(1) if inside.ndim == 4 else where, inside, outside)


@dataclass(frozen=True)
class Paste:
    """Rectangles of images of a batch pasted into other images of it.

    Attributes:
        partner: (B,) int64: image i gets its rectangle from image `partner[i]`, of the same place.
        inside: (B, H, W) bool: the rectangle of image i.
    """

    partner: Tensor
    inside: Tensor

    def apply(self, batch: Tensor) -> Tensor:
        """(B, H, W) or (B, K, H, W) of any dtype, to the same."""
        inside, partner = self.inside.to(batch.device), self.partner.to(batch.device)
        return paste(batch[partner], batch, inside)


def draw_partners(count: int, *, generator: torch.Generator) -> Tensor:
    """(count,) int64: another image for each, every image once; with one image alone, itself."""
    shift = 1 + int(torch.randint(max(count - 1, 1), (), generator=generator, device=generator.device))
    partners: Tensor = torch.arange(count).roll(shift)
    return partners


def draw_rectangles(heights: Tensor, widths: Tensor, *, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(B, H, W) bool: for each image a rectangle of its height and width (B,), evenly at all places where it fits."""
    where = generator.device
    down, right = torch.rand(2, len(heights), generator=generator, device=where)
    heights, widths = heights.to(where), widths.to(where)
    lowest, rightmost = size[0] - heights, size[1] - widths
    top = (down * (lowest + 1)).floor().minimum(lowest)  # a number just below 1 may round to it
    left = (right * (rightmost + 1)).floor().minimum(rightmost)
    rows, columns = torch.arange(size[0], device=where), torch.arange(size[1], device=where)
    in_rows = (rows >= top[:, None]) & (rows < (top + heights)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + widths)[:, None])
    inside: Tensor = in_rows[:, :, None] & in_columns[:, None, :]
    return inside


def draw_cutmix(count: int, *, size: tuple[int, int], generator: torch.Generator) -> Paste:
    """CutMix (Yun et al., ICCV 2019): every second image, at random, gets a random rectangle of another one.

    A rectangle too long for the image is cut to its side, where the released code would draw again.
    """
    share, aspect, chance = torch.rand(3, count, generator=generator, device=generator.device)
    area = (CUT_SHARE[0] + share * (CUT_SHARE[1] - CUT_SHARE[0])) * size[0] * size[1]
    aspect = CUT_ASPECT[0] + aspect * (CUT_ASPECT[1] - CUT_ASPECT[0])
    heights = (area * aspect).sqrt().round().clamp(1, size[0])
    widths = (area / aspect).sqrt().round().clamp(1, size[1])
    inside = draw_rectangles(heights, widths, size=size, generator=generator)
    return Paste(draw_partners(count, generator=generator), inside & (chance < CUT_PROBABILITY)[:, None, None])
