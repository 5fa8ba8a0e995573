"""The worklist of a workspace as a table, for `wardround site worklist`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.store import Store


def render_worklist(workspace: Path, console: Console) -> None:
    """Print what experts are asked for, why, and what was wrong with an answer; then the pool in one line.

    Raises:
        SiteFault: the workspace has no database yet.
    """
    store = Store.found_in(workspace)
    try:
        table = Table("case", "grant", "place", "score", "why", "problem", title="Waiting for an expert", title_justify="left")
        for request in store.open_requests():
            table.add_row(
                Text(request.case.id, overflow="fold"),
                str(request.number),
                str(request.rank),
                f"{request.score:.3g}",
                Text(request.reason),
                Text(request.problem, style="red"),
            )
        console.print(table)
        counts = store.counts()
        states = ("unlabelled", "requested", "labelled", "skipped", "validation", "test")
        console.print("; ".join(f"{counts.get(state, 0)} {state}" for state in states), highlight=False)
        if store.stopped is not None:
            told = f"This site has stopped and answers nothing; why, and how it goes on: wardround site clear {workspace}"
            console.print(Text(told, style="red"), soft_wrap=True)
    finally:
        store.close()
