"""UniMatch (Yang et al., CVPR 2023, section 3): sure answers on a weak view teach two strong views and perturbed features.

    L = (L_x + ¼ L_s1 + ¼ L_s2 + ½ L_fp) / 2,  L_· = mean over pixels of 1[max p_w ≥ 0.95] · CE(p_·, argmax p_w)

The weak view is the warped image; the strong views change its intensity, blur it and paste rectangles of other images in
(CutMix); the feature branch drops channels on the way to the decoder. There is no teacher but the student's own answer.

The caller weighs all but L_x with 4 at the start of a run, falling to the paper's 1 at its end. From a few labelled slices
that all show a structure, a network soon sees it everywhere, is sure of it and confirms itself; agreement between views,
which what is false survives less well than what is true, must outweigh the labels while that is decided. It was chosen on
validation patients of federated runs, a gain in the mean that three seeds do not tell from none (`docs/results/semi.md`);
4 throughout loses the structure instead, now and then.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from strategies.networks import feature_dropout, probabilities
from strategies.semi import losses
from strategies.semi.augment import blur, draw_intensity
from strategies.semi.batch import Batch, Outcome, Time
from strategies.semi.losses import IGNORE
from strategies.semi.mixing import draw_cutmix

THRESHOLD = 0.95
FEATURE_DROPOUT = 0.5
STRONG_WEIGHT, FEATURE_WEIGHT = 0.25, 0.5
BLUR_PROBABILITY = 0.5
BLUR_SIGMA_PX = (0.1, 2.0)


def terms(
    batch: Batch, student: nn.Module, helpers: Mapping[str, nn.Module], *, time: Time, generator: torch.Generator
) -> Outcome:
    """The term "supervised" is L_x/2 and "consistency" the rest of L: their sum is L. Without unlabelled images L is L_x.

    One forward pass over labelled, weak and both strong views, a second one for the features.
    """
    if batch.unlabelled is None:
        return Outcome(losses={"supervised": batch.loss(student(batch.images), batch.labels)})
    weak = batch.unlabelled if batch.warp is None else batch.warp.images(batch.unlabelled)
    count, size = len(weak), (weak.shape[-2], weak.shape[-1])
    strong = [strong_view(weak, generator=generator) for _ in range(2)]
    cuts = [draw_cutmix(count, size=size, generator=generator) for _ in range(2)]
    mixed = [cut.apply(view) for cut, view in zip(cuts, strong, strict=True)]
    logits = student(torch.cat([batch.images, weak, *mixed]))
    labelled, on_weak, *on_strong = logits.split([len(batch.images), count, count, count])
    with feature_dropout(student, p=FEATURE_DROPOUT, generator=generator):
        on_dropped = student(weak)

    pseudo = sure_labels(on_weak)
    valid = torch.ones_like(pseudo, dtype=torch.bool) if batch.warp is None else batch.warp.valid.to(pseudo.device)
    on_features = losses.cross_entropy(on_dropped, pseudo, valid)
    on_views = [
        losses.cross_entropy(answer, cut.apply(pseudo), cut.apply(valid)) for cut, answer in zip(cuts, on_strong, strict=True)
    ]
    unsupervised = STRONG_WEIGHT * (on_views[0] + on_views[1]) + FEATURE_WEIGHT * on_features
    return Outcome(
        losses={"supervised": batch.loss(labelled, batch.labels) / 2, "consistency": unsupervised / 2},
        logits_unlabelled=on_weak,
        guess=partial(probabilities, student, batch.unlabelled),
    )


@torch.no_grad()
def sure_labels(logits: Tensor) -> Tensor:
    """(B, H, W) int64: the class of logits (B, C + 1, H, W) where its probability is at least 0.95, else IGNORE.

    Never a zero: that would be background, and teach it wherever the student is unsure.
    """
    confidence, classes = logits.softmax(dim=1).max(dim=1)
    return torch.where(confidence >= THRESHOLD, classes, IGNORE)


def strong_view(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """(B, K, H, W) in [0, 1] to the same: intensity changed more than for a labelled image, every second one blurred."""
    intensity = draw_intensity(images.shape, generator=generator, gamma=2.0, contrast=0.5, brightness=0.25, noise=0.1)
    chance, spread = torch.rand(2, len(images), generator=generator, device=generator.device)
    low, high = BLUR_SIGMA_PX
    sigma = torch.where(chance < BLUR_PROBABILITY, low + (high - low) * spread, 0.0)
    return blur(intensity.images(images), sigma)
