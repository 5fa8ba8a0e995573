"""LoGo: the site's own model says how cases differ, the federation's which of them it is unsure of (Kim et al., CVPR 2023).

Macro step: gradients of a model that has seen this site alone are clustered, a cluster for each case asked for. Micro step:
in each cluster the case with the highest entropy of the global model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor

from strategies.query.choose import best_first, size_of_choice
from strategies.query.reduce import mean_over_pixels
from strategies.query.strategy import Columns, Seen, Strategy
from strategies.query.uncertainty import entropy
from strategies.records import Choice, Scores, Selection


def unsure_features(probabilities: Tensor, features: Tensor, inside: Tensor) -> Tensor:
    """g = (1 − max p) · h, (B, F): the local-only model's features, as long as it is unsure, on the mean over pixels.

    Args:
        probabilities: (B, C+1, H, W); features: (B, F); inside: (B, H, W) bool.
    """
    unsure = ((1 - probabilities.amax(dim=1)) * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    return unsure[:, None] * features


def logo(scores: Scores, count: int, rng: np.random.Generator) -> Selection:
    """The most uncertain case of each of `count` clusters, best first; a shortfall is filled by uncertainty.

    Cases chosen before in the same batch have a cluster each as well, and from theirs no other is taken before the shortfall.

    Raises:
        ValueError: scores or features are missing.
    """
    if scores.values is None or scores.features is None:
        raise ValueError("logo needs entropies and the local-only model's gradients of the pool, and they were not computed")
    count = size_of_choice(scores, count)
    if count == 0:
        return Selection(())
    order = best_first(scores.values, rng)
    before = scores.features[:0] if scores.chosen_features is None else scores.chosen_features
    cluster = _clusters(np.concatenate([scores.features, before]), count + len(before), rng)
    first: dict[int, int] = {}
    taken = set(cluster[len(order) :].tolist())
    for row in order.tolist():
        if int(cluster[row]) not in taken and len(first) < count:
            first.setdefault(int(cluster[row]), row)
    sizes = np.bincount(cluster)
    rows = list(first.values())
    heads = set(rows)
    fill = [row for row in order.tolist() if row not in heads][: count - len(rows)]
    why = {row: f"of {sizes[c]} cases that the site's own model finds alike" for c, row in first.items()}
    why |= dict.fromkeys(fill, "to fill up: too few kinds of cases are left")
    return Selection(
        tuple(
            Choice(
                scores.case_ids[row],
                float(scores.values[row]),
                f"the global model is unsure here: mean entropy {scores.values[row]:.3g}, the highest {why[row]}"
                if row in heads
                else f"the global model is unsure here: mean entropy {scores.values[row]:.3g}, {why[row]}",
            )
            for row in [*rows, *fill]
        )
    )


def _clusters(features: NDArray[np.floating], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    distinct = min(count, len(np.unique(features, axis=0)))
    found = KMeans(distinct, n_init=1, random_state=int(rng.integers(2**31))).fit_predict(features)
    return np.asarray(found, dtype=np.intp)


def _look(seen: Seen) -> Columns:
    of_global, of_site = (seen.logits[model].softmax(dim=2) for model in ("global", "local_only"))
    return {
        "values": mean_over_pixels(entropy(of_global), seen.inside),
        "features": unsure_features(of_site[0], seen.features["local_only"], seen.inside).float().cpu().numpy(),
    }


LOGO = Strategy(
    "logo",
    logo,
    look=_look,
    models=("global", "local_only"),
    why="the global model is unsure here: mean entropy",
)
