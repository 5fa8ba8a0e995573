"""What the small SAM is taught: prompts for objects in synthetic scenes, and losses for the answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from simulation.sam_shapes import OBJECTS, Scenes

POINTS = 3
"""Clicks in a prompt: at most one inside and two outside, fewer where a draw leaves some out."""

MIN_AREA_PX = 12
"""Objects of which less is seen are not asked for."""

MIN_SEEN = 0.6
"""Nor those of which a smaller share is seen: scraps behind other objects, which no expert would outline."""


@dataclass(frozen=True)
class Asked:
    """Prompts and what they ask for, in pixels of the scene.

    Attributes:
        image_index: (P,) int64, the scene of each prompt.
        masks: (P, S, S) float32 of 0 and 1, the object meant.
        boxes: (P, 4); points: (P, POINTS, 2); point_labels: (P, POINTS), as `strategies.sam_parts.predict` takes them.
    """

    image_index: Tensor
    masks: Tensor
    boxes: Tensor
    points: Tensor
    point_labels: Tensor

    def select(self, chosen: Tensor) -> Asked:
        """Those that `chosen` (P,) bool names."""
        return Asked(*(getattr(self, field.name)[chosen] for field in fields(self)))


def asks_anything(scenes: Scenes) -> bool:
    """Whether any scene shows an object large enough to ask for."""
    return bool(_worth_asking(scenes).any())


def _worth_asking(scenes: Scenes) -> Tensor:
    """(B, OBJECTS) bool: objects of which enough is seen."""
    area = F.one_hot(scenes.labels, OBJECTS + 1).sum((1, 2))[:, 1:]
    return (area >= MIN_AREA_PX) & (scenes.seen >= MIN_SEEN)


def ask(scenes: Scenes, generator: Generator, *, prompts_per_image: int) -> Asked:
    """Draw objects from each scene that has any, with replacement, and a prompt for each; one scene must have some."""
    side = scenes.labels.shape[-1]
    weights = _worth_asking(scenes).float()
    images = torch.nonzero(weights.any(1)).flatten()
    picked = torch.multinomial(weights[images], prompts_per_image, replacement=True, generator=generator).flatten()
    image_index = images.repeat_interleave(prompts_per_image)
    masks = (scenes.labels[image_index] == (picked + 1)[:, None, None]).float()
    points, point_labels = _clicks(masks, generator)
    return Asked(image_index, masks, _boxes(masks, generator).clamp(0, side), points, point_labels)


def tight_boxes(masks: Tensor) -> Tensor:
    """(P, 4): left, top, right and bottom edge, in pixels, of masks (P, S, S) of which none is empty."""
    side = masks.shape[-1]
    place = torch.arange(side, device=masks.device)
    edges = []
    for axis in (1, 2):  # over rows: which columns; over columns: which rows
        used = masks.amax(axis) > 0
        edges += [torch.where(used, place, side).amin(1), torch.where(used, place + 1, 0).amax(1)]
    return torch.stack([edges[0], edges[2], edges[1], edges[3]], 1).float()


def _boxes(masks: Tensor, generator: Generator) -> Tensor:
    """Boxes around masks: six in ten tight, two nearly so, two off by an eighth of their side on every edge.

    A box that can't be relied on is what a specialist's prediction gives, and it leaves the picture as the better guide.
    """
    tight = tight_boxes(masks)
    extent = (tight[:, 2:] - tight[:, :2]).repeat(1, 2)
    care = torch.rand(len(masks), 1, generator=generator, device=masks.device)
    spread = torch.where(care < 0.6, 0.0, torch.where(care < 0.8, 0.04, 0.12)) * extent + (care >= 0.6) * 0.8
    outwards = torch.tensor([-1.0, -1.0, 1.0, 1.0], device=masks.device)
    padding = (care >= 0.88) * torch.rand(len(masks), 1, generator=generator, device=masks.device) * 2.5
    noise = torch.randn(tight.shape, generator=generator, device=masks.device).clamp(-2.5, 2.5)
    moved = tight + outwards * padding + spread * noise
    low, high = torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:])
    return torch.cat([low, torch.maximum(high, low + 1)], 1)  # edges of a thin object may have crossed


def _clicks(masks: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """One click inside each mask, rather deep, and two outside near its border; each left out (-1) now and then.

    A cell of 4 × 4 pixels is drawn, then a pixel in it: drawing from all pixels would take sixteen times as long.
    """
    count, side = masks.shape[0], masks.shape[-1]
    cell = 4
    coarse = F.avg_pool2d(masks[:, None], cell)
    depth = coarse * F.avg_pool2d(coarse, 3, stride=1, padding=1) ** 4
    beside = ((F.max_pool2d(coarse, 7, stride=1, padding=3) > 0) & (coarse == 0)).float()
    outside = beside.flatten(1) + 1e-9  # a mask that fills the picture has no outside; its click is left out below
    cells = torch.cat(
        [
            torch.multinomial(depth.flatten(1), 1, replacement=True, generator=generator),
            torch.multinomial(outside, POINTS - 1, replacement=True, generator=generator),
        ],
        dim=1,
    )
    within = torch.randint(cell, (2, count, POINTS), generator=generator, device=masks.device)
    x = cells % (side // cell) * cell + within[0]
    y = torch.div(cells, side // cell, rounding_mode="floor") * cell + within[1]
    spots = y * side + x
    points = torch.stack([x, y], -1).float() + 0.5
    left_out = torch.rand(count, POINTS, generator=generator, device=masks.device) < torch.tensor(
        [0.35, 0.5, 0.5], device=masks.device
    )
    hit = masks.flatten(1).gather(1, spots)
    kind = torch.tensor([1] + [0] * (POINTS - 1), device=masks.device)
    labels = torch.where(left_out | (hit != kind), -1, kind)
    return torch.where((labels >= 0)[..., None], points, 0.0), labels


def corrections(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The click that a patient reader would make next: where the answer is wrong most deeply.

    Args:
        logits: (P, 1, h, w), an answer; masks: (P, S, S), what was meant.

    Returns:
        Points (P, POINTS, 2) and labels (P, POINTS) with one click each, 1 where the object was missed and 0 where too
        much was taken; no click (-1) where the answer is right.
    """
    side = masks.shape[-1]
    answer = F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)[:, 0] > 0
    wrong = (answer != (masks > 0.5)).float()[:, None]
    depth = wrong * (1 + sum(F.avg_pool2d(wrong, size, stride=1, padding=size // 2) for size in (3, 7, 15)))
    deepest, spot = depth.flatten(1).max(1)
    points = masks.new_zeros(len(masks), POINTS, 2)
    points[:, 0] = torch.stack([spot % side, torch.div(spot, side, rounding_mode="floor")], -1) + 0.5
    labels = torch.full((len(masks), POINTS), -1, device=masks.device)
    kind = masks.flatten(1).gather(1, spot[:, None])[:, 0].long()
    labels[:, 0] = torch.where(deepest > 0, kind, -1)
    return points, labels


def sketch_loss(sketch: Tensor, scenes: Scenes) -> Tensor:
    """Loss of what a linear map reads from embeddings: where borders are, and the picture, at half resolution.

    Told by masks alone, a young network finds the box a better guide than the picture and learns to look away from it; this
    keeps the picture in the embedding. The linear map is thrown away in the end.

    Args:
        sketch: (B, 2·k², grid, grid), k² sub-pixels of borders, as logits, then of the picture.
    """
    parts = int(math.sqrt(sketch.shape[1] // 2))
    fine = F.pixel_shuffle(sketch, parts)
    labels = scenes.labels
    edge = torch.zeros_like(labels, dtype=torch.bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[:, :, 1:] |= labels[:, :, 1:] != labels[:, :, :-1]
    ratio = labels.shape[-1] // fine.shape[-1]
    borders = F.max_pool2d(edge[:, None].float(), ratio)[:, 0]
    picture = F.avg_pool2d(scenes.images, ratio)[:, 0]
    found = F.binary_cross_entropy_with_logits(fine[:, 0], borders, pos_weight=fine.new_tensor(4.0))
    return found + 4 * (fine[:, 1] - picture).square().mean()


def grouping_loss(features: Tensor, scenes: Scenes, generator: Generator, *, cells: int = 160) -> Tensor:
    """Loss of telling from features which cells of a picture belong to one object: about 0 when all pairs are told.

    A prompt asks about one object; this asks about all pairs of cells at once, so the encoder learns to group long before
    the decoder has learned to ask. Cosines of pairs within an object are pushed up, those of pairs across a border down;
    cells that hold a border, and pairs of background, don't count.

    Args:
        features: (B, channels, grid, grid), a linear map of the embeddings.
        cells: drawn in each scene, five times as often on objects as on background.
    """
    ratio = scenes.labels.shape[-1] // features.shape[-1]
    labels = scenes.labels.float()[:, None]
    highest, lowest = F.max_pool2d(labels, ratio).flatten(1), -F.max_pool2d(-labels, ratio).flatten(1)
    pure = (highest == lowest).float()
    drawn = torch.multinomial(pure * (1 + 4 * (highest > 0)) + 1e-6, cells, generator=generator)
    unit = F.normalize(features, dim=1).flatten(2).gather(2, drawn[:, None].expand(-1, features.shape[1], -1))
    label, counts = highest.gather(1, drawn), pure.gather(1, drawn) > 0
    cosine = unit.transpose(1, 2) @ unit
    valid = counts[:, :, None] & counts[:, None]
    same = label[:, :, None] == label[:, None]
    within, across = (valid & same & (label[:, :, None] > 0)).float(), (valid & ~same).float()
    attract = (F.softplus(4 - 8 * cosine) * within).sum() / within.sum().clamp(min=1)
    repel = (F.softplus(8 * cosine - 4) * across).sum() / across.sum().clamp(min=1)
    return attract + repel
