"""What a label costs: by hand, and the order that any expert would agree with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from strategies.effort import Effort, boundary_px, changed_share

EFFORT = Effort(image=5.0, slice=1.0, contour=0.5, length_px=0.01)
EMPTY = np.zeros((12, 12), dtype=np.uint8)

masks = arrays(np.uint8, (6, 6), elements=st.integers(0, 2))


def square(size: int, *, class_: int = 1, at: int = 1) -> np.ndarray:
    mask = EMPTY.copy()
    mask[at : at + size, at : at + size] = class_
    return mask


def test_a_square_has_four_sides_and_a_hole_a_boundary_too() -> None:
    inside = square(4) > 0
    assert boundary_px(inside) == 16
    inside[2, 2] = False
    assert boundary_px(inside) == 20
    assert boundary_px(np.ones((2, 3), dtype=bool)) == 10, "the picture's end is a boundary"


def test_minutes_by_hand() -> None:
    """A contour of length 16; two classes are two contours, though they touch; two pieces of one class as well."""
    assert EFFORT.minutes(EMPTY) == 6.0
    assert EFFORT.minutes(EMPTY, opens_image=False) == 1.0
    assert EFFORT.minutes(square(4)) == pytest.approx(6.0 + 0.5 + 0.16)
    two_classes = square(4) + square(2, class_=1, at=2)  # class 2 within class 1, which has a hole of length 8 then
    assert EFFORT.minutes(two_classes, opens_image=False) == pytest.approx(1.0 + 2 * 0.5 + 0.01 * (16 + 8 + 8))
    two_pieces = square(2) + square(2, at=6)
    assert EFFORT.minutes(two_pieces, opens_image=False) == pytest.approx(1.0 + 2 * 0.5 + 0.01 * 16)
    corner = square(2) + square(2, at=3)
    assert EFFORT.minutes(corner, opens_image=False) == pytest.approx(1.0 + 0.5 + 0.01 * 16), "one contour through a corner"


def test_a_proposal_saves_what_it_has_right() -> None:
    """16 pixels drawn, of which the proposal had 12, and nothing else: a quarter of the drawing is left."""
    mask, proposal = square(4), square(4)
    proposal[1] = 0
    assert changed_share(mask, proposal) == 0.25
    assert EFFORT.minutes(mask, proposal=mask, opens_image=False) == 1.0
    assert EFFORT.minutes(mask, proposal=proposal, opens_image=False) == pytest.approx(1.0 + 0.66 / 4)
    assert EFFORT.minutes(EMPTY, proposal=mask, opens_image=False) == 1.0, "what is wrong altogether is deleted with a click"
    half_too_much = square(4) + square(4, at=7)
    assert changed_share(mask, half_too_much) == 0.5
    assert EFFORT.minutes(mask, proposal=half_too_much, opens_image=False) == pytest.approx(1.0 + 2 * 0.66 / 2), "or corrected"
    assert EFFORT.minutes(mask, proposal=EMPTY) == EFFORT.minutes(mask), "an empty proposal saves nothing"


@settings(max_examples=60, deadline=None)
@given(mask=masks, proposal=masks)
def test_the_share_is_one_and_the_cost_never_below_looking(mask: np.ndarray, proposal: np.ndarray) -> None:
    share = changed_share(mask, proposal)
    assert 0 <= share <= 1
    assert (share == 0) == bool((mask == proposal).all())
    minutes = EFFORT.minutes(mask, proposal=proposal, opens_image=False)
    assert 1.0 <= minutes <= EFFORT.minutes(mask, opens_image=False) + 1e-9
