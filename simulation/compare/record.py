"""What a run of a comparison gave: a few kilobytes that everything is computed from, and that outlive the run's folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from client.store import Store
from configs.files import write_text
from server.report_data import number, per_site, read_record


@dataclass(frozen=True)
class Point:
    """One cycle's assessment.

    Attributes:
        labels: labels of all sites together that training had.
        minutes: what they had cost the experts.
        foreground: the share of all foreground pixels in the pools that they show.
        validation, test: patient (`site/patient`) to mean Dice over classes and volumes.
        worst_test: the lowest mean test Dice of a site.
        bytes: that all sites and the coordinator had sent each other.
    """

    labels: int
    minutes: float
    foreground: float
    validation: dict[str, float]
    test: dict[str, float]
    worst_test: float
    bytes: int


@dataclass(frozen=True)
class Ran:
    """A finished run of an arm with a seed; `commit` and `machine` are the program's own."""

    arm: str
    seed: int
    points: tuple[Point, ...]
    seconds: float


def read(path: Path) -> Ran | None:
    """The record in a run's folder, or None where the run has not ended."""
    if not path.exists():
        return None
    stored = json.loads(path.read_text())
    return Ran(**{**stored, "points": tuple(Point(**point) for point in stored["points"])})


def write(path: Path, ran: Ran) -> None:
    """Atomically."""
    write_text(path, json.dumps(asdict(ran), sort_keys=True))


def taken(arm: str, seed: int, folders: Iterable[Path]) -> Ran:
    """From the folders of an ended run, one for each federation (several where each site is one)."""
    runs = [_points(folder) for folder in folders]
    merged = tuple(_merged(points) for points in zip(*[points for points, _ in runs], strict=True))
    return Ran(arm, seed, merged, sum(seconds for _, seconds in runs))


def _points(folder: Path) -> tuple[list[Point], float]:
    record = read_record(folder)
    stores = {path.parent.name: Store.at(path) for path in sorted((folder / "sites").glob("*/site.db"))}
    minutes: dict[str, float] = {}
    labelled: dict[str, int] = {}
    sent, found = 0, []
    whole = {site: _hidden_foreground(folder / "sites" / site) for site in stores}
    for event in record.events:
        sites = per_site(event)
        sent += sum(int(number(told.get(key)) or 0) for told in sites.values() for key in ("bytes_up", "bytes_down"))
        if event["event"] == "annotate":
            minutes |= {site: float(number(told.get("minutes")) or 0.0) for site, told in sites.items()}
        if event["event"] == "train":
            labelled |= {site: int(told["labels_trained"]) for site, told in sites.items()}
        if event["event"] == "assess":
            cycle = int(event["cycle"])
            shown = sum(_foreground(store, labelled.get(site, 0)) for site, store in stores.items())
            by_role = {
                role: {
                    f"{site}/{patient}": dice
                    for site, store in stores.items()
                    for patient, dice in store.dice(cycle, role).items()
                }
                for role in ("validation", "test")
            }
            found.append(
                Point(
                    labels=int(event["labels_total"]),
                    minutes=round(sum(minutes.values()), 3),
                    foreground=shown / max(sum(whole.values()), 1),
                    validation=by_role["validation"],
                    test=by_role["test"],
                    worst_test=float(event["dice_worst_test"]),
                    bytes=sent,
                )
            )
    for store in stores.values():
        store.close()
    end = record.end
    return found, float(number(end.get("seconds")) or 0.0) if end else 0.0


def _merged(points: tuple[Point, ...]) -> Point:
    """Federations of one site each, taken together."""
    return Point(
        labels=sum(point.labels for point in points),
        minutes=sum(point.minutes for point in points),
        foreground=float(np.mean([point.foreground for point in points])),
        validation={patient: dice for point in points for patient, dice in point.validation.items()},
        test={patient: dice for point in points for patient, dice in point.test.items()},
        worst_test=min(point.worst_test for point in points),
        bytes=sum(point.bytes for point in points),
    )


def _foreground(store: Store, labels: int) -> int:
    """Foreground pixels in the labels that came first."""
    return sum(int((mask > 0).sum()) for mask in store.labels(store.first_labelled(labels)))


def _hidden_foreground(workspace: Path) -> int:
    """Foreground pixels in all that a simulated expert could be asked for."""
    total = 0
    for path in (workspace / "hidden").glob("*.npz"):
        with np.load(path) as file:
            total += int((file["mask"] > 0).sum())
    return total
