"""The egress log: one line for each reply that left the site, sent or refused, chained by hashes.

A line is a JSON object: `n` from 1, `time` (UTC), `message` (its type), `cycle`, `round`, `sent`; `code` and
`reference` of a refusal; `records` (record to key to kind and shape, never a value); `withheld` (of a refused reply:
how many records and bytes stayed here); `bytes` and `sha256` of the serialised content that left; `previous`, the hash
of the line before; `hash`, the SHA-256 of the line without it.

The line is on the disk before the reply leaves. So a kill can leave a line too many, never one too few, and a line that
a kill tore in two belongs to a reply that never left: the next append moves it to `<path>.torn`.

What the chain shows: a line that was edited, deleted or moved, since each hash covers the line before. What it can't
show by itself: lines cut from the end, or the whole file written anew by somebody who computes new hashes. Both are
found against a hash from `head` that was kept elsewhere (on paper, in a mail): `verify(path, kept=...)`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.files import StorageFault

GENESIS = "0" * 64
"""`previous` of the first line."""

LOCK_TIMEOUT_S = 60.0
"""An append takes milliseconds; who waits longer than this waits for a process that hangs."""

Shapes = Mapping[str, Mapping[str, str]]
"""Record to key to what it is, e.g. `float32[16,1,3,3] 576 B`."""


class Withheld(BaseModel):
    """How much of a refused reply stayed at the site: number of records, bytes of their values. No names, no values."""

    model_config = ConfigDict(frozen=True, strict=True)

    records: int
    bytes: int


class Entry(BaseModel):
    """One line; the fields are explained on top of this file. A later version may have written more of them."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    n: int
    time: str
    message: str
    cycle: int | None
    round: int | None
    sent: bool
    code: str | None
    reference: str | None
    records: dict[str, dict[str, str]]
    withheld: Withheld | None
    bytes: int
    sha256: str
    previous: str
    hash: str


