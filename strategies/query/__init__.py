"""Query strategies by name: which of its cases a site asks its experts for.

Three steps that stay apart: *look* (what models say, to numbers a case), *finish* (numbers that depend on the whole pool) and
*choose* (numbers to a batch). A strategy is one of each, in a file of its own; a wrapper, as in `entropy+stochastic`, is
another way to choose by the same score.

    strategy = parse_query("bald+power", passes=8)
    columns = strategy.look(seen)                                  # for each batch of cases
    selection = strategy.choose(Scores(...), granted, rng)         # best first, with reasons

To add one: a file with a `Strategy`, a line in `STRATEGIES`, and its name in `configs/schema.py`.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import replace
from functools import partial

from strategies.query.badge import BADGE
from strategies.query.clasp_pe import CLASP_PE, beta_of, clasp_pe
from strategies.query.coreset import CORESET
from strategies.query.feal import FEAL
from strategies.query.kafal import KAFAL
from strategies.query.logo import LOGO
from strategies.query.probcover import PROBCOVER
from strategies.query.random_choice import RANDOM, RANDOM_FG
from strategies.query.strategy import Choose, Columns, Model, Seen, Strategy
from strategies.query.typiclust import TYPICLUST
from strategies.query.uncertainty import BALD, ENTROPY, LEAST_CONFIDENCE, MARGIN, VOTE_ENTROPY
from strategies.query.wrappers import capped, class_balanced, power, stochastic_batches

__all__ = ["STRATEGIES", "Choose", "Columns", "Model", "Seen", "Strategy", "parse_query", "query_names"]

STRATEGIES: dict[str, Strategy] = {
    "random": RANDOM,
    "random_fg": RANDOM_FG,
    "least_confidence": LEAST_CONFIDENCE,
    "margin": MARGIN,
    "entropy": ENTROPY,
    "bald": BALD,
    "vote_entropy": VOTE_ENTROPY,
    "coreset": CORESET,
    "badge": BADGE,
    "typiclust": TYPICLUST,
    "probcover": PROBCOVER,
    "clasp_pe": CLASP_PE,
    "feal": FEAL,
    "logo": LOGO,
    "kafal": KAFAL,
}
"""Both randoms first: every other strategy has to beat them."""

CHOOSERS = ("stochastic", "power", "balanced")
"""Other ways to choose by a score, written after a +; one at most."""

CAP = "cap"
"""A limit for each patient, for any strategy, written last."""


def query_names() -> list[str]:
    """Every name that `parse_query` takes."""
    bases = [*STRATEGIES, *(f"{name}+{how}" for name, strategy in STRATEGIES.items() if strategy.scores for how in CHOOSERS)]
    return [*bases, *(f"{name}+{CAP}" for name in bases)]


def parse_query(text: str, *, passes: int = 8, power_beta: float = 1.0, per_patient: int = 1, progress: float = 0.0) -> Strategy:
    """The strategy that `text` names.

    Args:
        text: e.g. "random", "entropy", "bald+power", "feal+stochastic+cap".
        passes: forward passes for strategies that compare passes, at least 2; the others do with one.
        power_beta: β of the power wrapper, above 0; large is close to taking the top.
        per_patient: cases of a patient in a batch that the cap lets through, at least 1.
        progress: 0 at a run's first query to 1 at its last, for strategies that rely on chance less and less.

    Raises:
        ValueError: an unknown name (with the nearest valid one), or a value out of range.
    """
    if text not in query_names():
        raise ValueError(_unknown(text))
    if passes < 2:
        raise ValueError(f"query.passes is {passes}: passes are compared with each other, so at least 2 are needed")
    if not (math.isfinite(power_beta) and power_beta > 0):
        raise ValueError(f"query.power_beta is {power_beta}: it divides the noise, so it must be above 0")
    if per_patient < 1:
        raise ValueError(f"query.per_patient is {per_patient}: at least one case of a patient must be allowed")
    base, *wrappers = text.split("+")
    strategy = STRATEGIES[base]
    strategy = replace(strategy, passes=passes if strategy.passes > 1 else 1)
    if base == "clasp_pe":
        strategy = replace(strategy, choose=partial(clasp_pe, beta=beta_of(progress)))
    for wrapper in wrappers:
        match wrapper:
            case "stochastic":
                strategy = stochastic_batches(strategy)
            case "power":
                strategy = power(strategy, beta=power_beta)
            case "balanced":
                strategy = class_balanced(strategy)
            case _:
                strategy = capped(strategy, per_patient=per_patient)
    return strategy


def _unknown(text: str) -> str:
    base, *wrappers = text.split("+")
    valid = (
        f"Valid: {', '.join(STRATEGIES)}, each with +{CAP}, and those with a score with {', '.join('+' + c for c in CHOOSERS)}"
    )
    if base in STRATEGIES and not STRATEGIES[base].scores and wrappers and wrappers[0] in CHOOSERS:
        return f"unknown query strategy {text!r}: {wrappers[0]} chooses by a score, and {base} has none. {valid}"
    near = difflib.get_close_matches(text, query_names(), n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown query strategy {text!r}{hint} {valid}"
