"""From a specialist's prediction to prompts for SAM: where it believes an object lies, and nothing about what is true.

For each foreground class the pixels where that class wins are split into connected components; each that is large
enough becomes one prompt: a box a little larger than it, clicks deep inside it, and clicks outside it, near its border,
where the specialist is sure that the class is not. No label and no ground truth come in, so none can leak out.

Source: SemiSAM (Zhang et al., arXiv 2312.06316). Its released code hands the background's probability on as
foreground, so that every prompt covers the whole image; here channel 0 is background and never becomes a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, label
from torch import Tensor

from strategies.networks import class_map

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Prompts:
    """P prompts for a batch of B images of H × W pixels; an image may have none or many.

    Positions are x (to the right) and y (down) in pixels, where the pixel in row r and column c covers [c, c + 1] ×
    [r, r + 1]: its centre is (c + 0.5, r + 0.5), and `points[..., 0].long()` is its column.

    Attributes:
        image_index: (P,) int64, which image of the batch, in rising order.
        class_index: (P,) int64, 1..C.
        boxes: (P, 4) float32: left, top, right, bottom.
        points: (P, N, 2) float32; N is the same for every prompt, so that a prompt's answer can't depend on its
            neighbours.
        point_labels: (P, N) int64: 1 inside, 0 outside, -1 no point (its position is 0).
        components: (P, H, W) bool: the component that the prompt was made from.
    """

    image_index: Tensor
    class_index: Tensor
    boxes: Tensor
    points: Tensor
    point_labels: Tensor
    components: Tensor

    def __len__(self) -> int:
        return int(self.image_index.shape[0])

    def select(self, chosen: Tensor) -> Prompts:
        """Those prompts that `chosen` (a bool mask or indices) names."""
        return Prompts(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def followed_by(self, others: Prompts) -> Prompts:
        """These prompts, then others about the same images with as many clicks: no longer in the order of images."""
        return Prompts(*(torch.cat([getattr(self, field.name), getattr(others, field.name)]) for field in fields(self)))

    def to(self, device: torch.device | str) -> Prompts:
        """The same prompts on another device."""
        return Prompts(*(getattr(self, field.name).to(device) for field in fields(self)))


def jittered(prompts: Prompts, *, size: tuple[int, int], generators: Sequence[torch.Generator], share: float = 0.05) -> Prompts:
    """The same prompts moved a little: each edge of a box, and each click, by up to `share` of the box's side or 1 px.

    Args:
        size: (H, W) of the images; nothing moves beyond their border.
        generators: the only randomness, one for each image of the batch, so that how an image's prompts move does not depend
            on the others; may live on the CPU for prompts on a GPU, and be one and the same.
    """
    height, width = size
    sides = prompts.boxes[:, 2:] - prompts.boxes[:, :2]
    reach = (share * sides).clamp(min=1.0)
    count = 2 + prompts.points.shape[1]  # two corners and the clicks
    drawn, of = torch.zeros(len(prompts), count, 2), prompts.image_index.cpu()
    assert not len(prompts) or int(of.max()) < len(generators), "an image without a generator"
    for image, generator in enumerate(generators):
        own = of == image
        drawn[own] = torch.rand(int(own.sum()), count, 2, generator=generator, device=generator.device).cpu()
    moves = (2 * drawn.to(reach) - 1) * reach[:, None]
    highest = torch.tensor([width, height], dtype=torch.float32, device=prompts.boxes.device)
    boxes = (prompts.boxes + moves[:, :2].flatten(1)).clamp(min=0).minimum(highest.repeat(2))
    points = (prompts.points + moves[:, 2:]).clamp(min=0).minimum(highest)
    points = torch.where((prompts.point_labels >= 0)[..., None], points, prompts.points)
    return replace(prompts, boxes=boxes, points=points)


def mask_prompts(prompts: Prompts, probs: Tensor, *, margin_px: int = 8, bound: float = 8.0) -> Tensor:
    """What the prediction says of each prompt's object, as logits (P, H, W): a coarse mask for SAM to refine.

    The log odds of the class, within ± `bound`, in the prompt's box and up to `margin_px` around it; -`bound` elsewhere,
    where other objects of the class may lie.

    Args:
        probs: (B, C+1, H, W), the prediction that the prompts were made from.
    """
    height, width = probs.shape[2:]
    chosen = probs[prompts.image_index, prompts.class_index]
    logits = torch.logit(chosen, eps=1e-6).clamp(-bound, bound)
    x = torch.arange(width, device=probs.device) + 0.5
    y = torch.arange(height, device=probs.device) + 0.5
    boxes = prompts.boxes
    columns = (x >= boxes[:, :1] - margin_px) & (x <= boxes[:, 2:3] + margin_px)
    rows = (y >= boxes[:, 1:2] - margin_px) & (y <= boxes[:, 3:] + margin_px)
    return torch.where(rows[:, :, None] & columns[:, None, :], logits, -bound)


@dataclass(frozen=True)
class _Prompt:
    image: int
    class_: int
    box: tuple[int, int, int, int]
    points: NDArray[np.float32]
    labels: NDArray[np.int64]
    component: NDArray[np.bool_]


@dataclass(frozen=True)
class _How:
    padding_px: int
    positives: int
    negatives: int
    border_px: int
    confidence: float


@torch.no_grad()
def prompts_from(
    probs: Tensor,
    *,
    min_area_px: int = 16,
    max_components: int = 2,
    padding_px: int = 2,
    positives: int = 1,
    negatives: int = 2,
    border_px: int = 8,
    confidence: float = 0.9,
) -> Prompts:
    """Prompts for every class and connected component of a prediction.

    Args:
        probs: (B, C+1, H, W) probabilities over background and C classes, summing to 1 over channels.
        min_area_px: smaller components are dropped: specks are the specialist's noise.
        max_components: largest components kept for each image and class.
        padding_px: how far each edge of the box lies outside the component's own; clipped at the image's border.
        positives: clicks inside: the deepest point, then the deepest far from those before.
        negatives: clicks outside, spread around the component.
        border_px: a click outside lies at most this far from the component.
        confidence: a click outside needs at least this probability that its pixel is *not* of the class (background
            or another class); where no pixel near the border has it, the click is left out (-1).

    Returns:
        Prompts on the device of `probs`, ordered by image, class and falling size. The images of a batch don't
        influence each other, so permuting them permutes the prompts.

    Raises:
        ValueError: `probs` is no batch of probabilities (logits, for instance).
    """
    _check(probs)
    classes = class_map(probs).to("cpu", torch.uint8).numpy()
    values = probs.float().cpu().numpy()
    how = _How(padding_px, positives, negatives, border_px, confidence)
    found = [
        _Prompt(image, class_, *_asked(component, values[image, class_], how), component)
        for image in range(len(classes))
        for class_ in range(1, probs.shape[1])
        for component in _components(classes[image] == class_, min_area_px, max_components)
    ]
    return _stack(found, points=positives + negatives, size=classes.shape[1:], device=probs.device)


def _check(probs: Tensor) -> None:
    if probs.ndim != 4 or probs.shape[1] < 2:
        raise ValueError(f"prompts need (B, C+1, H, W) probabilities of background and classes, not {tuple(probs.shape)}")
    total = probs.sum(1)
    if probs.numel() and not (bool((probs >= 0).all()) and bool((total - 1).abs().amax() < 1e-2)):
        raise ValueError("prompts need probabilities that sum to 1 over channels: apply softmax to logits first")


def _components(mask: NDArray[np.bool_], min_area_px: int, most: int) -> Iterator[NDArray[np.bool_]]:
    """Connected components (8 neighbours) of at least `min_area_px`, largest first; ties go to the upper left."""
    if not mask.any():
        return
    labels, _ = label(mask, structure=_EIGHT_NEIGHBOURS)
    areas = np.bincount(labels.ravel())[1:]
    for number in np.argsort(-areas, kind="stable")[:most]:
        if areas[number] >= min_area_px:
            yield labels == number + 1


def _asked(
    component: NDArray[np.bool_], prob: NDArray[np.float32], how: _How
) -> tuple[tuple[int, int, int, int], NDArray[np.float32], NDArray[np.int64]]:
    """Box, points and their labels for one component (H, W), given the probability of its class (H, W)."""
    height, width = component.shape
    rows, columns = np.flatnonzero(component.any(1)), np.flatnonzero(component.any(0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    reach = how.border_px + 1  # all that clicks depend on lies in this window: distances are cheap there
    first_row, first_column = max(top - reach, 0), max(left - reach, 0)
    window = slice(first_row, bottom + reach), slice(first_column, right + reach)
    inside = _deepest(component[window], how.positives)
    outside = _around(component[window], 1 - prob[window] >= how.confidence, how.negatives, how.border_px)
    points = np.zeros((how.positives + how.negatives, 2), np.float32)
    labels = np.full(how.positives + how.negatives, -1, np.int64)
    for first, spots, kind in ((0, inside, 1), (how.positives, outside, 0)):
        for place, (row, column) in enumerate(spots, start=first):
            points[place] = first_column + column + 0.5, first_row + row + 0.5
            labels[place] = kind
    pad = how.padding_px
    box = max(left - pad, 0), max(top - pad, 0), min(right + pad, width), min(bottom + pad, height)
    return box, points, labels


def _deepest(component: NDArray[np.bool_], count: int) -> list[tuple[int, int]]:
    """Pixels of the component farthest from its outside, each next one as deep as can be but far from those before."""
    depth = distance_transform_edt(np.pad(component, 1))[1:-1, 1:-1]
    spots: list[tuple[int, int]] = []
    rows, columns = np.indices(component.shape)
    while len(spots) < count and depth.max() > 0:
        row, column = (int(i) for i in np.unravel_index(int(depth.argmax()), depth.shape))
        spots.append((row, column))
        depth = np.where((rows - row) ** 2 + (columns - column) ** 2 <= depth[row, column] ** 2, 0, depth)
    return spots


def _around(component: NDArray[np.bool_], sure: NDArray[np.bool_], count: int, border_px: int) -> list[tuple[int, int]]:
    """Pixels outside the component that are `sure`, 2 to `border_px` px from it, as far from each other as possible."""
    distance = distance_transform_edt(~component)
    candidates = np.argwhere(sure & (distance >= 2) & (distance <= border_px))
    if not len(candidates) or not count:
        return []
    ideal = (2 + border_px) / 2
    first = int(np.abs(distance[tuple(candidates.T)] - ideal).argmin())
    spots = [first]
    apart = np.full(len(candidates), np.inf)
    while len(spots) < min(count, len(candidates)):
        apart = np.minimum(apart, np.square(candidates - candidates[spots[-1]]).sum(1))
        spots.append(int(apart.argmax()))
    return [(int(row), int(column)) for row, column in candidates[spots]]


def _stack(found: list[_Prompt], *, points: int, size: tuple[int, ...], device: torch.device) -> Prompts:
    count = len(found)

    def tensor(values: list[NDArray[np.generic]], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        stacked = np.stack(values) if values else np.zeros((0, *shape))
        return torch.from_numpy(stacked).to(device=device, dtype=dtype)

    return Prompts(
        image_index=torch.tensor([p.image for p in found], dtype=torch.int64, device=device),
        class_index=torch.tensor([p.class_ for p in found], dtype=torch.int64, device=device),
        boxes=torch.tensor([p.box for p in found], dtype=torch.float32, device=device).reshape(count, 4),
        points=tensor([p.points for p in found], (points, 2), torch.float32),
        point_labels=tensor([p.labels for p in found], (points,), torch.int64),
        components=tensor([p.component for p in found], size, torch.bool),
    )
