"""The worklist of a workspace as a table, for `wardround site worklist`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.faults import SiteFault
from client.store import Store


def render_worklist(workspace: Path, console: Console) -> None:
    """Print what experts are asked for, why, and what was wrong with an answer; then the pool in one line.

    Raises:
        SiteFault: the workspace has no database yet.
    """
    path = workspace / "site.db"
    if not path.exists():
        raise SiteFault("bad-request", f"{workspace} holds no site.db: it is no workspace, or its site has not joined a run yet")
    store = Store.at(path)
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
    finally:
        store.close()
