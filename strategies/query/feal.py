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
from strategies.query.vectors import unit_length
from strategies.records import Choice, Scores, Selection

NEIGHBOURS = 5
SIMILAR = 0.85
"""A case is passed over where so many are so similar to it, by cosine, and one of them is chosen."""

_WALKED = 10
"""Candidates whose neighbours are looked for, for each case that is asked for; beyond them one is taken where it is like none
chosen, which can be told without them."""

_BLOCK = 256
_NONE = np.empty(0, dtype=np.intp)


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

    Each is a case's mean over pixels: a score is a product of means, and not the mean of pixels' products, which would have to be
    scaled by the most extreme pixels of the pool.

    Where all cases have the same epistemic uncertainty it tells nothing, and the others decide: it counts as 1.

    Raises:
        FloatingPointError: an uncertainty is not finite. Scaled over the pool it would be nobody's, and the others would decide.
    """
    for name, array in (("epistemic", epistemic_), ("global aleatoric", aleatoric_global), ("local aleatoric", aleatoric_local)):
        if not np.isfinite(array).all():
            where = int(np.argmin(np.isfinite(array)))
            raise FloatingPointError(f"{name} uncertainty of case {where} of the pool is {array[where]}: the model diverged")
    low, high = (epistemic_.min(), epistemic_.max()) if len(epistemic_) else (0.0, 0.0)
    scaled = (epistemic_ - low) / (high - low) if high > low else np.ones_like(epistemic_)
    return scaled * (aleatoric_global + aleatoric_local)


def feal(scores: Scores, count: int, rng: np.random.Generator) -> Selection:
    """The highest scores, passing over what is among the likes of a case that is chosen already; these fill a shortfall.

    Neighbours are looked for in the whole pool, among cases as well that are chosen or closed before in the same batch.

    Raises:
        ValueError: scores or features are missing.
    """
    if scores.values is None or scores.features is None:
        raise ValueError("feal needs scores and the local model's features of the pool, and they were not computed")
    count = size_of_choice(scores, count)
    order = best_first(scores.values, rng)
    beside = [told for told in (scores.chosen_features, scores.closed_features) if told is not None]
    unit = unit_length(np.concatenate([scores.features, *beside]))
    before = len(order) + np.arange(0 if scores.chosen_features is None else len(scores.chosen_features))
    rows = relaxed(unit, order, count, before=before)
    already = set(rows)
    fill = [row for row in order.tolist() if row not in already][: count - len(rows)]
    why = {**_likeness(unit, rows, before), **dict.fromkeys(fill, "to fill up, though one alike is chosen")}
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


def relaxed(unit: NDArray[np.float32], order: NDArray[np.intp], count: int, *, before: NDArray[np.intp] = _NONE) -> list[int]:
    """Rows chosen in `order`: `count` of them, or fewer where too many are alike.

    A candidate is passed over only if it has `NEIGHBOURS` neighbours with a cosine above `SIMILAR` and one of the nearest
    `NEIGHBOURS` is chosen. Of candidates after the first `_WALKED` · `count` those alone are taken that are like none chosen, who
    have no such neighbour for certain. So the time is O(N · count · F), however many are alike.

    Args:
        unit: (N, F) of the pool, of unit length.
        order: rows that may be chosen, best first.
        before: rows that are chosen already.
    """
    chosen: list[int] = []
    is_chosen = np.zeros(len(unit), dtype=bool)
    is_chosen[before] = True
    walk, later = order[: _WALKED * count], order[_WALKED * count :]
    for start in range(0, len(walk), _BLOCK):
        block = walk[start : start + _BLOCK]
        near = _neighbours(unit, block)
        for row, neighbours in zip(block.tolist(), near, strict=True):
            if len(chosen) == count:
                return chosen
            if len(neighbours) == NEIGHBOURS and is_chosen[neighbours].any():
                continue
            chosen.append(row)
            is_chosen[row] = True
    alike = np.zeros(len(unit), dtype=bool)
    for row in np.flatnonzero(is_chosen).tolist() if len(chosen) < count else ():
        alike |= unit @ unit[row] > SIMILAR
    for row in later.tolist():
        if len(chosen) == count:
            break
        if not alike[row]:
            chosen.append(row)
            alike |= unit @ unit[row] > SIMILAR
    return chosen


def _likeness(unit: NDArray[np.float32], rows: list[int], before: NDArray[np.intp]) -> dict[int, str]:
    """Of each of `rows`, whether one before it is like it: the row itself can be right, as one of few or with nearer ones.

    Compared a block at a time, so that memory is O(B · F) for the B chosen ones.
    """
    together = unit[np.concatenate([before, np.array(rows, dtype=np.intp)])]
    alike: list[bool] = []
    for start in range(len(before), len(together), _BLOCK):
        block = together[start : start + _BLOCK]
        earlier = together[: start + len(block)]
        alike += np.tril(block @ earlier.T > SIMILAR, k=start - 1).any(axis=1).tolist()
    few = "one alike is chosen, but few are, or others are more so"
    return {row: few if like else "none alike chosen before it" for row, like in zip(rows, alike, strict=True)}


def _neighbours(unit: NDArray[np.float32], rows: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """The nearest `NEIGHBOURS` others of each row, those above `SIMILAR` alone: few are, so these are found first."""
    cosine = unit[rows] @ unit.T
    cosine[np.arange(len(rows)), rows] = -np.inf
    near = []
    for to_all in cosine:
        alike = np.flatnonzero(to_all > SIMILAR)
        if len(alike) > NEIGHBOURS:
            alike = alike[np.argpartition(-to_all[alike], NEIGHBOURS - 1)[:NEIGHBOURS]]
        near.append(alike)
    return near


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
