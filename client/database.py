"""The engine under a site's store, and its failures as sentences that name the database and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import create_engine, event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DatabaseError

from client.faults import SiteFault

_DAMAGED = (
    "it is damaged, and with it the labels in it. Put a backup of it back; without one, move it and the files beside it that "
    "begin with its name away, and the site starts a new pool"
)
_CLOSED = "make it, and the folder it lies in, writable for the user who runs this site"
_FULL = "free some space on its disk and go on: what was stored before is safe"

REMEDIES = {
    "file is not a database": _DAMAGED,
    "database disk image is malformed": _DAMAGED,
    "database or disk is full": _FULL,
    "disk I/O error": "see whether its disk has room and is sound, then go on: what was stored before is safe",
    "unable to open database file": _CLOSED,
    "attempt to write a readonly database": _CLOSED,
    "database is locked": "another process works in this workspace: wait for it to end, or stop it",
}
"""What SQLite says, to what a person can do. Anything else is a slip of ours and stays what it is."""


def open_engine(url: str) -> Engine:
    """The engine for a database; SQLite in WAL mode, every commit on the disk before it returns."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _pragmas(connection, _record) -> None:  # type: ignore[no-untyped-def]
            cursor = connection.cursor()
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.close()

    return engine


@contextmanager
def mendable(engine: Engine) -> Iterator[None]:
    """Turns what a person can mend about the database into a sentence.

    Raises:
        SiteFault: the database is damaged, locked, full or not writable; names it and the remedy.
    """
    try:
        yield
    except DatabaseError as error:
        said = str(error.orig)
        remedy = next((remedy for sign, remedy in REMEDIES.items() if sign in said), None)
        if remedy is None:
            raise
        name = engine.url.database if engine.dialect.name == "sqlite" else engine.url.render_as_string(hide_password=True)
        raise SiteFault("storage", f"cannot use {name} ({said}): {remedy}") from error
