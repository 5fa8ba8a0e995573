"""One simulated run from configuration to report: the folder, the hospitals, the engine, the curve."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from client.app import make_app
from configs.faults import ConfigError, Fault
from configs.files import locked, remove, write_text
from configs.load import dump, load
from configs.schema import Run
from server.app import coordinate
from server.progress import progress_for
from server.report import build_report
from server.report_data import Record, learning_curve, read_record
from server.report_sums import problems
from server.rounds import Progress
from simulation.cluster import end_leftovers, run_on_cluster
from simulation.inline import InlineGrid
from simulation.prepare import is_prepared, prepare, warnings_of

ENGINES = ("inline", "cluster")
MOST_FAULTS = 5
"""That are told beneath the learning curve; the report has all."""


class RunFolderError(ValueError):
    """The run's folder can't be used as asked; the message says what it holds and which option helps."""


def simulate(
    config: Path,
    overrides: Sequence[str] = (),
    *,
    engine: str = "inline",
    out: Path | None = None,
    resume: bool = False,
    fresh: bool = False,
    prepare_only: bool = False,
) -> Path:
    """Run a configuration and return the run's folder.

    Args:
        config, overrides: as `configs.load.load` takes them.
        engine: "inline" (one process, deterministic) or "cluster" (Flower SuperLink with Ray).
        out: the run's folder; `runs/<name>` by default.
        resume: go on with what the folder holds.
        fresh: delete what the folder holds, if it is a run.
        prepare_only: stop when the hospitals are made.

    Raises:
        ConfigError, RunFolderError, FolderInUse, StorageFault, FederationFault: with what to do.
    """
    console = Console(stderr=True)
    if engine not in ENGINES:
        raise ConfigError("--engine", [Fault((), f"{engine!r} is no engine: choose one of {', '.join(ENGINES)}")])
    run = load(config, overrides)
    folder = (out or Path("runs") / run.name).resolve()
    again = _command(config, overrides, engine=engine, out=out)
    with locked(folder):
        end_leftovers(folder)
        open_folder(folder, run, resume=resume, fresh=fresh)
        try:
            with progress_for(run.name, console) as progress:
                names = prepare(run, folder, progress=lambda what, done, total: progress.step(what, done=done, total=total))
            for warning in (*run.warnings, *warnings_of(folder)):
                console.print(f"[yellow]warning:[/] {warning}", highlight=False)
            if prepare_only:
                console.print(
                    f"{len(names)} hospitals are ready in {folder}. With a SuperLink running:\n"
                    f"flwr run . --stream --run-config 'run-dir=\"{folder}\"' --federation-config 'num-supernodes={len(names)}'",
                    highlight=False,
                    soft_wrap=True,
                )
                return folder
            start(folder, names, engine=engine)
        except KeyboardInterrupt:
            console.print("\nStopped; every finished step is kept. Go on with:")
            console.print(f"  {again} --resume", highlight=False, soft_wrap=True)
            sys.exit(130)
    build_report(folder)
    show_curve(folder, Console())
    return folder


def start(folder: Path, names: Sequence[str], *, engine: str, shown: Progress | None = None) -> None:
    """Run the coordinator and the sites of a prepared folder on an engine; `shown` is told how far an inline run is."""
    if engine == "cluster":
        run_on_cluster(folder, sites=len(names))
        return
    configs: list[dict[str, str | int]] = [{"partition-id": rank, "num-partitions": len(names)} for rank in range(len(names))]
    grid = InlineGrid(make_app(), configs, run_config={"run-dir": str(folder)})
    with grid.swept():
        coordinate(grid, folder, engine="inline", shown=shown)


def open_folder(folder: Path, run: Run, *, resume: bool, fresh: bool) -> None:
    """Make the folder this run's own: new, or the very run that is to be resumed. One that was never prepared is new.

    Raises:
        RunFolderError: it holds something else.
        StorageFault: what it holds can't be deleted, or it can't be written.
    """
    config = folder / "config.toml"
    present = [path for path in folder.iterdir() if path.name != ".lock" and path.suffix != ".part"]
    if present and not config.exists():
        raise RunFolderError(f"{folder} is not empty and holds no run (no config.toml): choose another folder with --out")
    if fresh:
        for path in sorted(present, key=lambda path: path == config):  # last: a kill here leaves a folder that --fresh accepts
            remove(path)
    elif config.exists():
        before, begun = load(config), is_prepared(folder) or (folder / "history.jsonl").exists()
        unknown = _unnamed(config.read_text(), before)
        if unknown and begun:
            raise RunFolderError(
                f"{folder} holds a run of an older wardround, which did not know {', '.join(unknown)}, so it would go on as "
                "another run: choose another folder with --out, start over with --fresh, or go on with that version"
            )
        if dump(before) != dump(run) and not begun and not resume:  # it failed before there was anything to keep
            for made in (folder / "sites", folder / "data"):
                if made.exists():
                    remove(made)
            write_text(config, dump(run))
            return
        if dump(before) != dump(run):  # as text: the order of classes is their number
            changed = ", ".join(_differences(before, run))
            raise RunFolderError(
                f"{folder} holds a run of another configuration ({changed}): choose another folder with --out, "
                "or start over with --fresh"
            )
        if begun and not resume:
            raise RunFolderError(
                f"{folder} already holds this run: go on with --resume, start over with --fresh, or choose another "
                "folder with --out"
            )
        return
    elif resume:
        raise RunFolderError(f"there is nothing to resume in {folder}: leave --resume out, or name the run's folder with --out")
    write_text(config, dump(run))


def show_curve(folder: Path, console: Console) -> None:
    """The learning curve as a table, and where the report is."""
    table = Table(title="Dice against labels", title_justify="left")
    for column in ("cycle", "labels", "minutes", "validation", "test", "change", "worst site"):
        table.add_column(column, justify="right")

    def number(value: float | None, *, sign: bool = False) -> str:
        return "not told" if value is None else f"{value:+.3f}" if sign else f"{value:.3f}"

    for point in learning_curve(folder):
        table.add_row(
            str(point.cycle),
            "withheld" if point.labels is None else str(point.labels),
            "not told" if point.minutes is None else f"{point.minutes:.0f}",
            number(point.dice),
            number(point.dice_test),
            "" if point.gain is None else number(point.gain, sign=True),
            f"{point.worst_site} {number(point.dice_worst_test)}" if point.worst_site else "",
        )
    console.print(table)
    faults = _faults(read_record(folder))
    if faults:
        told = ", ".join(faults[:MOST_FAULTS]) + (f" and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else "")
        console.print(
            f"Faults of sites: {told}. These steps went on without them: Dice is over the others, and a site that could not "
            "score its pool asked for cases by chance. Each site.log says what it was.",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _faults(record: Record) -> list[str]:
    """Each step that a site had a fault in."""
    faults = (problem for problem in problems(record) if problem.is_fault)
    return [f"{fault.site} at {fault.step} in cycle {fault.cycle} ({fault.code})" for fault in faults]


def _differences(before: Run, after: Run) -> list[str]:
    one, other = before.model_dump(mode="json"), after.model_dump(mode="json")
    names = []
    for table in one:
        if isinstance(one[table], dict) and isinstance(other[table], dict):
            keys = sorted(one[table].keys() | other[table].keys())
            names += [f"{table}.{key}" for key in keys if one[table].get(key) != other[table].get(key)]
        elif one[table] != other[table]:
            names.append(table)
    return names or ["the order of classes"]


def _unnamed(text: str, run: Run) -> list[str]:
    """Settings of `run` that the configuration it was read from does not name, though it was written whole."""
    named = tomllib.loads(text)
    return [
        f"{table}.{key}"
        for table, values in tomllib.loads(dump(run)).items()
        if isinstance(values, dict)
        for key in values
        if key not in named.get(table, {})
    ]


def _command(config: Path, overrides: Sequence[str], *, engine: str, out: Path | None) -> str:
    parts = ["wardround simulate", str(config)]
    parts += [f"--set '{item}'" for item in overrides]
    parts += [f"--engine {engine}"] if engine != "inline" else []
    parts += [f"--out {os.path.relpath(out)}"] if out else []
    return " ".join(parts)
