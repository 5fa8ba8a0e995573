"""Whether a run's query strategy can be loaded, found out before anything is made and not when the first pool is scored."""

from __future__ import annotations

from configs.faults import ConfigError, Fault
from configs.schema import Run
from strategies.query.parse import parse_query


def check(run: Run) -> None:
    """Loads the strategy's file, which somebody may just have written.

    Raises:
        ConfigError: it can't be imported, or does not hold the strategy.
    """
    try:
        parse_query(run.query.strategy)
    except ValueError as error:
        raise ConfigError(run.name, [Fault(("query", "strategy"), str(error))]) from error
