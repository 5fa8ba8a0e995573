"""`wardround compare`: every arm with every seed, each once, then the page.

A comparison lies in one folder and goes on where it stopped; other processes may help with the same command, since a run is
done by whoever begins it.

    compare.json            what is compared, so that another comparison is not mixed with it
    hospitals/seed<n>/      sites as they are made, for every run with that seed (with split.folds: seed<n>-fold<k>, each run)
    cache/<site>/           images on the network's grid, truth, SAM's embeddings
    runs/<arm>-seed<n>/     a run's folder (in parts, by site, for those that are alone), and record.json once it has ended
    compare.html            the page; compare.csv, its numbers
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from configs.files import FolderInUse, locked, read_object, remove, write_text
from configs.load import dump, load
from configs.schema import Run
from server.progress import progress_for
from server.report_words import count
from server.rounds import Progress
from server.sites import FederationFault
from simulation.compare import record
from simulation.compare.arms import Arm, arms_of, run_of
from simulation.compare.hospitals import hospitals, lend, lone_runs
from simulation.compare.page import write_page
from simulation.run import RunFolderError, start


def compare(
    config: Path,
    overrides: Sequence[str],
    *,
    queries: Sequence[str],
    seeds: Sequence[int],
    out: Path | None = None,
    records: Path | None = None,
) -> Path:
    """Run what is not done yet and write the page; gives the comparison's folder.

    Args:
        config, overrides: as `configs.load.load` takes them.
        queries: names of strategies.
        out: the comparison's folder; runs/compare-NAME by default.
        records: where the records of ended runs lie and are written to; in the comparison's folder by default. Whoever keeps them
            elsewhere can delete that, and the same command makes no run anew.

    Raises:
        ConfigError, DataFault, StorageFault: as `simulation.run.simulate`.
        FederationFault: runs stopped short; the page has been written of the others.
        RunFolderError: the folder holds another comparison.
    """
    console = Console(stderr=True)
    arms, seeds = arms_of(config, overrides, queries), sorted(set(seeds))
    plain = load(config, overrides)
    folder = (out or Path("runs") / f"compare-{plain.name}").resolve()
    jobs = [
        Job(arm, run_of(config, overrides, arm, seed=seed, fold=fold), made_of, folder / "runs", records)
        for seed in seeds
        for fold in range(max(1, plain.split.folds))
        for made_of in [load(config, [*overrides, f"seed={seed}", f"split.fold={fold}"])]
        for arm in arms
    ]
    with locked(folder / "hospitals", wait=True):
        _claim(folder, plain)
    _check_records(jobs)
    stopped: dict[str, str] = {}

    def tell() -> None:
        command = _command(config, overrides, queries, seeds, out)
        with locked(folder, wait=True):  # of two that end together the last to write is the last to have read
            _check_records(jobs)
            found = [ran for job in jobs if (ran := job.record()) is not None]
            page = write_page(folder, plain, arms, found, seeds=len(seeds), stopped=list(stopped), command=command)
        told = f" ({len(found)} of {count(len(jobs), 'run')} so far)" if len(found) < len(jobs) else ""
        console.print(f"Comparison{told}: {page}", highlight=False, soft_wrap=True)

    try:
        with progress_for("compare", console) as progress:
            for place, job in enumerate(jobs):
                try:
                    _once(folder, job, _Part(progress, place, len(jobs), job.name))
                except FederationFault as fault:  # of this run alone: the others are worth their page
                    stopped[f"{job.name} ({os.path.relpath(job.folder)})"] = str(fault)
    except KeyboardInterrupt:
        console.print("\nStopped; every finished step is kept. The same command goes on, and others may help with it.")
        tell()
        sys.exit(130)
    tell()
    if stopped:
        raise FederationFault(_why_stopped(stopped))
    return folder


@dataclass(frozen=True)
class Job:
    """One run of a comparison: an arm with a seed, holding out a fold.

    Attributes:
        run: its configuration.
        made_of: the configuration that the hospitals of all arms are made of.
        runs: the folder of all runs.
        records: the folder of all records; None where each lies with its run.
    """

    arm: Arm
    run: Run
    made_of: Run
    runs: Path
    records: Path | None = None

    @property
    def name(self) -> str:
        fold = f", fold {self.run.split.fold}" if self.run.split.folds else ""
        return f"{self.arm.name}, seed {self.run.seed}{fold}"

    @property
    def folder(self) -> Path:
        fold = f"-fold{self.run.split.fold}" if self.run.split.folds else ""
        return self.runs / f"{self.arm.folder}-seed{self.run.seed}{fold}"

    @property
    def record_path(self) -> Path:
        return self.folder / "record.json" if self.records is None else self.records / f"{self.folder.name}.json"

    def record(self) -> record.Ran | None:
        """None where it has not ended."""
        return record.read(self.record_path)


@dataclass(frozen=True)
class _Part:
    """A run's progress as a part of the comparison's: runs are counted, steps are told."""

    shown: Progress
    place: int
    runs: int
    name: str

    def step(self, text: str, *, done: int, total: int) -> None:
        self.shown.step(f"{self.name}: {text} ({done}/{total})", done=self.place, total=self.runs)


def _command(config: Path, overrides: Sequence[str], queries: Sequence[str], seeds: Sequence[int], out: Path | None) -> str:
    parts = ["wardround compare", str(config), *(f"--set '{item}'" for item in overrides)]
    parts += [f"--query {' '.join(queries)}"] if queries else []
    parts += [f"--seeds {' '.join(map(str, seeds))}"] + ([f"--out {os.path.relpath(out)}"] if out else [])
    return " ".join(parts)


def _why_stopped(stopped: Mapping[str, str]) -> str:
    """What runs say that stopped short; they speak of their own command."""
    told = [f"{name}: {fault.replace('--resume', 'the same command')}" for name, fault in stopped.items()]
    return (
        f"{count(len(stopped), 'run')} stopped short and {'is' if len(stopped) == 1 else 'are'} missing from the page:\n"
        + "\n".join(told)
        + "\nWhere sites wait for slow experts (experts.delay, experts.absence), a larger budget.cold_start lets them take part, "
        "or federation.deadline_polls, to wait longer for labels; that is another comparison, with another --out."
    )


def _claim(folder: Path, run: Run) -> None:
    """Make the folder this comparison's own; strategies and seeds may be added later, the configuration stays.

    One in which no run was begun is nobody's: its configuration failed before there was anything to keep. Seed and strategy are
    those of each run, and where data lies is no part of it: hospitals made of data that lay elsewhere say how to go on.
    """
    path, told = folder / "compare.json", json.dumps({"configuration": dump(run)}, sort_keys=True)
    theirs = [entry for entry in folder.iterdir() if entry.name != "hospitals" and entry.suffix != ".part"]
    if not path.exists() and theirs:
        raise RunFolderError(f"{folder} is not empty and holds no comparison: choose another folder with --out")
    if path.exists() and path.read_text() != told:
        found = read_object(path, keys=["configuration"], remedy=f"delete {folder} if nothing in it is needed")
        other = record.changed(found["configuration"], run)
        other = [what for what in other if not what.startswith(("seed = ", "query.strategy = "))]
        if other and (folder / "runs").exists():
            raise RunFolderError(
                f"{folder} holds a comparison of another configuration ({', '.join(other)}): choose another folder with --out"
            )
        for made in () if (folder / "runs").exists() else (*(folder / "hospitals").glob("seed*"), *folder.glob("cache")):
            remove(made)
    write_text(path, told)


def _check_records(jobs: Sequence[Job]) -> None:
    """That what has ended was run as it would be now: other strategies may need another network of all arms.

    Asked again later on, since another process may have been started with more strategies in the meantime.
    """
    for job in jobs:
        ran = job.record()
        other = record.differences(ran, job.run) if ran is not None else []
        if other:
            raise RunFolderError(
                f"{job.name} has been run with {', '.join(other)}, and would not be now (a strategy that is compared with it may "
                "need another network): choose another folder with --out, or compare what was compared here"
            )


def _once(folder: Path, job: Job, shown: Progress) -> None:
    """Run a job, unless it is done or another process is at it."""
    if job.record() is not None:
        _check_records([job])
        return
    with locked(folder / "hospitals", wait=True):
        made, names = hospitals(job.made_of, folder, progress=lambda what, done, total: shown.step(what, done=done, total=total))
    try:
        with locked(job.folder):
            federations = [[name] for name in names] if job.arm.alone else [names]
            folders = [job.folder / names_[0] if job.arm.alone else job.folder / "all" for names_ in federations]
            runs = lone_runs(job.run, made, names) if job.arm.alone else [job.run]
            for part, members, run in zip(folders, federations, runs, strict=True):
                _begin_anew_if_other(part, run)
                lend(made, members, run, part, cache=folder / "cache")
                start(part, members, engine="inline", shown=shown)
            record.write(job.record_path, record.taken(job.arm.name, folders, run=job.run, alone=job.arm.alone))
    except FolderInUse:
        return


def _begin_anew_if_other(part: Path, run: Run) -> None:
    """Delete a run that has not ended and was begun otherwise: a strategy asked for since may need another network of all.

    It goes as a whole, by another name: a half of it that a kill left there would be taken for a run that was begun as this is.
    """
    begun, old = part / "config.toml", part.with_name(f"{part.name}.old")
    if old.exists():
        remove(old)
    if begun.exists() and begun.read_text() != dump(run):
        part.rename(old)
        remove(old)
