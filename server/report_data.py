"""A run's history as a report needs it: lines to events, events to plain values. Reads files, computes nothing new.

A value that a site withholds is None from here on; a site that gave no answer is missing from a mapping. The two are
never mixed, and neither becomes a zero.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

Event: TypeAlias = dict[str, Any]

SCHEMA = 1
"""The version of `history.jsonl` that this file reads."""


class NotARun(ValueError):
    """The folder holds no history to report on; the message says what was looked for and what to do."""


@dataclass(frozen=True)
class CurvePoint:
    """One assessment of the global model. Dice in 0..1; None is withheld.

    Attributes:
        cycle: which cycle was assessed, from 1.
        labels: labels of all sites together that training had at that time.
        minutes: what experts had spent on them by then, by the run's model of effort (`[cost]`), as sites told with their labels
            and rounds; None where one withholds it.
        dice, dice_test: mean over sites, on validation and on test patients.
        worst_site, dice_worst_test: the site with the lowest test Dice, and that Dice.
        gain: `dice_test` minus that of the point before; None for the first point.
    """

    cycle: int
    labels: int | None
    minutes: float | None
    dice: float | None
    dice_test: float | None
    worst_site: str | None
    dice_worst_test: float | None
    gain: float | None


@dataclass(frozen=True)
class SiteScore:
    """What one site answered to an assessment; None is withheld. By class: one value per foreground class."""

    dice: float | None
    dice_test: float | None
    by_class: tuple[float | None, ...] = ()
    by_class_test: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Assessed:
    """One `assess` event: the federation's means and every site that answered; minutes as in `CurvePoint`."""

    cycle: int
    labels: int | None
    minutes: float | None
    dice: float | None
    dice_test: float | None
    sites: Mapping[str, SiteScore]


@dataclass(frozen=True)
class Record:
    """Everything a run folder says about itself.

    Attributes:
        folder: the run folder.
        events: the readable lines of `history.jsonl`, in order.
        notes: sentences about what could not be read.
        configuration: text of `config.toml`, or None where there is none.
    """

    folder: Path
    events: tuple[Event, ...]
    notes: tuple[str, ...]
    configuration: str | None

    def of(self, *kinds: str) -> Iterable[Event]:
        """Events of these kinds, in order."""
        return (event for event in self.events if event.get("event") in kinds)

    @property
    def start(self) -> Event:
        """The `start` event; empty when the run was killed before it."""
        return next(iter(self.of("start")), {})

    @property
    def end(self) -> Event | None:
        """The `end` event, or None for a run that has not ended. A resume after it makes it a run under way again."""
        last = next((event for event in reversed(self.events) if event.get("event") in ("end", "resume", "train")), None)
        return last if last is not None and last.get("event") == "end" else None

    @property
    def name(self) -> str:
        return plain(self.start.get("name") or self.folder.name)

    @property
    def classes(self) -> tuple[str, ...]:
        """Foreground class names, in the order of the label values."""
        return tuple(plain(name) for name in _list(self.start.get("classes")))

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site that appears anywhere, in natural order (site 2 before site 10)."""
        return tuple(sorted({name for event in self.events for name in per_site(event)}, key=natural))


def history_lines(path: Path) -> tuple[list[Event], list[str]]:
    """The events of a `history.jsonl` and a note for every line that is none.

    A run may be killed while it writes, so a torn last line is expected and left out; a damaged line elsewhere is left
    out too, and the note says so because it should not happen.

    Raises:
        NotARun: the file is not there or can't be read.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise NotARun(
            f"{path} can't be read ({error.strerror}): a report needs the history of a run. "
            "Give the folder that `wardround simulate` wrote, e.g. runs/demo"
        ) from error
    events: list[Event] = []
    notes: list[str] = []
    lines = text.split("\n")
    last = max((i for i, line in enumerate(lines) if line.strip()), default=-1)
    newer = False
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            whole = isinstance(event, dict) and isinstance(event.get("event"), str)
        except ValueError:
            whole = False
        if whole:
            events.append(event)
            newer = newer or (number(event.get("schema")) or 0) > SCHEMA
        elif i == last:
            notes.append("The last line of the history is torn, as after a kill, and was left out.")
        else:
            notes.append(f"Line {i + 1} of the history is damaged and was left out; what it recorded is missing here.")
    if newer:
        notes.append("This history was written by a newer wardround; a newer one may show more of it.")
    return events, notes


