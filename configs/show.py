"""`wardround check`: says that a configuration is fine, or explains every key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.load import explain, load
from configs.schema import Run


def check(
    path: Path | None, overrides: Sequence[str], console: Console, *, explained: bool, further: Sequence[Callable[[Run], None]]
) -> None:
    """Validate `path` and say in two lines what it would run; with `explained` list all keys.

    Args:
        further: what else must hold of a valid configuration; each raises where it does not.

    Raises:
        ConfigError: with all faults at once.
    """
    if explained:
        table = Table("key", "type", "default", "meaning", title="Settings of a run")
        for row in explain():
            table.add_row(*(Text(text) for text in (row.key, row.type, row.default, row.description)))
        console.print(table)
    if path is None:
        return
    run = load(path, overrides)
    for holds in further:
        holds(run)
    federation, train, budget = run.federation, run.train, run.budget
    rounds = federation.cycles * train.rounds_per_cycle
    sam = f"with SAM in {run.rounds_with_sam} of {rounds} rounds" if run.sam.enabled else "without SAM"
    steps = rounds * train.local_steps
    console.print(f"{path} is valid: run {run.name!r}, seed {run.seed}, classes {', '.join(run.classes)}.", highlight=False)
    console.print(
        f"{federation.cycles} cycles of {train.rounds_per_cycle} rounds, {steps} steps a site, {train.framework} {sam}; "
        f"query {run.query.strategy}, {budget.cold_start} cases a site to begin with, {budget.per_cycle} more each cycle.",
        highlight=False,
    )
    for warning in run.warnings:
        console.print(f"[yellow]warning:[/] {warning}", highlight=False)
