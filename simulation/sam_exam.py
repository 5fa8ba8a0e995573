"""Marks a small SAM on fixed scenes that it never learns from, beside guesses that need no image.

Each object in the scenes is asked for by its tight box; then one click where the answer is wrong most deeply, with the
first answer as mask prompt, must make it better. The box itself and the ellipse in it are the guesses: a SAM below
the ellipse knows less about the picture than the box does. Real structures lie between rings and crescents (ellipse
.65) and discs (ellipse .95); so do these.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from simulation.sam_lessons import Asked, ask, corrections, tight_boxes
from simulation.sam_shapes import Scenes, draw
from strategies.sam_parts import SIZES, Parts, predict, to_pixels

SEED = 2**40
"""Beyond every seed that a lesson is drawn from."""

SCENES = 48
EASE = 0.6
PROMPTS_PER_SCENE = 4


@dataclass(frozen=True)
class Marks:
    """Mean Dice, on the scenes' own grid, of guesses and answers.

    Attributes:
        box, ellipse: of the tight box, and of the ellipse in it.
        boxed: of the answer to the tight box.
        blind: of the answer to the tight box about the picture of another scene: what of `boxed` no picture was needed for.
        corrected: of the answer to that box, one click and the first answer.
        clicked: of the best of three answers to one click inside.
    """

    box: float
    ellipse: float
    boxed: float
    blind: float
    corrected: float
    clicked: float

    def __str__(self) -> str:
        return (
            f"validation Dice: box {self.box:.3f}, ellipse {self.ellipse:.3f}, SAM with the box {self.boxed:.3f} "
            f"({self.blind:.3f} about another picture), "
            f"one click later {self.corrected:.3f}, with a click alone {self.clicked:.3f}"
        )


@dataclass(frozen=True)
class Answers:
    """What a SAM answered; masks are (P, S, S) bool on the scenes' grid."""

    scenes: Scenes
    asked: Asked
    boxed: Tensor
    corrected: Tensor
    clicked: Tensor


def questions(*, side: int, device: str) -> tuple[Scenes, Asked]:
    """The same scenes and objects in every exam, each object with its tight box and one click inside."""
    generator = Generator(device=device).manual_seed(SEED)
    scenes = draw(generator, batch=SCENES, side=side, ease=EASE)
    asked = ask(scenes, generator, prompts_per_image=PROMPTS_PER_SCENE)
    clicks, labels = asked.points.clone(), asked.point_labels.clone()
    missing = labels[:, 0] == -1
    clicks[missing, 0] = _any_pixel_of(asked.masks[missing])
    labels[:, 0], labels[:, 1:] = 1, -1
    return scenes, Asked(asked.image_index, asked.masks, tight_boxes(asked.masks), clicks, labels)


@torch.no_grad()
def examine(parts: Parts, *, side: int) -> tuple[Marks, Answers]:
    """Mark `parts` on scenes of `side` pixels, which must be the encoder's own: prompts are told in pixels of its input."""
    device = next(parts.parameters()).device
    scenes, asked = questions(side=side, device=str(device))
    embeddings = parts.image_encoder(to_pixels(scenes.images, SIZES["small"]))[asked.image_index]
    nothing = torch.full_like(asked.point_labels, -1)
    first, _ = predict(parts, embeddings, boxes=asked.boxes, points=asked.points, point_labels=nothing)
    others = embeddings.roll(PROMPTS_PER_SCENE, 0)
    unseen, _ = predict(parts, others, boxes=asked.boxes, points=asked.points, point_labels=nothing)
    clicks, labels = corrections(first[:, :1], asked.masks)
    second, _ = predict(parts, embeddings, boxes=asked.boxes, points=clicks, point_labels=labels, mask_logits=first[:, :1])
    third, rating = predict(parts, embeddings, boxes=None, points=asked.points, point_labels=asked.point_labels)
    best = (1 + rating[:, 1:].argmax(1))[:, None, None, None].expand(-1, 1, *third.shape[2:])
    boxed, blind, corrected, clicked = (
        torch.nn.functional.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)[:, 0] > 0
        for logits in (first[:, :1], unseen[:, :1], second[:, :1], third.gather(1, best))
    )
    answers = Answers(scenes, asked, boxed, corrected, clicked)
    guesses = (filled(asked.boxes, side), ellipses(asked.boxes, side), boxed, blind, corrected, clicked)
    return Marks(*(float(dice(mask, asked.masks > 0.5).mean()) for mask in guesses)), answers


def dice(masks: Tensor, truth: Tensor) -> Tensor:
    """(P,): 2·|M ∩ T| / (|M| + |T|) of masks (P, S, S) bool; no truth is empty."""
    return 2 * (masks & truth).sum((1, 2)) / (masks.sum((1, 2)) + truth.sum((1, 2)))


def filled(boxes: Tensor, side: int) -> Tensor:
    """Boxes (P, 4), in pixels, as masks (P, side, side): pixels whose centre is inside."""
    across, along = _from_centre(boxes, side)
    return (across.abs() <= 1) & (along.abs() <= 1)


def ellipses(boxes: Tensor, side: int) -> Tensor:
    """The ellipses that touch boxes' (P, 4) four sides, as masks (P, side, side)."""
    across, along = _from_centre(boxes, side)
    return across.square() + along.square() <= 1


def _from_centre(boxes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """x as (P, 1, side) and y as (P, side, 1), 0 at the centre of each box and ±1 at its edges."""
    place = torch.arange(side, device=boxes.device) + 0.5
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    x, y = ((place - middle[:, axis, None]) / half[:, axis, None] for axis in (0, 1))
    return x[:, None, :], y[:, :, None]


def _any_pixel_of(masks: Tensor) -> Tensor:
    """(P, 2): x and y of a pixel of each mask (P, S, S), the middle one in reading order."""
    side = masks.shape[-1]
    count = masks.flatten(1).cumsum(1)
    place = torch.searchsorted(count, (count[:, -1:] / 2).ceil()).flatten()
    return torch.stack([place % side, torch.div(place, side, rounding_mode="floor")], -1).float() + 0.5
