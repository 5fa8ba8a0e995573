"""How far a run is: a bar on a terminal, plain lines elsewhere (a log, a notebook, Flower's own stream)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """A rich progress bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def step(self, text: str, *, done: int, total: int) -> None:
        self._progress.update(self._task, description=text, completed=done, total=total)


class Lines:
    """One line a step."""

    def __init__(self, console: Console, name: str) -> None:
        self._console, self._name, self._said = console, name, ""

    def step(self, text: str, *, done: int, total: int) -> None:
        if text != self._said:
            self._console.print(f"{self._name}  {done:>3}/{total}  {text}", highlight=False)
            self._said = text


@contextmanager
def progress_for(name: str, console: Console | None = None) -> Iterator[Bar | Lines]:
    """The display that fits where the output goes; `name` is the run's."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield Lines(console, name)
        return
    columns = (
        TextColumn(f"[bold]{name}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(progress, progress.add_task("", total=None))
