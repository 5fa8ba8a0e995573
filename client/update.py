"""What crosses after a round: local minus global weights, finite, clipped when asked."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from strategies.aggregate import clip_update
from strategies.records import Weights


def update_of(student: dict[str, Tensor], weights: Weights, *, max_norm: float | None) -> Weights:
    """`student − weights` by name, in the weights' dtypes; scaled to L2 norm `max_norm` where it is larger.

    Raises:
        FloatingPointError: the update holds NaN or Inf; sending it would spoil the model of every site.
    """
    update: Weights = {name: (student[name].numpy() - before).astype(before.dtype) for name, before in weights.items()}
    for name, values in update.items():
        if not np.isfinite(values).all():
            raise FloatingPointError(
                f"the update of {name} holds NaN or Inf, so it is not sent: it would spoil the model of every site. The weights "
                "grew out of bounds: lower train.learning_rate in the run's configuration"
            )
    return update if max_norm is None else clip_update(update, max_norm)
