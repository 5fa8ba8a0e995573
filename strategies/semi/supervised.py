"""Learning from labelled images alone: the baseline of every semi-supervised framework."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from strategies.networks import probabilities
from strategies.semi.batch import Batch, Outcome, Time


def terms(
    batch: Batch, student: nn.Module, helpers: Mapping[str, nn.Module], *, time: Time, generator: torch.Generator
) -> Outcome:
    """The supervised loss of the labelled images. Unlabelled ones, where the caller brings any, are only answered for."""
    view = batch.student_view()
    if view is None or batch.unlabelled is None:
        return Outcome(losses={"supervised": batch.loss(student(batch.images), batch.labels)})
    labelled, unlabelled = student(torch.cat([batch.images, view])).split([len(batch.images), len(view)])
    return Outcome(
        losses={"supervised": batch.loss(labelled, batch.labels)},
        logits_unlabelled=unlabelled,
        guess=partial(probabilities, student, batch.unlabelled),
    )
