"""The report of a run: one HTML file with its numbers and plots, which opens offline and follows light or dark."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from configs.files import write_text
from server import report_effort as effort
from server import report_plots as plots
from server import report_sums as sums
from server.report_data import (
    Assessed,
    CurvePoint,
    Record,
    assessments,
    curve,
    moment,
    number,
    plain,
    read_record,
    whole,
)
from server.report_pictures import examples
from server.report_svg import class_ink
from server.report_words import NOT_TOLD, WITHHELD, count, dice, duration, human_bytes, signed

SHOWN_PROBLEMS = 100
OPEN_SITES = 12


@dataclass(frozen=True)
class Tile:
    """One number of the headline: what it is, the number, and a line that puts it in proportion."""

    label: str
    value: str
    more: str
    tone: str = ""


@dataclass(frozen=True)
class SiteRow:
    """One site in the table of sites; every field is text ready to print."""

    name: str
    cases: str
    granted: str
    received: str
    up: str
    down: str
    troubles: str


def build_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder from what else is in it, and return its path.

    Works for runs that ended, were interrupted or withhold their numbers. The same folder gives the same bytes.

    Raises:
        server.report_data.NotARun: there is no history in the folder.
        configs.files.StorageFault: the file can't be written.
    """
    path = run_dir / "report.html"
    write_text(path, render(read_record(run_dir)))
    return path


