"""FEAL: evidential uncertainty of two models, then neighbours apart (Chen et al., CVPR 2024).

A model with an evidential head says how much evidence it has for each class, α − 1 ≥ 0, and so not one distribution over
classes but a Dirichlet over distributions. How broad that is tells of what the model has not seen (epistemic), how level
the distributions are tells of what can't be told apart (aleatoric).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strategies.query.choose import best_first, size_of_choice
from strategies.query.reduce import mean_over_pixels
from strategies.query.strategy import Columns, Seen, Strategy
from strategies.records import Choice, Scores, Selection

NEIGHBOURS = 5
SIMILAR = 0.85
"""A case is passed over where so many are so similar to it, by cosine, and one of them is chosen."""

_WALKED = 10
"""Candidates that are looked at for each case that is asked for; beyond them a shortfall is filled by score."""

_BLOCK = 256


def epistemic(alpha: Tensor) -> Tensor:
    """Differential entropy of Dir(α), (B, H, W) from α (B, K, H, W) ≥ 1: the less evidence the higher, at most −ln Γ(K)."""
    total = alpha.sum(dim=1)
    log_beta = torch.lgamma(alpha).sum(dim=1) - torch.lgamma(total)
    return log_beta + (total - alpha.shape[1]) * torch.digamma(total) - ((alpha - 1) * torch.digamma(alpha)).sum(dim=1)


def aleatoric(alpha: Tensor) -> Tensor:
    """Σ_k (α_k / S)(ψ(S + 1) − ψ(α_k + 1)): the mean entropy of distributions drawn from Dir(α), (B, H, W)."""
    total = alpha.sum(dim=1, keepdim=True)
    return (alpha / total * (torch.digamma(total + 1) - torch.digamma(alpha + 1))).sum(dim=1)


def evidential_scores(
    epistemic_: NDArray[np.float64], aleatoric_global: NDArray[np.float64], aleatoric_local: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of cases (N,): the epistemic uncertainty, scaled to [0, 1] over the pool, times both models' aleatoric one.

    Where all cases have the same epistemic uncertainty it tells nothing, and the others decide: it counts as 1.
    """
    low, high = (epistemic_.min(), epistemic_.max()) if len(epistemic_) else (0.0, 0.0)
    scaled = (epistemic_ - low) / (high - low) if high > low else np.ones_like(epistemic_)
    return scaled * (aleatoric_global + aleatoric_local)


def feal(scores: Scores, count: int, rng: np.random.Generator) -> Selection:
    """The highest scores, passing over what is among the likes of a case that is chosen already.

    Raises:
        ValueError: scores or features are missing.
    """
    if scores.values is None or scores.features is None:
        raise ValueError("feal needs scores and the local model's features of the pool, and they were not computed")
    count = size_of_choice(scores, count)
    order = best_first(scores.values, rng)
    rows, passed = relaxed(scores.features, order, count)
    already = set(rows)
    fill = [row for row in order.tolist() if row not in already][: count - len(rows)]
    told = f"{passed} alike passed over" if passed else "none alike chosen before it"
    why = {**dict.fromkeys(rows, told), **dict.fromkeys(fill, "to fill up, though one alike is chosen")}
    return Selection(
        tuple(
            Choice(
                scores.case_ids[row],
                float(scores.values[row]),
                f"the models have little evidence here: {scores.values[row]:.3g}; {why[row]}",
            )
            for row in [*rows, *fill]
        )
    )


def relaxed(features: NDArray[np.floating], order: NDArray[np.intp], count: int) -> tuple[list[int], int]:
    """Rows chosen in `order`, and how many were passed over: `count` rows, or fewer where too many are alike.

    A candidate is passed over only if it has `NEIGHBOURS` neighbours with a cosine above `SIMILAR` and one of the nearest
    `NEIGHBOURS` is chosen. At most `_WALKED` · `count` candidates are looked at: O(N · count · F).

    Args:
        features: (N, F) of the pool.
        order: its rows, best first.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = (features / np.maximum(lengths, 1e-12)).astype(np.float32)
    chosen: list[int] = []
    is_chosen = np.zeros(len(unit), dtype=bool)
    passed = 0
    walk = order[: _WALKED * count]
    for start in range(0, len(walk), _BLOCK):
        block = walk[start : start + _BLOCK]
        near = _neighbours(unit, block)
        for row, neighbours in zip(block.tolist(), near, strict=True):
            if len(chosen) == count:
                return chosen, passed
            if len(neighbours) == NEIGHBOURS and is_chosen[neighbours].any():
                passed += 1
                continue
            chosen.append(row)
            is_chosen[row] = True
    return chosen, passed


def _neighbours(unit: NDArray[np.float32], rows: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """The nearest `NEIGHBOURS` others of each row, those above `SIMILAR` alone."""
    cosine = unit[rows] @ unit.T
    cosine[np.arange(len(rows)), rows] = -np.inf
    most = min(NEIGHBOURS, len(unit) - 1)
    if most == 0:
        return [np.empty(0, dtype=np.intp)] * len(rows)
    nearest = np.argpartition(-cosine, most - 1, axis=1)[:, :most]
    return [found[cosine[n, found] > SIMILAR] for n, found in enumerate(nearest)]


def _look(seen: Seen) -> Columns:
    """Logits of an evidential head are ln α; in single precision the entropies of large α cancel to noise."""
    of_global, of_local = (seen.logits[model][0].double().exp() for model in ("global", "local"))
    maps = {"epistemic": epistemic(of_global), "of_global": aleatoric(of_global), "of_local": aleatoric(of_local)}
    columns: Columns = {name: mean_over_pixels(map_, seen.inside) for name, map_ in maps.items()}
    return {**columns, "features": seen.features["local"].float().cpu().numpy()}


def _finish(columns: Columns) -> Columns:
    values = evidential_scores(columns["epistemic"], columns["of_global"], columns["of_local"])
    return {"values": values, "features": columns["features"]}


FEAL = Strategy(
    "feal",
    feal,
    look=_look,
    finish=_finish,
    models=("global", "local"),
    evidential=True,
    why="the models have little evidence here:",
)
