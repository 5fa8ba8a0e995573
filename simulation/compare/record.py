"""What a run of a comparison gave: a few kilobytes that everything is computed from, and that outlive the run's folder."""

from __future__ import annotations

import ast
import hashlib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tomlkit
from pydantic import ValidationError

import strategies.query
from client.store import Store
from configs.files import write_text
from configs.schema import Run
from server.report_data import number, per_site, read_record
from server.report_sums import problems
from strategies.query import STRATEGIES


@dataclass(frozen=True)
class Point:
    """One cycle's assessment.

    Attributes:
        labels: labels of all sites together that training had.
        minutes: what they had cost the experts.
        foreground: the share of all foreground pixels in the pools that they show.
        validation, test: patient (`site/patient`) to mean Dice over classes and volumes.
        worst_test: the lowest mean test Dice of a site; None where no site has a test patient with a structure to find.
        bytes: that all sites and the coordinator had sent each other.
        unassessed: sites that told no Dice, because of a fault.
    """

    labels: int
    minutes: float
    foreground: float
    validation: dict[str, float]
    test: dict[str, float]
    worst_test: float | None
    bytes: int
    unassessed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ran:
    """A finished run of an arm with a seed: of which fold, by which configuration and program, on which machine.

    Attributes:
        refused: how often a site had a fault in a step instead of an answer. One that could not score its pool asks for cases by
            chance in that cycle. To sit out a round, for want of a first label, is none.
        code: of the strategy's file (`code_of`); empty in records from before it was kept.
    """

    arm: str
    seed: int
    points: tuple[Point, ...]
    seconds: float
    fold: int = 0
    settings: str = ""
    commit: str = ""
    machine: str = ""
    refused: int = 0
    code: str = ""


def read(path: Path) -> Ran | None:
    """The record in a run's folder, or None where the run has not ended."""
    if not path.exists():
        return None
    stored = json.loads(path.read_text())
    return Ran(**{**stored, "points": tuple(Point(**point) for point in stored["points"])})


def write(path: Path, ran: Ran) -> None:
    """Atomically."""
    write_text(path, json.dumps(asdict(ran), sort_keys=True))


def taken(arm: str, folders: Iterable[Path], *, run: Run, alone: bool) -> Ran:
    """From the folders of an ended run: one for each site where sites train alone, else one."""
    parts = [_part(folder) for folder in folders]
    cycles = list(zip(*(part.points for part in parts), strict=True))
    points = tuple(_merged(of, [part.pool for part in parts]) if alone else of[0] for of in cycles)
    start = parts[0].start
    return Ran(
        arm=arm,
        seed=run.seed,
        points=points,
        seconds=sum(part.seconds for part in parts),
        fold=run.split.fold,
        settings=settings_of(run),
        commit=str(start.get("commit")),
        machine=str(start.get("machine")),
        refused=sum(part.refused for part in parts),
        code=code_of(run),
    )


def differences(ran: Ran, run: Run) -> list[str]:
    """In what a record differs from the run that is asked for: settings (`changed`), or the strategy's own file."""
    other = changed(ran.settings, run)
    if ran.code and ran.code != code_of(run):
        other.append(f"another strategies/query/{_file_of(run).name}")
    return other


def changed(settings: str, run: Run) -> list[str]:
    """Settings in which a run (`settings_of`) differs from the one that is asked for, as `key = its value`; where data lies is
    none of them.

    A key that did not exist then has the value that it has by default.
    """
    stored = tomllib.loads(settings)
    stored["data"] = {**stored.get("data", {}), "root": run.data.root}
    try:
        theirs = Run.model_validate(stored)
    except ValidationError:
        return ["settings that this version does not know"]
    stored, ours = (dict(_flat(of.model_dump(mode="json"))) for of in (theirs, run))
    other = [f"{key} = {json.dumps(stored.get(key))}" for key in {**stored, **ours} if stored.get(key) != ours.get(key)]
    if list(theirs.classes) != list(run.classes):  # their order is that of the network's channels
        other.append("the classes " + ", ".join(theirs.classes))
    return other


