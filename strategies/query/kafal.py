"""KAFAL: where the site's model and the federation's contradict each other, rare classes counting more (Cao, ICCV 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from strategies.query.choose import top
from strategies.query.reduce import mean_over_pixels
from strategies.query.strategy import Columns, Seen, Strategy

EPSILON = 1.0
"""Added to the number of pixels of each class: one that the site has never labelled counts as one of a single pixel."""


def specialised_disagreement(server: Tensor, client: Tensor, labelled_pixels: Sequence[float]) -> Tensor:
    """½ [KL(p̂_server ‖ p̂_client) + KL(p̂_client ‖ p̂_server)], (B, H, W).

    p̂ is the softmax of ẑ = z + ln(n_c + ε): each model is read as one that has learned from this site's own classes, so that they
    contradict each other most where the site knows best.

    Args:
        server, client: logits (B, C+1, H, W).
        labelled_pixels: n_c, C + 1 numbers, of the site's labelled cases.
    """
    counts = torch.tensor(labelled_pixels, dtype=torch.float32, device=server.device)
    shift = torch.log(counts + EPSILON)[None, :, None, None]
    first, second = (torch.log_softmax(logits.float() + shift, dim=1) for logits in (server, client))
    return (0.5 * ((first.exp() - second.exp()) * (first - second)).sum(dim=1)).clamp(min=0)


def _look(seen: Seen) -> Columns:
    map_ = specialised_disagreement(seen.logits["global"][0], seen.logits["local"][0], seen.labelled_pixels)
    return {"values": mean_over_pixels(map_, seen.inside)}


_WHY = "this site's model and the federation's contradict each other here: mean disagreement"

KAFAL = Strategy(
    "kafal",
    partial(top, why=_WHY),
    look=_look,
    models=("global", "local"),
    why=_WHY,
)
