"""Bidirectional copy-paste, BCP (Bai et al., CVPR 2023, section 3): labelled and unlabelled images carry each other.

First labelled images are pasted into each other. Then, for a labelled image L, an unlabelled one U and a rectangle of
2/3 of both sides at a random place,

    a = L inside the rectangle, U outside        b = U inside, L outside

and the student learns a and b, each part against its own labels: L's are true, U's are the EMA teacher's, of which the
largest component of each class is believed; U's part weighs half.

Three choices of ours. a and b share both images, so every pixel of either is seen once and U's answer can be put together
from the two. Components that are not the largest are ignored, where the released code calls them background: a slice may
show two kidneys. And a and b are averaged, not added, so that "supervised" is of the size it has elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from scipy.ndimage import label
from torch import Tensor, nn

from strategies.networks import class_map, probabilities
from strategies.semi import losses
from strategies.semi.batch import Batch, Outcome, Time
from strategies.semi.losses import IGNORE
from strategies.semi.mixing import Paste, draw_partners, draw_rectangles, paste

PRETRAINING = 0.2
"""Share of the run in which labelled images alone are mixed; the released code has 10 000 of 40 000 steps."""
SIDE = 2 / 3
UNLABELLED_WEIGHT = 0.5
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def terms(
    batch: Batch, student: nn.Module, helpers: Mapping[str, nn.Module], *, time: Time, generator: torch.Generator
) -> Outcome:
    """Loss of the labelled parts and, after the pre-training, 0.5 · loss of the unlabelled parts.

    Where the batches differ in size the smaller one is gone through again, so that every image is in a pair.
    """
    view = batch.student_view()
    if view is None or batch.unlabelled is None:
        images, labels = mixed_labelled(batch, generator=generator)
        return Outcome(losses={"supervised": batch.loss(student(images), labels)})
    if time.progress < PRETRAINING:
        images, labels = mixed_labelled(batch, generator=generator)
        labelled, unlabelled = student(torch.cat([images, view])).split([len(images), len(view)])
        guess = partial(probabilities, helpers["teacher"], batch.unlabelled)
        return Outcome({"supervised": batch.loss(labelled, labels)}, unlabelled, guess)

    probs = probabilities(helpers["teacher"], batch.unlabelled)
    count = max(len(batch.images), len(view))
    ours, theirs = torch.arange(count) % len(batch.images), torch.arange(count) % len(view)
    inside = rectangles(count, view, generator=generator)
    true, guessed = batch.labels[ours], pseudo_labels(probs, batch)[theirs]
    nothing = torch.full_like(true, IGNORE)
    a = paste(batch.images[ours], view[theirs], inside)
    b = paste(view[theirs], batch.images[ours], inside)
    logits = student(torch.cat([a, b]))
    of_labelled = torch.cat([paste(true, nothing, inside), paste(nothing, true, inside)])
    of_unlabelled = torch.cat([paste(nothing, guessed, inside), paste(guessed, nothing, inside)])
    of_a, of_b = logits.split(count)
    return Outcome(
        losses={
            "supervised": batch.loss(logits, of_labelled),
            "consistency": UNLABELLED_WEIGHT * losses.supervised(logits, of_unlabelled),
        },
        logits_unlabelled=paste(of_b, of_a, inside)[: len(view)],
        guess=lambda: probs,
    )


def mixed_labelled(batch: Batch, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Labelled images (Bl, K, H, W) with a rectangle of another one each, and their labels (Bl, H, W) alike."""
    inside = rectangles(len(batch.images), batch.images, generator=generator)
    pasted = Paste(draw_partners(len(batch.images), generator=generator), inside)
    return pasted.apply(batch.images), pasted.apply(batch.labels)


def rectangles(count: int, images: Tensor, *, generator: torch.Generator) -> Tensor:
    """(count, H, W) bool on the device of `images` (_, K, H, W): rectangles of 2/3 of the sides, rounded down."""
    height, width = images.shape[-2:]
    heights, widths = torch.full((count,), int(height * SIDE)), torch.full((count,), int(width * SIDE))
    return draw_rectangles(heights, widths, size=(height, width), generator=generator).to(images.device)


def pseudo_labels(probs: Tensor, batch: Batch) -> Tensor:
    """(Bu, H, W) int64 in the student's view: the class of probabilities (Bu, C + 1, H, W) of the original frame.

    IGNORE outside of the image and in all components of a class but its largest.
    """
    labels = largest_components(class_map(probs))
    if batch.warp is None:
        return labels
    return batch.warp.labels(labels, outside=IGNORE).where(batch.warp.valid.to(labels.device), IGNORE)


def largest_components(labels: Tensor) -> Tensor:
    """Class maps (B, H, W) int64, with IGNORE for all but the largest 8-connected component of each foreground class."""
    maps = labels.cpu().numpy().copy()
    for classes in maps:
        for class_ in np.unique(classes[classes > 0]):
            components, found = label(classes == class_, structure=_EIGHT_NEIGHBOURS)
            if found > 1:
                largest = 1 + np.bincount(components.ravel())[1:].argmax()
                classes[(components > 0) & (components != largest)] = IGNORE
    return torch.from_numpy(maps).to(labels.device)
