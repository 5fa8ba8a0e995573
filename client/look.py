"""What the models at a site say of its cases, batch by batch: what every query strategy begins from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from client.plan import Plan
from client.predict import BATCH, batches
from client.preprocess import inside
from client.sam import load_sam
from client.sam_cache import EmbeddingCache
from client.site import Site, Slices, own_channels
from strategies.networks import forward_traced
from strategies.query.strategy import Model, Seen, Strategy
from strategies.records import Case

Looked = tuple[Sequence[Case], Seen]


def looks(
    site: Site,
    plan: Plan,
    slices: Slices,
    cases: Sequence[Case],
    *,
    strategy: Strategy,
    models: Mapping[Model, nn.Module],
    labelled_pixels: Sequence[float],
) -> Iterator[Looked]:
    """The cases in order, a batch at a time, as `models` see them, and as SAM embeds them where the strategy asks for that.

    Strategies that compare passes have dropout; it draws from torch's generator, which the caller seeds.
    """
    cache = None
    if strategy.embeds:
        sam = load_sam(site.settings.sam_checkpoint, device=site.device)
        cache = EmbeddingCache(site.workspace / "cache" / "sam", sam)
    for part, images in batches(slices, cases, device=site.device):
        pixels = _inside(slices, part, side=images.shape[-1])
        embedding = None
        if cache is not None:
            own = own_channels(images, plan.preprocess)
            embedding = _pooled(cache.embeddings([case.id for case in part], own), pixels.to(site.device))
        yield part, _seen(models, images, pixels, passes=strategy.passes, labelled_pixels=labelled_pixels, embedding=embedding)


def class_pixels(slices: Slices, cases: Sequence[Case], *, classes: int) -> NDArray[np.float64]:
    """(N, C+1) pixels of each class in the masks that experts gave of N labelled cases, background first, padding left out.

    On the network's grid, as predictions are counted, so that the two can be added up.
    """
    counts = np.zeros((len(cases), classes + 1))
    for start in range(0, len(cases), BATCH):
        some = cases[start : start + BATCH]
        masks = slices.labels(some)
        pixels = _inside(slices, some, side=masks.shape[-1])
        for class_ in range(classes + 1):
            counts[start : start + BATCH, class_] = ((masks == class_) & pixels).sum((1, 2)).numpy()
    return counts


def _seen(
    models: Mapping[Model, nn.Module],
    images: Tensor,
    pixels: Tensor,
    *,
    passes: int,
    labelled_pixels: Sequence[float],
    embedding: Tensor | None,
) -> Seen:
    logits: dict[Model, Tensor] = {}
    features: dict[Model, Tensor] = {}
    taken: dict[Model, Tensor] = {}
    kernel_px = 1
    for name, network in models.items():
        network.train(passes > 1)  # only dropout behaves differently; no network here has BatchNorm
        for number in range(passes):
            traced = forward_traced(network, images)
            if number == 0:
                logits[name] = traced.logits.new_empty(passes, *traced.logits.shape)
            logits[name][number] = traced.logits  # each to its place while it is still in the processor's cache
        features[name], taken[name], kernel_px = traced.features, traced.taken, traced.kernel_px
    return Seen(pixels.to(images.device), logits, features, taken, tuple(labelled_pixels), kernel_px, embedding)


def _inside(slices: Slices, cases: Sequence[Case], *, side: int) -> Tensor:
    """(B, side, side) bool: where the image is, and not its padding."""
    pixels = torch.zeros(len(cases), side, side, dtype=torch.bool)
    for row, case in enumerate(cases):
        rows, columns = inside(slices.image(case.image).place)
        pixels[row, rows, columns] = True
    return pixels


def _pooled(embeddings: Tensor, pixels: Tensor) -> Tensor:
    """(B, channels): the mean over the cells that the image covers; padding would make cases alike that share it."""
    covered = functional.adaptive_avg_pool2d(pixels[:, None].float(), (embeddings.shape[-2], embeddings.shape[-1]))
    return (embeddings.float() * covered).sum((2, 3)) / covered.sum((2, 3)).clamp(min=1e-6)
