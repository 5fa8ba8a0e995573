"""`history.jsonl`: what happened, one JSON object a line, in the order it happened."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from configs.files import StorageFault

SCHEMA = 1

Event = Mapping[str, Any]


def event(kind: str, *, cycle: int = 0, round: int = 0, **fields: Any) -> Event:
    """An event as history holds it; `kind` is one of start, join, train, assess, grant, annotate, refused, late, resume, end."""
    return {"schema": SCHEMA, "event": kind, "cycle": cycle, "round": round, **fields}


class History:
    """Appends events durably; can go back to a checkpoint's length, so that a step done again is written once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._path.stat().st_size if self._path.exists() else 0

    @property
    def ended(self) -> bool:
        """Whether the last event is the end of the run, and was written whole: a full disk or a lost power tears a line."""
        if not self.size:
            return False
        *lines, torn = self._path.read_bytes().split(b"\n")
        if torn or not lines:
            return False
        try:
            last = json.loads(lines[-1])
        except ValueError:
            return False
        return isinstance(last, dict) and last.get("event") == "end"

    def append(self, events: Sequence[Event]) -> None:
        """Write the events, each with the time, and make them durable.

        Raises:
            StorageFault: the file can't be written.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        lines = [json.dumps(_finite({**item, "time": now}), allow_nan=False) + "\n" for item in events]
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            told = f"cannot write {self._path}: {error.strerror}; free some space, then go on with --resume"
            raise StorageFault(error.errno, told) from error

    def truncate(self, size: int) -> None:
        """Forget what was written after the first `size` bytes: steps that the checkpoint does not know."""
        if self.size > size:
            with self._path.open("rb+") as file:
                file.truncate(size)


def _finite(value: Any) -> Any:
    """JSON has no NaN: a number that is none is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
