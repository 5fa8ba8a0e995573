"""What a label costs an expert, in minutes, by a model that is stated rather than measured.

    minutes = opening the image, once for all its slices that are asked for together
            + looking at the slice
            + drawing: so much a contour and so much a pixel of its length,
              times the share of pixels that a proposal had wrong, where there was one

So a slice without a structure is cheap, a volume is cheaper than its slices one by one, and a good proposal saves most of the
drawing but never the looking; a poor one is thrown away and costs nothing more. Curves against minutes compare strategies
that ask for easy cases with those that ask for hard ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import generate_binary_structure, label

_TOUCHING = generate_binary_structure(2, 2)
"""Pixels that share a corner are one contour."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Minutes for each part of the work; all at least 0."""

    image: float = 0.5
    slice: float = 0.1
    contour: float = 0.1
    length_px: float = 0.0025

    def minutes(self, mask: NDArray[np.uint8], *, proposal: NDArray[np.uint8] | None = None, opens_image: bool = True) -> float:
        """Of one slice's label.

        Args:
            mask: (rows, columns), what the expert gave; 0 is background.
            proposal: the same, what the expert began with; None where the slice was empty.
            opens_image: whether it is the first slice of its image that is asked for at a time.
        """
        drawing = self.drawing(mask)
        if proposal is not None:  # a poor one is deleted with a click, and drawn anew
            drawing = min(drawing, max(drawing, self.drawing(proposal)) * changed_share(mask, proposal))
        return opens_image * self.image + self.slice + drawing

    def drawing(self, mask: NDArray[np.uint8]) -> float:
        """Minutes for the contours of a mask (rows, columns) alone."""
        minutes = 0.0
        for class_ in np.unique(mask[mask > 0]):
            of_class = mask == class_
            minutes += self.contour * label(of_class, _TOUCHING)[1] + self.length_px * boundary_px(of_class)
        return minutes


def boundary_px(inside: NDArray[np.bool_]) -> int:
    """The length of a region's boundary, holes included: pixel edges between inside and outside or the picture's end."""
    padded = np.pad(inside, 1)
    return int((padded[1:] != padded[:-1]).sum() + (padded[:, 1:] != padded[:, :-1]).sum())


def changed_share(mask: NDArray[np.uint8], proposal: NDArray[np.uint8]) -> float:
    """Pixels that an expert changed, over those that either shows a structure in: in [0, 1], 0 where both are empty."""
    either = int(((mask > 0) | (proposal > 0)).sum())
    return int((mask != proposal).sum()) / either if either else 0.0
