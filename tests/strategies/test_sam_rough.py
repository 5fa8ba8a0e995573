"""Rough masks are about right, never quite, and follow their generator alone."""

import torch

from strategies.sam_losses import true_iou
from strategies.sam_rough import rough_logits


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def discs(count: int, *, side: int = 128) -> torch.Tensor:
    """(count, side, side) of 0 and 1: discs of radius 20 px and more."""
    place = torch.arange(side) + 0.5
    radius = torch.linspace(20, 50, count)[:, None, None]
    return (((place - side / 2) ** 2)[:, None] + (place - side / 2) ** 2 < radius**2).float()


def test_rough_masks_are_about_right_and_never_twice_the_same() -> None:
    masks = discs(64)
    rough = rough_logits(masks, generator(2), side=64)
    assert rough.shape == (64, 1, 64, 64)
    iou = true_iou(rough, masks)
    assert 0.4 < iou.mean() < 0.95
    assert (iou > 0.2).float().mean() > 0.8
    assert iou.std() > 0.02, "some specialists are rougher than others"
    assert torch.equal(rough, rough_logits(masks, generator(2), side=64))
    assert not torch.equal(rough, rough_logits(masks, generator(4), side=64))


def test_how_sure_a_rough_mask_is_varies() -> None:
    rough = rough_logits(discs(64), generator(2), side=64)
    highest = rough.amax((1, 2, 3))
    assert highest.min() > 0
    assert highest.max() > 2 * highest.min()
