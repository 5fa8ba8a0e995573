"""From scores to a batch of cases. Positions live inside these functions; ids go in and come out.

Promised by all of them: min(count, pool) cases (a small pool is never an error), none twice, best first, finite scores,
the same cases for the same generator however the pool was stored, and between equal scores the generator decides, not a
position.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

import numpy as np
from numpy.typing import NDArray

from strategies.records import Choice, Scores, Selection

LOWEST = 1e-12
"""Power sampling takes a logarithm: scores below this count as this."""


def top(scores: Scores, count: int, rng: np.random.Generator, *, why: str) -> Selection:
    """The cases with the highest scores.

    Args:
        why: beginning of each reason, e.g. "the model is unsure here: mean entropy"; value and rank follow it.
    """
    values = _values(scores)
    count = size_of_choice(scores, count)
    return _selection(scores, best_first(values, rng)[:count], values, why)


def power(scores: Scores, count: int, rng: np.random.Generator, *, why: str, beta: float) -> Selection:
    """The highest of ln max(s, 1e-12) + Gumbel(0, 1/β): cases are drawn in proportion to s^β (Kirsch et al. 2023).

    The score of a choice is the perturbed one, which it was ranked by; the reason gives the plain value and its rank.

    Raises:
        ValueError: a score is negative, or β is not above 0.
    """
    values = _values(scores)
    count = size_of_choice(scores, count)
    if not (np.isfinite(beta) and beta > 0):
        raise ValueError(f"query.power_beta is {beta}: it divides the noise, so it must be above 0")
    if (values < 0).any():
        where = int(np.argmax(values < 0))
        raise ValueError(
            f"the score of case {scores.case_ids[where]} is {values[where]:.3g}: power sampling takes "
            "a logarithm and needs scores of at least 0; use another wrapper for this strategy"
        )
    perturbed = np.log(np.maximum(values, LOWEST)) + rng.gumbel(0.0, 1.0 / beta, len(values))
    return _selection(scores, best_first(perturbed, rng)[:count], perturbed, f"drawn by chance and score; {why}")


def stochastic_batches(scores: Scores, count: int, rng: np.random.Generator, *, why: str) -> Selection:
    """Of random groups of `count` cases the one with the highest mean score (Gaillochet et al. 2023), best case first.

    The pool is shuffled and cut; what is left over when it does not divide evenly makes no group, so that all are of
    the size asked for. Chance decides whom that concerns.
    """
    values = _values(scores)
    count = size_of_choice(scores, count)
    if count == 0:
        return Selection(())
    groups = rng.permutation(len(values))[: len(values) // count * count].reshape(-1, count)
    group = groups[int(np.argmax(values[groups].mean(axis=1)))]
    order = group[best_first(values[group], rng)]
    return _selection(scores, order, values, f"in the random group with the highest mean; {why}")


def at_random(
    scores: Scores, count: int, rng: np.random.Generator, *, first: Container[str] = (), why: str = "chosen at random"
) -> Selection:
    """Every case with the same chance, but those of `first` before all others; all scores are 0."""
    count = size_of_choice(scores, count)
    order = rng.permutation(len(scores.case_ids)).tolist()
    named = [i for i in order if scores.case_ids[i] in first]
    others = [i for i in order if scores.case_ids[i] not in first]
    chosen = [(i, "named by the site to begin with") for i in named] + [(i, why) for i in others]
    return _at_random(scores, chosen[:count])


def at_random_foreground(scores: Scores, count: int, rng: np.random.Generator) -> Selection:
    """Two thirds of `count` at random among the cases with foreground in or beside them, the rest among all others.

    The comparator that nothing reliably beat in nnActive's 2025 study in 3D. With fewer foreground cases than two
    thirds, all of them are taken and the rest is drawn at random from the other cases. All scores are 0.

    Raises:
        ValueError: `scores.foreground` is missing.
    """
    if scores.foreground is None:
        raise ValueError("random_fg needs to know where the model predicts foreground, and no prediction was made")
    count = size_of_choice(scores, count)
    order = rng.permutation(len(scores.case_ids))
    foreground = order[scores.foreground[order]][: round(2 * count / 3)]
    others = order[~np.isin(order, foreground)]
    others = rng.permutation(others)[: count - len(foreground)]  # shuffled again: these follow no earlier draw
    why = "chosen at random among the cases with a structure, seen by the model or drawn, in them or next to them"
    return _at_random(scores, [*((i, why) for i in foreground), *((i, "chosen at random among all cases") for i in others)])


def size_of_choice(scores: Scores, count: int) -> int:
    """How many cases will be chosen: `count`, or the whole pool when it is smaller.

    Raises:
        ValueError: `count` is negative.
    """
    if count < 0:
        raise ValueError(f"{count} cases were asked for: a grant is 0 or more")
    return min(count, len(scores.case_ids))


def _values(scores: Scores) -> NDArray[np.float64]:
    if scores.values is None:
        raise ValueError("this strategy ranks cases by score, and no scores were computed")
    return np.asarray(scores.values, dtype=np.float64)


def best_first(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.intp]:
    """Positions by falling value; equal values in an order that is drawn."""
    return np.lexsort((rng.permutation(len(values)), -values))


def _selection(scores: Scores, order: NDArray[np.intp], ranked_by: NDArray[np.float64], why: str) -> Selection:
    """The cases in `order`; the reason tells value and rank, in the whole pool also where a part of it is chosen already."""
    values = _values(scores)
    pool = values if scores.pool_values is None else scores.pool_values
    ranks = len(pool) + 1 - np.searchsorted(np.sort(pool), values[order], side="right")
    return Selection(
        tuple(
            Choice(scores.case_ids[i], float(ranked_by[i]), f"{why} {values[i]:.3g}, rank {rank} of {len(pool)}")
            for i, rank in zip(order, ranks, strict=True)
        )
    )


def _at_random(scores: Scores, chosen: Iterable[tuple[int, str]]) -> Selection:
    return Selection(tuple(Choice(scores.case_ids[i], 0.0, reason) for i, reason in chosen))
