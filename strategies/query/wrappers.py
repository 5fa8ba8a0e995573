"""Wrappers: a strategy in, another out, which chooses otherwise by the same scores.

stochastic_batches(FEAL)          # what "feal+stochastic" names
capped(power(ENTROPY, beta=1.0), cap=2)
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from strategies.query import balanced, cap, choose
from strategies.query.reduce import predicted_pixels
from strategies.query.strategy import Columns, Seen, Strategy


def stochastic_batches(strategy: Strategy) -> Strategy:
    """Of random batches the one with the highest mean score: diversity without features (Gaillochet et al. 2023)."""
    return replace(strategy, name=f"{strategy.name}+stochastic", choose=partial(choose.stochastic_batches, why=strategy.why))


def power(strategy: Strategy, *, beta: float) -> Strategy:
    """Drawn in proportion to score^β (Kirsch et al. 2023)."""
    return replace(strategy, name=f"{strategy.name}+power", choose=partial(choose.power, why=strategy.why, beta=beta))


def class_balanced(strategy: Strategy) -> Strategy:
    """The best scores, class by class, the least annotated class first."""
    look = strategy.look

    def with_classes(seen: Seen) -> Columns:
        assert look is not None
        return {**look(seen), "predicted_pixels": predicted_pixels(seen.probabilities, seen.inside)}

    def finish(columns: Columns) -> Columns:
        shown = columns.pop("predicted_pixels")
        return {**strategy.finish(columns), "predicted_pixels": shown}

    chosen = partial(balanced.class_balanced, why=strategy.why)
    return replace(strategy, name=f"{strategy.name}+balanced", look=with_classes, finish=finish, choose=chosen)


def capped(strategy: Strategy, *, per_patient: int) -> Strategy:
    """No more than `per_patient` cases of a patient in a batch, as long as there are others."""
    return replace(strategy, name=f"{strategy.name}+cap", choose=partial(cap.capped, choose=strategy.choose, cap=per_patient))
