"""From a strategy's name, wrappers included, to the strategy.

strategy = parse_query("bald+power", passes=8)
columns = strategy.look(seen)                                  # for each batch of cases
selection = strategy.choose(Scores(...), granted, rng)         # best first, with reasons
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from importlib import import_module

from strategies.query import STRATEGIES, fault_of
from strategies.query.clasp_pe import beta_of, clasp_pe
from strategies.query.strategy import Strategy
from strategies.query.wrappers import capped, class_balanced, power, stochastic_batches


def parse_query(text: str, *, passes: int = 8, power_beta: float = 1.0, per_patient: int = 1, progress: float = 0.0) -> Strategy:
    """The strategy that `text` names.

    Args:
        text: e.g. "random", "entropy", "bald+power", "feal+stochastic+cap".
        passes: forward passes of each model, for strategies that compare predictions; 1 is without dropout, for two models. The
            others do with one.
        power_beta: β of the power wrapper, above 0; large is close to taking the top.
        per_patient: cases of a patient in a batch that the cap lets through, at least 1.
        progress: 0 at a run's first query to 1 at its last, for strategies that rely on chance less and less.

    Raises:
        ValueError: an unknown name (with the nearest valid one), a value out of range, or a file that holds no such strategy.
    """
    fault = fault_of(text)
    if fault is not None:
        raise ValueError(fault)
    if passes < 1:
        raise ValueError(f"query.passes is {passes}: a model must be asked at least once")
    if not (math.isfinite(power_beta) and power_beta > 0):
        raise ValueError(f"query.power_beta is {power_beta}: it divides the noise, so it must be above 0")
    if per_patient < 1:
        raise ValueError(f"query.per_patient is {per_patient}: at least one case of a patient must be allowed")
    base, *wrappers = text.split("+")
    strategy = _loaded(base)
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


def _loaded(base: str) -> Strategy:
    """The strategy of that name in the table, from its file.

    Raises:
        ValueError: the file can't be imported, or does not hold it.
    """
    module, constant = f"strategies.query.{STRATEGIES[base].file}", base.upper().replace("-", "_")
    where = f"strategies/query/{STRATEGIES[base].file}.py, where the table in __init__.py says that {base} is,"
    try:
        found = getattr(import_module(module), constant, None)
    except Exception as error:  # whoever writes a strategy may have written anything
        raise ValueError(f"{where} can't be imported: {type(error).__name__}: {error}") from error
    if not isinstance(found, Strategy):
        raise ValueError(
            f"{where} must hold {constant} = Strategy(...); it holds {'none' if found is None else type(found).__name__}"
        )
    return found
