"""Learning from labelled images alone: the baseline of every semi-supervised framework."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from strategies.semi import losses
from strategies.semi.batch import Batch, Outcome, Time


def terms(
    batch: Batch, student: nn.Module, helpers: Mapping[str, nn.Module], *, time: Time, generator: torch.Generator
) -> Outcome:
    """The supervised loss of the labelled images; nothing else is looked at."""
    return Outcome(losses={"supervised": losses.supervised(student(batch.images), batch.labels)})
