"""Cross pseudo supervision, CPS (Chen et al., CVPR 2021, section 3): two networks, each the other's teacher.

    consistency = CE(p1, argmax p2) + CE(p2, argmax p1), over the labelled images plus over the unlabelled ones

Student and peer differ in their initial weights alone and see the same view of an image. Both learn from the labels, and
in a federation both are averaged over the sites.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from strategies.networks import class_map, mean_probabilities
from strategies.semi import losses
from strategies.semi.batch import Batch, Outcome, Time


def terms(
    batch: Batch, student: nn.Module, helpers: Mapping[str, nn.Module], *, time: Time, generator: torch.Generator
) -> Outcome:
    """Both networks' supervised losses, added, and both directions of the cross supervision, added.

    Each network's gradient comes from its own summands alone. Without unlabelled images the networks still teach each
    other on the labelled ones, as in the paper.
    """
    peer = helpers["second"]
    view, of_labelled = batch.student_view(), len(batch.images)
    images = batch.images if view is None else torch.cat([batch.images, view])
    mine, theirs = student(images), peer(images)
    supervised = batch.loss(mine[:of_labelled], batch.labels) + batch.loss(theirs[:of_labelled], batch.labels)
    consistency = crossed(mine[:of_labelled], theirs[:of_labelled])
    if view is None or batch.unlabelled is None:
        return Outcome(losses={"supervised": supervised, "consistency": consistency})

    valid = None if batch.warp is None else batch.warp.valid
    return Outcome(
        losses={
            "supervised": supervised,
            "consistency": consistency + crossed(mine[of_labelled:], theirs[of_labelled:], valid),
        },
        logits_unlabelled=mine[of_labelled:],
        guess=partial(mean_probabilities, (student, peer), batch.unlabelled),
    )


def crossed(first: Tensor, second: Tensor, valid: Tensor | None = None) -> Tensor:
    """CE(first, argmax second) + CE(second, argmax first) of logits (B, C + 1, H, W) over `valid` (B, H, W): a scalar.

    An argmax carries no gradient, so each network is pulled to the other's classes and none is pushed to be followed.
    """
    return losses.cross_entropy(first, class_map(second), valid) + losses.cross_entropy(second, class_map(first), valid)
