"""A site whose pool did not add up stops for good: it answers nothing until a person has looked and cleared it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from client.faults import SiteFault
from client.site import Site
from client.store import Store

CODE = "invariant-broken"


@contextmanager
def blaming(strategy: str) -> Iterator[None]:
    """Put the name of the query strategy that a run has before what breaks an invariant: whoever wrote it looks there first."""
    try:
        yield
    except SiteFault as fault:
        if fault.code != CODE:
            raise
        raise SiteFault(CODE, f"strategy {strategy}: {fault}") from fault


@contextmanager
def stopping_for_good(site: Site) -> Iterator[None]:
    """Around the answer to a message: refuse it where the site has stopped, and stop the site where an invariant breaks.

    Raises:
        SiteFault: with code `invariant-broken`, now or since an earlier message.
    """
    reason = site.store.stopped
    if reason is not None:
        raise SiteFault(
            CODE,
            f"{site.name} has stopped, because something happened that must not: {reason}. What it holds may be wrong, so it "
            f"answers nothing until a person has looked: `wardround site clear {site.workspace}`",
        )
    try:
        yield
    except SiteFault as fault:
        if fault.code != CODE:
            raise
        site.store.stop(str(fault))
        raise SiteFault(CODE, f"{fault}. The site has stopped, until `wardround site clear {site.workspace}`") from fault


def clear(workspace: Path, console: Console) -> None:
    """Show why a site has stopped and let it go on.

    Raises:
        SiteFault: the workspace has no database, or its pool still does not add up; then it stays stopped.
    """
    store = Store.found_in(workspace)
    try:
        reason = store.stopped
        if reason is None:
            console.print("This site has not stopped: there is nothing to clear.")
            return
        console.print(f"It stopped because: {reason}", highlight=False, markup=False, soft_wrap=True)
        try:
            store.check_conserved()
        except SiteFault as fault:
            told = f"{workspace / 'site.db'} is still wrong, so the site stays stopped: {fault}. Put a backup of it back"
            raise SiteFault(CODE, told) from fault
        store.clear()
    finally:
        store.close()
    console.print(
        "Cleared: the pool adds up, and the site answers again from the next message on. Before that, check\n"
        f"- {workspace / 'site.log'}: what came before it stopped;\n"
        "- that no other process and nobody by hand changes site.db;\n"
        f"- `wardround site worklist {workspace}`: whether the counts, and the last labels, are what you expect.\n"
        "If it stops again for the same reason, it is a fault of wardround: report it with the lines of site.log.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
