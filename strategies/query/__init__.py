"""Query strategies by name: which of its cases a site asks its experts for.

Three steps that stay apart: *score* (pixel maps, `uncertainty.py`), *reduce* (a map to a number, `reduce.py`) and
*choose* (numbers or features to a batch, `choose.py` and `diversity.py`). A strategy is one of each; a wrapper, as in
`entropy+stochastic`, is another way to choose by the same score.

    strategy = parse_query("bald+power", passes=8)
    values = strategy.reduce(strategy.pixel(probabilities))        # for each batch of cases, where there is a pixel map
    selection = strategy.choose(Scores(...), granted, rng)         # best first, with reasons
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from strategies.query.choose import at_random, at_random_foreground, power, stochastic_batches, top
from strategies.query.diversity import coreset
from strategies.query.reduce import mean_over_pixels
from strategies.query.uncertainty import bald, entropy
from strategies.records import Scores, Selection

Choose = Callable[[Scores, int, np.random.Generator], Selection]


@dataclass(frozen=True)
class Strategy:
    """What to compute for a site's unlabelled cases, and how to choose among them.

    Attributes:
        name: as in the configuration.
        passes: forward passes a case; 1 is the plain prediction, more are passes with dropout.
        pixel: (passes, B, C+1, H, W) probabilities to (B, H, W) maps; None where no score is needed.
        features: whether `Scores.features` and `Scores.labelled_features` are needed.
        foreground: whether `Scores.foreground` is needed.
        choose: scores, how many, generator → the cases, best first.
        why: what the score means, in an expert's words; the beginning of every reason. Empty without a score.
        reduce: (B, H, W) maps to (B,) float64 scores.
    """

    name: str
    passes: int
    pixel: Callable[[Tensor], Tensor] | None
    features: bool
    foreground: bool
    choose: Choose
    why: str = ""
    reduce: Callable[[Tensor], NDArray[np.float64]] = mean_over_pixels

    @property
    def needs_model(self) -> bool:
        """Whether the pool has to go through the network before choosing."""
        return self.pixel is not None or self.features or self.foreground


_UNSURE = "the model is unsure here: mean entropy"
_CONTRADICTS = "the model contradicts itself here: mean disagreement"

STRATEGIES: dict[str, Strategy] = {
    "random": Strategy("random", 1, None, features=False, foreground=False, choose=at_random),
    "random_fg": Strategy("random_fg", 1, None, features=False, foreground=True, choose=at_random_foreground),
    "entropy": Strategy("entropy", 1, entropy, features=False, foreground=False, choose=partial(top, why=_UNSURE), why=_UNSURE),
    "bald": Strategy("bald", 8, bald, features=False, foreground=False, choose=partial(top, why=_CONTRADICTS), why=_CONTRADICTS),
    "coreset": Strategy("coreset", 1, None, features=True, foreground=False, choose=coreset),
}
"""Both randoms first: every other strategy has to beat them."""

WRAPPERS = ("stochastic", "power")
"""Other ways to choose by a score, written after a +."""


def query_names() -> list[str]:
    """Every name that `parse_query` takes."""
    scored = [name for name, strategy in STRATEGIES.items() if strategy.pixel is not None]
    return [*STRATEGIES, *(f"{name}+{wrapper}" for name in scored for wrapper in WRAPPERS)]


def parse_query(text: str, *, passes: int = 8, power_beta: float = 1.0) -> Strategy:
    """The strategy that `text` names.

    Args:
        text: e.g. "random", "entropy", "bald+power".
        passes: forward passes for strategies that compare passes, at least 2; the others do with one.
        power_beta: β of the power wrapper, above 0; large is close to taking the top.

    Raises:
        ValueError: an unknown name (with the nearest valid one and the list), or a value out of range.
    """
    if text not in query_names():
        near = difflib.get_close_matches(text, query_names(), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        base, plus, wrapper = text.partition("+")
        if plus and wrapper in WRAPPERS and base in STRATEGIES:
            hint = f": {wrapper} chooses by a score, and {base} has none."
        raise ValueError(f"unknown query strategy {text!r}{hint} Valid: {', '.join(query_names())}")
    if passes < 2:
        raise ValueError(f"query.passes is {passes}: passes are compared with each other, so at least 2 are needed")
    if not (np.isfinite(power_beta) and power_beta > 0):
        raise ValueError(f"query.power_beta is {power_beta}: it divides the noise, so it must be above 0")
    base, _, wrapper = text.partition("+")
    strategy = STRATEGIES[base]
    choose = strategy.choose
    if wrapper == "stochastic":
        choose = partial(stochastic_batches, why=strategy.why)
    elif wrapper == "power":
        choose = partial(power, why=strategy.why, beta=power_beta)
    return replace(strategy, name=text, passes=passes if strategy.passes > 1 else 1, choose=choose)