def code_of(run: Run) -> str:
    """A digest of the file that the run's strategy is in, whatever its comments and layout: who writes a strategy changes it
    more often than they commit it."""
    return hashlib.sha256(ast.unparse(ast.parse(_file_of(run).read_text())).encode()).hexdigest()[:12]


def _file_of(run: Run) -> Path:
    entry = STRATEGIES[run.query.strategy.split("+")[0]]
    return Path(strategies.query.__file__).with_name(f"{entry.file}.py")


def settings_of(run: Run) -> str:
    """As TOML, without the data's root: a record must not tell what somebody's folders are called."""
    return tomlkit.dumps(run.model_dump(mode="json", exclude_none=True, exclude={"data": {"root"}}))


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, object]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


@dataclass(frozen=True)
class _Part:
    """One federation's run: its points, seconds, foreground pixels in its pools, faults of sites, and how its record begins."""

    points: list[Point]
    seconds: float
    pool: int
    refused: int
    start: Mapping[str, object]


def _part(folder: Path) -> _Part:
    record = read_record(folder)
    stores = {path.parent.name: Store.at(path) for path in sorted((folder / "sites").glob("*/site.db"))}
    costs = {site: store.costs() for site, store in stores.items()}
    pool = sum(_hidden_foreground(folder / "sites" / site) for site in stores)
    labelled: dict[str, int] = {}
    sent, found = 0, []
    for event in record.events:
        sites = per_site(event)
        sent += sum(int(number(told.get(key)) or 0) for told in sites.values() for key in ("bytes_up", "bytes_down"))
        if event["event"] == "train":
            labelled |= {site: int(told["labels_trained"]) for site, told in sites.items()}
        if event["event"] == "assess":
            cycle = int(event["cycle"])
            first = {site: costs[site][: labelled.get(site, 0)] for site in stores}
            dice = {role: _dice(stores, cycle, role) for role in ("validation", "test")}
            known = {patient.partition("/")[0] for of in dice.values() for patient in of}
            found.append(
                Point(
                    labels=int(event["labels_total"]),
                    minutes=round(sum(minutes for some in first.values() for _, minutes in some), 3),
                    foreground=sum(_foreground(stores[site], [case for case, _ in first[site]]) for site in stores)
                    / max(pool, 1),
                    validation=dice["validation"],
                    test=dice["test"],
                    worst_test=number(event.get("dice_worst_test")),
                    bytes=sent,
                    unassessed=sorted(stores.keys() - sites.keys() - known),
                )
            )
    for store in stores.values():
        store.close()
    end = record.end
    refused = sum(problem.is_fault for problem in problems(record))
    return _Part(found, float(number(end.get("seconds")) or 0.0) if end else 0.0, pool, refused, record.start)


def _merged(points: tuple[Point, ...], pools: Sequence[int]) -> Point:
    """Sites that train alone taken together, whose pools hold so many foreground pixels."""
    return Point(
        labels=sum(point.labels for point in points),
        minutes=sum(point.minutes for point in points),
        foreground=sum(p.foreground * pool for p, pool in zip(points, pools, strict=True)) / max(sum(pools), 1),
        validation={patient: dice for point in points for patient, dice in point.validation.items()},
        test={patient: dice for point in points for patient, dice in point.test.items()},
        worst_test=min((point.worst_test for point in points if point.worst_test is not None), default=None),
        bytes=0,  # who trains alone sends nothing
        unassessed=sorted(site for point in points for site in point.unassessed),
    )


def _dice(stores: Mapping[str, Store], cycle: int, role: str) -> dict[str, float]:
    return {f"{site}/{patient}": dice for site, store in stores.items() for patient, dice in store.dice(cycle, role).items()}


def _foreground(store: Store, cases: Sequence[str]) -> int:
    return sum(int((mask > 0).sum()) for mask in store.labels(cases))


def _hidden_foreground(workspace: Path) -> int:
    """Foreground pixels in all that a simulated expert could be asked for."""
    total = 0
    for path in (workspace / "hidden").glob("*.npz"):
        with np.load(path) as file:
            total += int((file["mask"] > 0).sum())
    return total