@dataclass(frozen=True)
class EgressLog:
    """The log at `path`. Several processes may append at a time."""

    path: Path

    def append(
        self,
        *,
        message: str,
        cycle: int | None,
        round: int | None,
        sent: bool,
        content: bytes,
        records: Shapes,
        code: str | None = None,
        reference: str | None = None,
        withheld: Withheld | None = None,
    ) -> None:
        """Write one line and return when it is on the disk.

        Args:
            message: type of the request that is answered.
            cycle, round: where the run is; None where the request does not say.
            sent: False when the reply was refused and `content` is the refusal.
            content: the serialised content that is about to leave.
            records: kinds and shapes of what is in `content`.
            code, reference: of a refusal.
            withheld: how much of the refused reply stayed here.

        Raises:
            StorageFault: the line can't be written; then nothing may leave.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(_beside(self.path, ".lock"), timeout=LOCK_TIMEOUT_S):
                new = not self.path.exists()
                with open(self.path, "a+b") as file:
                    last = _repair(file, torn=_beside(self.path, ".torn"))
                    entry = {
                        "n": last.n + 1 if last else 1,
                        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                        "message": message,
                        "cycle": cycle,
                        "round": round,
                        "sent": sent,
                        "code": code,
                        "reference": reference,
                        "records": {record: dict(keys) for record, keys in records.items()},
                        "withheld": withheld and withheld.model_dump(),
                        "bytes": len(content),
                        "sha256": hashlib.sha256(content).hexdigest(),
                        "previous": last.hash if last else GENESIS,
                    }
                    file.write(_line({**entry, "hash": _hash(entry)}))
                    _flush(file)
                if new:
                    _sync_folder(self.path.parent)
        except Timeout:
            raise StorageFault(
                None,
                f"{self.path} has been locked for {LOCK_TIMEOUT_S:.0f} s: nothing leaves without a line in it. "
                "Find the wardround process that hangs and end it",
            ) from None
        except OSError as error:
            raise StorageFault(
                error.errno,
                f"cannot write {self.path}: {error.strerror or error}. Nothing leaves without a line in it: free some "
                "space or make it writable",
            ) from error


def read(path: Path) -> list[Entry]:
    """All lines that can be read, in the order of the file; empty where no reply has left yet."""
    return [entry for _, entry in _lines(path) if entry is not None]


def head(path: Path) -> str:
    """Hash of the last line (64 zeros for an empty log). Kept elsewhere it shows later that no line was cut off."""
    entries = read(path)
    return entries[-1].hash if entries else GENESIS


def verify(path: Path, *, kept: str | None = None) -> list[str]:
    """What is wrong with the log, a sentence each; empty when it is intact.

    Args:
        path: the log.
        kept: a hash that `head` gave earlier and that was kept elsewhere. Without it, lines cut from the end and a log
            that was written anew as a whole can't be found.
    """
    problems = []
    previous = GENESIS
    hashes = {GENESIS}
    for number, (raw, entry) in enumerate(_lines(path), start=1):
        if entry is None:
            torn = "is torn: an append was interrupted, that reply never left"
            problems.append(f"line {number} " + ("is unreadable" if raw.endswith(b"\n") else torn))
            continue
        content = json.loads(raw)
        unhashed = {key: value for key, value in content.items() if key != "hash"}
        if entry.hash != _hash(unhashed) or raw != _line(content):
            problems.append(f"line {number} was edited: its content does not give its hash")
        if entry.n != number:
            problems.append(f"line {number} says that it is line {entry.n}: lines were deleted, added or moved")
        if entry.previous != previous:
            problems.append(f"line {number} does not follow the one before: a line was edited, deleted, added or moved")
        previous = entry.hash
        hashes.add(previous)
    if kept is not None and kept not in hashes:
        problems.append(f"no line has the hash {kept} that was kept: lines were cut off, or the log was written anew")
    aside = _beside(path, ".torn")
    if aside.exists():
        count = aside.read_bytes().count(b"\n")
        problems.append(f"{count} torn line(s) lie in {aside.name}: appends were interrupted, those replies never left")
    return problems


def render(path: Path, console: Console) -> None:
    """Print the log as a table for people, and below it what left in all and whether the chain is intact."""
    entries = read(path)
    table = Table(title=Text(str(path)), title_justify="left")
    for column in ("time (UTC)", "message", "cycle", "round", "", "what left"):
        table.add_column(column, overflow="fold")
    table.add_column("bytes", justify="right")
    for entry in entries:
        table.add_row(
            Text(entry.time[:19].replace("T", " ")),
            Text(entry.message),
            _number(entry.cycle),
            _number(entry.round),
            Text("sent", style="green") if entry.sent else Text("refused", style="bold red"),
            Text(_what(entry)),
            f"{entry.bytes:,}",
        )
    console.print(table)
    sent = sum(entry.sent for entry in entries)
    total = sum(entry.bytes for entry in entries)
    console.print(f"{sent} sent, {len(entries) - sent} refused, {total:,} bytes left this site.", highlight=False)
    problems = verify(path)
    for problem in problems:
        console.print(Text(problem, style="bold red"))
    if not problems:
        console.print(Text(f"The chain is intact. Head: {head(path)}", style="green"), soft_wrap=True)


# --------------------------------------------------------------------------------------------------------------- lines


def _hash(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(_line(entry)).hexdigest()


def _line(entry: Mapping[str, Any]) -> bytes:
    """The one way to write an entry, so that any other spelling of a line shows as an edit."""
    return json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _parse(raw: bytes) -> Entry | None:
    """The entry in a line, or None when it is torn or no entry at all."""
    if not raw.endswith(b"\n"):
        return None
    try:
        return Entry.model_validate_json(raw)
    except ValidationError:
        return None


def _lines(path: Path) -> Iterator[tuple[bytes, Entry | None]]:
    """Each line's bytes, and its entry where it has one; nothing for a file that does not exist."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for raw in file:
            yield raw, _parse(raw)


# -------------------------------------------------------------------------------------------------------------- append


def _repair(file: BinaryIO, *, torn: Path) -> Entry | None:
    """The last whole entry, or None for an empty log; what an interrupted append left behind it is moved to `torn`.

    A line whose end is there but whose middle is not (blocks reach a disk in any order) counts as torn as well. A whole
    entry with a wrong hash does not: it was edited, and stays where `verify` finds it.
    """
    start = _start_of_last_line(file)
    file.seek(start)
    raw = file.read()
    if not raw:
        return None
    entry = _parse(raw)
    if entry is not None:
        return entry
    with open(torn, "ab") as aside:
        aside.write(raw.rstrip(b"\n") + b"\n")
        _flush(aside)
    file.truncate(start)
    _flush(file)
    return _repair(file, torn=torn)


def _start_of_last_line(file: BinaryIO, *, block: int = 65536) -> int:
    """Offset just behind the last newline that is not the file's last byte; 0 when there is none."""
    end = file.seek(0, io.SEEK_END) - 1
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


# --------------------------------------------------------------------------------------------------------------- table


def _number(value: int | None) -> str:
    return "–" if value is None else str(value)


def _what(entry: Entry) -> str:
    """In a few words what left: how many arrays or which numbers of each record, or the refusal's code."""
    if entry.sent:
        return ", ".join(f"{record} ({_keys(keys)})" for record, keys in entry.records.items())
    stayed = f"; {entry.withheld.records} records, {entry.withheld.bytes:,} B stayed here" if entry.withheld else ""
    return f"{entry.code}, reference {entry.reference}{stayed}"


def _keys(keys: Mapping[str, str]) -> str:
    arrays = sum(kind.endswith(" B") for kind in keys.values())
    return f"{arrays} arrays" if arrays else ", ".join(keys)
