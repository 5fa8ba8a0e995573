"""The table of query strategies as `wardround strategies` prints it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from strategies.query import BEFORE_TRAINING, CAP, CHOOSERS, STRATEGIES

COSTS = {
    "model": "one forward pass",
    "dropout": "query.passes of them",
    "local model": "and one by the site's own model",
    "training alone": "and a training at the site alone in each cycle",
    "evidential head": 'network.head = "evidential"',
    "embeddings": "SAM's embeddings, kept",
}
"""What a strategy needs, in the order of the table, as a reader pays for it."""


def show(console: Console) -> None:
    """Strategies with what they choose, what they cost and who published them, then what can be written behind them."""
    table = Table(title="query.strategy", title_justify="left", pad_edge=False)
    for column in ("name", "chooses", "costs", "source"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for name, entry in STRATEGIES.items():
        costs = ", ".join(COSTS[need] for need in entry.needs) or "nothing"
        table.add_row(f"[bold]{name}[/]" + ("" if entry.scored else " *"), entry.rule, costs, entry.source)
    console.print(table)
    console.print("* gives cases no score of their own, so that +stochastic, +power and +balanced can't be written behind it\n")
    wrappers = Table(title="written behind a name, e.g. feal+stochastic", title_justify="left", pad_edge=False)
    for column in ("wrapper", "chooses", "source"):
        wrappers.add_column(column, overflow="fold", no_wrap=column == "wrapper")
    for name, (source, rule) in CHOOSERS.items():
        wrappers.add_row(f"[bold]+{name}[/]", rule, source)
    wrappers.add_row(f"[bold]+{CAP}[/]", "the same, with at most query.per_patient cases of a patient at a time", "")
    console.print(wrappers)
    console.print(
        f"\nBefore anything is trained, query.cold_start chooses: {', '.join(BEFORE_TRAINING)}. Whose prediction is scored is "
        "query.model: global, local, both, or switch (FairFAL, CVPR 2026), which lets each site choose.",
        highlight=False,
        soft_wrap=True,
    )
