"""What a query strategy is: what it asks of the models, how it turns that into scores, and how it chooses by them.

A strategy is a value, made in a file of its own and listed in `strategies/query/__init__.py`. Three steps stay apart: *look*
(what models say, to numbers a case), *finish* (numbers that depend on the whole pool) and *choose* (numbers to a batch). A
wrapper takes a strategy and gives another, which chooses otherwise by the same scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strategies.records import Scores, Selection

Choose = Callable[[Scores, int, np.random.Generator], Selection]
"""Scores, how many, generator → the cases, best first. The generator is the only randomness."""

Model = Literal["global", "local", "local_only"]
"""The federation's model; the site's after its last round; one that has seen nothing but this site's labels."""

Columns = dict[str, NDArray[Any]]
"""Rows for cases, by name: the names of `Scores.OF_CASES`, and others that `Strategy.finish` turns into those."""


@dataclass(frozen=True)
class Seen:
    """What models say of a batch of B slices, padding included.

    Attributes:
        inside: (B, H, W) bool, False in the padding.
        logits: (passes, B, C+1, H, W) by model, in the order in which the committee is read.
        features: (B, F) bottleneck features by model.
        taken: what each model's last convolution took, (B, K, H, W); its kernel's side is `kernel_px`.
        embedding: (B, channels), SAM's embedding averaged over space; None where the strategy asks for none.
        labelled_pixels: (C+1,) pixels of each class in the site's labelled cases, background first.
    """

    inside: Tensor
    logits: Mapping[Model, Tensor]
    features: Mapping[Model, Tensor]
    taken: Mapping[Model, Tensor]
    labelled_pixels: tuple[float, ...]
    kernel_px: int = 3
    embedding: Tensor | None = None

    def only(self, model: Model) -> Seen:
        """What one of the models says."""
        return replace(
            self, logits={model: self.logits[model]}, features={model: self.features[model]}, taken={model: self.taken[model]}
        )

    @property
    def probabilities(self) -> Tensor:
        """(M, B, C+1, H, W) of all models and passes together."""
        said = [logits.softmax(dim=2) for logits in self.logits.values()]
        return torch.cat(said) if len(said) > 1 else said[0]


def as_they_are(columns: Columns) -> Columns:
    """What most strategies do when the whole pool is seen: nothing more."""
    return columns


@dataclass(frozen=True)
class Strategy:
    """What to compute for a site's unlabelled cases, and how to choose among them.

    Attributes:
        name: as in the configuration.
        choose: how cases are chosen.
        look: what is read from a batch; None where no model is asked.
        finish: the columns of the whole pool to those of `Scores`, where a score depends on the others.
        models: which models must be there; empty for the one or two that `query.model` names.
        passes: forward passes of each model; more than 1 are with dropout.
        labelled: whether the labelled cases are looked at too, for their features.
        embeds: whether `Seen.embedding` is asked for.
        evidential: whether models must have an evidential head.
        why: what the score means, in an expert's words; the beginning of every reason. Empty without a score.
    """

    name: str
    choose: Choose
    look: Callable[[Seen], Columns] | None = None
    finish: Callable[[Columns], Columns] = as_they_are
    models: tuple[Model, ...] = ()
    passes: int = 1
    labelled: bool = False
    embeds: bool = False
    evidential: bool = False
    why: str = ""

    @property
    def needs_model(self) -> bool:
        """Whether the pool goes through a specialist before choosing."""
        return self.look is not None and not self.embeds
