"""ClaSP PE: each class has its share of the budget, and chance wanes (TMLR 2026).

Two thirds of the budget are split over the classes, by entropy where each is predicted; the rest follows plain entropy.
Scores are disturbed by noise, at first much, in the end hardly: early scores of a weak model are worth little.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from strategies.query.choose import LOWEST, best_first, size_of_choice
from strategies.query.reduce import mean_over_pixels
from strategies.query.strategy import Columns, Seen, Strategy
from strategies.query.uncertainty import entropy
from strategies.records import Choice, Scores, Selection

CLASS_SHARE = 0.66
LAST_BETA = 100.0


def class_entropies(probabilities: Tensor) -> Tensor:
    """H(p̄) · p̄_c of each foreground class, (B, C, H, W) from (M, B, C+1, H, W)."""
    return entropy(probabilities)[:, None] * probabilities.float().mean(dim=0)[:, 1:]


def beta_of(progress: float) -> float:
    """β of the noise Gumbel(0, 1/β): from 1 at the first query (progress 0) exponentially to 100 at the last (1)."""
    return float(LAST_BETA**progress)


def clasp_pe(scores: Scores, count: int, rng: np.random.Generator, *, beta: float) -> Selection:
    """Class by class, then by plain entropy, the highest ln s + Gumbel(0, 1/β) of the cases that are left.

    Which classes have one case more, where the share does not divide evenly, is drawn.

    Raises:
        ValueError: scores or scores by class are missing.
    """
    if scores.values is None or scores.by_class is None:
        raise ValueError("clasp_pe needs entropies, also by class, and they were not computed")
    count = size_of_choice(scores, count)
    classes = scores.by_class.shape[1]
    shares = class_shares(count, classes, rng)
    left = np.ones(len(scores.case_ids), dtype=bool)
    choices: list[Choice] = []
    for class_ in [*np.flatnonzero(shares).tolist(), None]:
        values = scores.values if class_ is None else scores.by_class[:, class_]
        wanted = count - len(choices) if class_ is None else shares[class_]
        disturbed = np.log(np.maximum(values, LOWEST)) + rng.gumbel(0.0, 1.0 / beta, len(values))
        what = "anything" if class_ is None else f"class {class_ + 1}"
        for row in [r for r in best_first(disturbed, rng).tolist() if left[r]][:wanted]:
            left[row] = False
            reason = f"the model is unsure of {what} here: {values[row]:.3g}, drawn by chance and score"
            choices.append(Choice(scores.case_ids[row], float(disturbed[row]), reason))
    return Selection(tuple(choices))


def class_shares(count: int, classes: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """How many cases each class may choose: together round(0.66 · count), none differing by more than one."""
    together = round(CLASS_SHARE * count)
    shares = np.full(classes, together // classes)
    shares[rng.permutation(classes)[: together % classes]] += 1
    return shares


def _look(seen: Seen) -> Columns:
    probabilities = seen.probabilities
    return {
        "values": mean_over_pixels(entropy(probabilities), seen.inside),
        "by_class": mean_over_pixels(class_entropies(probabilities), seen.inside),
    }


CLASP_PE = Strategy("clasp_pe", partial(clasp_pe, beta=1.0), look=_look)
