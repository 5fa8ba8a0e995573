"""Learning from labelled images alone: the baseline of every semi-supervised framework."""

from __future__ import annotations

import torch
from torch import nn

from strategies.semi import losses
from strategies.semi.batch import Batch, Outcome


def terms(batch: Batch, student: nn.Module, teacher: nn.Module | None, *, generator: torch.Generator) -> Outcome:
    """The supervised loss of the labelled images; unlabelled images, teacher and generator are not looked at."""
    return Outcome(losses={"supervised": losses.supervised(student(batch.images), batch.labels)})
