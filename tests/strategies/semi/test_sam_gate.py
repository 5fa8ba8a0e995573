"""The gate keeps what it says and nothing else, and each of its questions can be left out alone."""

import pytest
import torch
from torch import Tensor

from strategies.semi.sam_gate import agreement, gate, stability


def square(top: int, left: int, bottom: int, right: int, size: int = 24) -> Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


COMPONENT = square(8, 8, 16, 16)
EMPTY = torch.zeros(24, 24, dtype=torch.bool)


def test_agreement_is_dice() -> None:
    a, b = square(0, 0, 4, 4), square(0, 2, 4, 6)
    masks, components = torch.stack([a, a, EMPTY, a]), torch.stack([a, b, EMPTY, EMPTY])
    assert agreement(masks, components).tolist() == pytest.approx([1, 0.5, 1, 0])


def test_stability_is_iou_and_nothing_is_not_stable() -> None:
    a, b = square(0, 0, 4, 4), square(0, 2, 4, 6)
    assert stability(torch.stack([a, a, EMPTY]), torch.stack([a, b, EMPTY])).tolist() == pytest.approx([1, 1 / 3, 0])


@pytest.mark.parametrize(
    ("iou", "answer", "moved", "kept"),
    [
        (0.70, COMPONENT, COMPONENT, True),
        (0.69, COMPONENT, COMPONENT, False),
        (0.99, square(4, 4, 20, 20), square(4, 4, 20, 20), False),  # Dice 2·64/(64+256) = 0.4
        (0.99, square(8, 8, 16, 12), square(8, 8, 16, 12), True),  # 2·32/(64+32) = 0.67
        (0.99, square(0, 0, 4, 4), square(0, 0, 4, 4), False),
        (0.99, COMPONENT, square(8, 8, 16, 14), False),  # IoU 48/64 = 0.75
        (0.99, COMPONENT, square(8, 8, 16, 15), True),  # 56/64 = 0.875
        (0.99, EMPTY, EMPTY, False),
    ],
)
def test_the_gate_keeps_what_it_says_and_nothing_else(iou: float, answer: Tensor, moved: Tensor, kept: bool) -> None:
    got = gate(
        answer[None],
        COMPONENT[None],
        torch.tensor([iou]),
        moved[None],
        min_iou=0.7,
        min_agreement=0.6,
        min_stability=0.8,
    )
    assert got.tolist() == [kept]


def test_what_is_asked_for_exactly_is_enough() -> None:
    half, third = square(0, 0, 4, 4), square(0, 2, 4, 6)  # Dice 16/32, IoU 8/24 with each other
    asked = {"min_iou": 0.5, "min_agreement": 0.5, "min_stability": 1 / 3}
    assert gate(half[None], third[None], torch.tensor([0.5]), third[None], **asked).tolist() == [True]


@pytest.mark.parametrize("left_out", ["min_iou", "min_agreement", "min_stability"])
def test_each_question_can_be_left_out_alone(left_out: str) -> None:
    """Three masks that each fail one question only: leaving that one out keeps its mask and no other."""
    answers = torch.stack([COMPONENT, square(0, 0, 4, 4), COMPONENT])
    moved = torch.stack([COMPONENT, square(0, 0, 4, 4), square(8, 8, 12, 12)])
    iou = torch.tensor([0.1, 0.9, 0.9])
    asked = {"min_iou": 0.5, "min_agreement": 0.5, "min_stability": 0.5}
    components = COMPONENT.expand(3, -1, -1)
    assert gate(answers, components, iou, moved, **asked).tolist() == [False] * 3
    got = gate(answers, components, iou, moved, **{**asked, left_out: 0.0})
    assert got.tolist() == [question == left_out for question in asked]


def test_with_every_question_left_out_all_but_empty_masks_are_kept() -> None:
    answers = torch.stack([COMPONENT, square(0, 0, 4, 4), EMPTY])
    got = gate(answers, COMPONENT.expand(3, -1, -1), torch.zeros(3), min_iou=0, min_agreement=0)
    assert got.tolist() == [True, True, False]


def test_stability_without_a_second_answer_is_a_slip() -> None:
    with pytest.raises(ValueError, match="jittered"):
        gate(COMPONENT[None], COMPONENT[None], torch.ones(1), min_iou=0, min_agreement=0, min_stability=0.5)


def test_no_masks_keep_none() -> None:
    nothing = torch.zeros(0, 24, 24, dtype=torch.bool)
    got = gate(nothing, nothing, torch.zeros(0), nothing, min_iou=0.7, min_agreement=0.6, min_stability=0.8)
    assert got.tolist() == []