def read_record(run_dir: Path) -> Record:
    """The record in a run folder.

    Raises:
        NotARun: there is no readable `history.jsonl` in it.
    """
    events, notes = history_lines(run_dir / "history.jsonl")
    try:
        configuration = (run_dir / "config.toml").read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        configuration = None
        notes.append(f"The configuration (config.toml) could not be read: {error.strerror}.")
    return Record(folder=run_dir, events=tuple(events), notes=tuple(notes), configuration=configuration)


def learning_curve(run_dir: Path) -> list[CurvePoint]:
    """The learning curve of a run, one point per assessed cycle, in order; empty when nothing was assessed yet.

    Raises:
        NotARun: there is no readable `history.jsonl` in the folder.
    """
    return curve(read_record(run_dir))


def curve(record: Record) -> list[CurvePoint]:
    """`learning_curve` of a record that was read already."""
    points: list[CurvePoint] = []
    for assessed in assessments(record):
        name, low = worst(assessed)
        before = points[-1].dice_test if points else None
        gain = assessed.dice_test - before if assessed.dice_test is not None and before is not None else None
        points.append(
            CurvePoint(assessed.cycle, assessed.labels, assessed.minutes, assessed.dice, assessed.dice_test, name, low, gain)
        )
    return points


def assessments(record: Record) -> list[Assessed]:
    """Every assessed cycle, in order. Where a cycle was assessed twice (a resumed run) the later one counts."""
    by_cycle: dict[int, Assessed] = {}
    minutes: dict[str, float | None] = {}
    at_first = {name: whole(values.get("labelled")) for event in record.of("join") for name, values in per_site(event).items()}
    for event in record.events:
        if event.get("event") in ("annotate", "train"):
            for name, told in per_site(event).items():
                if "minutes" in told or name not in minutes:  # rounds of older runs do not speak of minutes
                    minutes[name] = _spent(told, labels_at_first=at_first.get(name, 0))
        if event.get("event") != "assess":
            continue
        known = [spent for spent in minutes.values() if spent is not None]
        cycle = whole(event.get("cycle")) or 0
        by_cycle[cycle] = Assessed(
            cycle=cycle,
            labels=whole(event.get("labels_total")),
            minutes=sum(known) if known and len(known) == len(minutes) else None,
            dice=number(event.get("dice_mean")),
            dice_test=number(event.get("dice_mean_test")),
            sites={
                name: SiteScore(
                    dice=number(values.get("dice")),
                    dice_test=number(values.get("dice_test")),
                    by_class=tuple(number(value) for value in _list(values.get("dice_by_class"))),
                    by_class_test=tuple(number(value) for value in _list(values.get("dice_by_class_test"))),
                )
                for name, values in per_site(event).items()
            },
        )
    return [by_cycle[cycle] for cycle in sorted(by_cycle)]


def _spent(told: Event, *, labels_at_first: int | None) -> float | None:
    """The minutes that a site told, in all; none where no label has come since it joined: then there is nothing to withhold."""
    spent, labelled = number(told.get("minutes")), whole(told.get("labelled"))
    return 0.0 if spent is None and labelled is not None and labelled == labels_at_first else spent


def worst(assessed: Assessed) -> tuple[str | None, float | None]:
    """The site with the lowest test Dice (the first by name among equals) and that Dice; None where all withhold it."""
    told = {name: score.dice_test for name, score in assessed.sites.items() if score.dice_test is not None}
    if not told:
        return None, None
    name = min(sorted(told, key=natural), key=lambda site: told[site])
    return name, told[name]


def per_site(event: Event) -> dict[str, dict[str, Any]]:
    """The `sites` of an event with names fit to print; anything malformed counts as absent."""
    sites = event.get("sites")
    if not isinstance(sites, dict):
        return {}
    return {plain(name): values for name, values in sites.items() if isinstance(values, dict)}


def number(value: object) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def known(values: Iterable[float | None]) -> list[float]:
    """The values that are not withheld."""
    return [value for value in values if value is not None]


def whole(value: object) -> int | None:
    """A whole number, or None for anything else."""
    told = number(value)
    return None if told is None else int(told)


def moment(event: Event) -> datetime | None:
    """When an event was written, or None where its `time` is not an ISO time."""
    try:
        return datetime.fromisoformat(str(event.get("time")))
    except ValueError:
        return None


def natural(name: str) -> list[tuple[int, str]]:
    """Sorting key in which "site 2" comes before "site 10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def plain(text: object) -> str:
    """Text without control characters, which neither HTML nor SVG can hold, at most 200 characters of it."""
    return "".join(character if character.isprintable() else " " for character in str(text))[:200]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