def render(record: Record) -> str:
    """The report as HTML."""
    environment = Environment(
        loader=PackageLoader("server"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(dice=dice, signed=signed, bytes=human_bytes)
    points = curve(record)
    assessed = assessments(record)
    settings, setting_notes = _settings(record)
    last_worst = next((point.worst_site for point in reversed(points) if point.worst_site), None)
    pictures, picture_notes = examples(record.folder, first_site=last_worst)
    problems = sums.problems(record)
    rows = site_rows(record)
    return environment.get_template("report.html.j2").render(
        record=record,
        status=_status_text(record),
        lead=_lead(record, settings, problems),
        facts=_facts(record, settings),
        tiles=tiles(record, points, settings),
        points=points,
        partial=_partial(record, assessed),
        any_site_dice=any(score.dice_test is not None for a in assessed for score in a.sites.values()),
        best_cycle=_best_cycle(record, points),
        assessed=assessed,
        assessed_sites=[name for name in record.sites if any(name in a.sites for a in assessed)],
        cell=_score_cell,
        dice_plot=plots.dice_plot(record),
        dice_missing=_dice_missing(assessed),
        class_plot=plots.class_plot(record),
        label_plot=effort.label_plot(record),
        unit_of_grants=sums.unit_of_grants(record),
        labels_withheld=any(cell.received is None for cell in sums.labels(record).values()),
        traffic_plot=effort.traffic_plot(record),
        steps=sums.traffic_by_step(record),
        loss_plot=effort.loss_plot(record),
        trust_plot=effort.trust_plot(record),
        trained=bool(sums.losses(record)),
        rows=rows,
        many=len(rows) > OPEN_SITES,
        problems=problems[:SHOWN_PROBLEMS],
        more_problems=len(problems) - SHOWN_PROBLEMS,
        pictures=pictures,
        class_inks=[class_ink(c) for c in range(256)],
        machine=_machine(record),
        notes=[*record.notes, *setting_notes, *picture_notes],
        withheld=WITHHELD,
        not_told=NOT_TOLD,
        named_sites=plots.NAMED_SITES,
    )


def tiles(record: Record, points: Sequence[CurvePoint], settings: Mapping[str, Any]) -> list[Tile]:
    """The headline's numbers."""
    first, last = (points[0], points[-1]) if points else (None, None)
    found = []
    if last is None:
        found.append(Tile("Test Dice, mean of sites", "–", "nothing assessed yet"))
        found.append(Tile("Worst site", "–", "nothing assessed yet"))
    else:
        more = f"after cycle {last.cycle}"
        if first is not None and first is not last and first.dice_test is not None and last.dice_test is not None:
            more = f"{signed(last.dice_test - first.dice_test)} since cycle {first.cycle}"
        found.append(Tile("Test Dice, mean of sites", dice(last.dice_test), more, "test"))
        named = f"site {last.worst_site}" if last.worst_site else f"after cycle {last.cycle}"
        found.append(Tile("Worst site, test Dice", dice(last.dice_worst_test), named, "worst"))
    found.append(_labels_tile(record))
    planned = whole(_section(settings, "federation").get("cycles"))
    rounds = len(sums.losses(record))
    done = len(points)
    found.append(
        Tile(
            "Cycles assessed",
            f"{done} of {planned}" if planned and planned >= done else f"{done}",
            f"{count(rounds, 'training round')}",
        )
    )
    moved = sums.traffic(record).values()
    up, down = sum(t.up for t in moved), sum(t.down for t in moved)
    found.append(Tile("Traffic", human_bytes(up + down), f"↑ {human_bytes(up)}  ↓ {human_bytes(down)}"))
    took = sums.seconds(record)
    found.append(Tile("Duration", "–" if took is None else duration(took), _started(record)))
    return found


def site_rows(record: Record) -> list[SiteRow]:
    """One row for each site of the run."""
    pools = sums.cases(record)
    cells = sums.labels(record)
    moved = sums.traffic(record)
    problems = sums.problems(record)
    rows = []
    for name in record.sites:
        own = [cell for (site, _), cell in cells.items() if site == name]
        granted = sums.total({str(i): cell.granted for i, cell in enumerate(own)})
        received = sums.total({str(i): cell.received for i, cell in enumerate(own)})
        refused = sum(1 for problem in problems if problem.site == name and problem.code is not None)
        late = sum(1 for problem in problems if problem.site == name and problem.code is None)
        troubles = [f"{refused} refused"] * bool(refused) + [f"{late} late"] * bool(late)
        rows.append(
            SiteRow(
                name=name,
                cases=_known(pools.get(name)) if name in pools else "–",
                granted=_known(granted) if own else "–",
                received=_known(received) if own else "–",
                up=human_bytes(moved[name].up),
                down=human_bytes(moved[name].down),
                troubles=", ".join(troubles) or "none",
            )
        )
    return rows


# ------------------------------------------------------------------------------------------------------------- wording


def _labels_tile(record: Record) -> Tile:
    """Labels used of how many cases; grants are always known, so they stand in where labels are withheld."""
    used = next((whole(e.get("labels_total")) for e in reversed(record.events) if "labels_total" in e), None)
    told = any("labels_total" in event for event in record.events)
    pool = sums.total(sums.cases(record))
    granted, unit = sums.granted_total(record), sums.unit_of_grants(record)
    more = f"{granted if unit == sums.SLICE else count(granted, unit)} granted"
    if used is None:
        return Tile("Labels", WITHHELD if told else "–", more)
    if pool is None:
        return Tile("Labels", f"{used}", f"cases {WITHHELD}; {more}" if sums.cases(record) else more)
    share = f"{100 * used / pool:.1f} %" if pool else "empty pool"
    return Tile("Labels", f"{used} of {pool}", f"{share} of all cases; {more}")


def _status_text(record: Record) -> str:
    status = sums.status(record)
    if not record.events:
        return "nothing recorded yet"
    resumed = {0: "", 1: ", resumed once"}.get(status.resumed, f", resumed {status.resumed} times")
    if status.ended:
        return f"ended{resumed}"
    where = (f"cycle {status.cycle}" if status.cycle else "the cold start") + (f", round {status.round}" if status.round else "")
    return f"interrupted in {where}{resumed}"


def _lead(record: Record, settings: Mapping[str, Any], problems: Sequence[sums.Problem]) -> str:
    """What the run was, in a few sentences."""
    sites = count(len(record.sites), "site")
    classes = f"{count(len(record.classes), 'class')}: {', '.join(record.classes)}" if record.classes else "classes not recorded"
    strategy = _section(settings, "query").get("strategy")
    asked = f" Cases for the experts were chosen by the strategy “{plain(strategy)}”." if strategy else ""
    if asked and any(problem.step == "assess" and problem.is_fault for problem in problems):
        asked += " A site that could not score its pool, among the refusals below, asked by chance in that cycle."
    return f"{sites} trained one segmentation model together ({classes}).{asked}"


def _facts(record: Record, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings that a reader asks for first."""
    train, sam, budget = _section(settings, "train"), _section(settings, "sam"), _section(settings, "budget")
    network, privacy = _section(settings, "network"), _section(settings, "privacy")
    facts = []
    if "framework" in train:
        helped = " with SAM" if sam.get("enabled") else ""
        facts.append(("Training", f"{train['framework']}{helped}"))
    if "name" in network:
        facts.append(("Network", network["name"]))
    if "per_cycle" in budget and "cold_start" in budget:
        unit = str(_section(settings, "query").get("unit", sums.SLICE))
        first = whole(budget["cold_start"]) or 0
        start = f"{first}" if unit == sums.SLICE else count(first, unit)
        facts.append(("Budget per site", f"{start} at the start, {budget['per_cycle']} a cycle"))
    if "share" in privacy:
        facts.append(("What leaves a site", {"updates": "updates alone"}.get(str(privacy["share"]), "updates and gated sums")))
    for label, key in (("Engine", "engine"), ("Seed", "seed")):
        if record.start.get(key) is not None:
            facts.append((label, record.start[key]))
    return [(label, plain(value)) for label, value in facts]


def _started(record: Record) -> str:
    """When the run started, to the minute, in the time zone it was recorded in."""
    began = moment(record.start)
    if began is None:
        return "start not recorded"
    return f"started {began:%Y-%m-%d %H:%M}" + (" UTC" if began.utcoffset() == timedelta(0) else "")


def _machine(record: Record) -> list[tuple[str, str]]:
    """Versions and machine, as the coordinator noted them at the start."""
    known = [(key, record.start[key]) for key in ("commit", "device", "threads", "engine", "schema") if key in record.start]
    versions = record.start.get("versions")
    known += sorted(versions.items()) if isinstance(versions, dict) else []
    return [(plain(key), "not known" if value is None else plain(value)) for key, value in known]


def _settings(record: Record) -> tuple[Mapping[str, Any], list[str]]:
    if record.configuration is None:
        return {}, []
    try:
        return tomllib.loads(record.configuration), []
    except tomllib.TOMLDecodeError as error:
        return {}, [f"config.toml is not valid TOML ({plain(error)}); it is shown as it stands."]


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = settings.get(name)
    return section if isinstance(section, dict) else {}


def _best_cycle(record: Record, points: Sequence[CurvePoint]) -> int | None:
    """The cycle whose weights were best on validation; the first of equals."""
    known = [point for point in points if point.dice is not None]
    told = whole(record.end.get("best_cycle")) if record.end and known else None
    if told is not None:
        return told
    return max(known, key=lambda point: number(point.dice) or 0.0).cycle if known else None


def _dice_missing(assessed: Sequence[Assessed]) -> str:
    """Why there is no Dice to plot."""
    if not assessed:
        return "No cycle was assessed before the run stopped, so there is no Dice to show."
    return (
        f"Dice is {NOT_TOLD}: with share = “updates” nothing but model updates leaves a hospital, "
        "and a metric over too few patients never does."
    )


def _score_cell(assessed: Assessed, name: str) -> str:
    """Test Dice of a site in a cycle; a dash for a site that gave no answer."""
    score = assessed.sites.get(name)
    return "–" if score is None else "not told" if score.dice_test is None else f"{score.dice_test:.3f}"


def _partial(record: Record, assessed: Sequence[Assessed]) -> str:
    """Which means are over fewer than all sites; empty when none is."""
    everyone = len(record.sites)
    told = [(a.cycle, sum(1 for score in a.sites.values() if score.dice_test is not None)) for a in assessed]
    parts = [f"cycle {cycle} ({n} of {everyone})" for cycle, n in told if 0 < n < everyone]
    if len(parts) > 4:
        parts = [f"{len(parts)} cycles"]
    return f"Mean over fewer than all sites: {', '.join(parts)}; the others gave no answer or withhold theirs." if parts else ""


def _known(value: int | None) -> str:
    return "withheld" if value is None else f"{value}"
