"""`wardround compare`: every arm with every seed, each once, then the page.

A comparison lies in one folder and goes on where it stopped; other processes may help with the same command, since a run is
done by whoever begins it.

    compare.json            what is compared, so that another comparison is not mixed with it
    hospitals/seed<n>/      sites as they are made, for every run with that seed
    cache/<site>/           images on the network's grid, truth, SAM's embeddings
    runs/<arm>-seed<n>/     a run's folder (in parts, by site, for those that are alone), and record.json once it has ended
    compare.html            the page; compare.csv, its numbers
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from configs.files import FolderInUse, locked, write_text
from configs.load import dump, load
from configs.schema import Run
from server.progress import progress_for
from server.rounds import Progress
from simulation.compare import record
from simulation.compare.arms import Arm, arms_of, run_of
from simulation.compare.hospitals import hospitals, lend
from simulation.compare.page import write_page
from simulation.run import RunFolderError, start


def compare(
    config: Path, overrides: Sequence[str], *, queries: Sequence[str], seeds: Sequence[int], out: Path | None = None
) -> Path:
    """Run what is not done yet and write the page; gives the comparison's folder.

    Raises:
        ConfigError, DataFault, StorageFault, FederationFault: as `simulation.run.simulate`.
        RunFolderError: the folder holds another comparison.
    """
    console = Console(stderr=True)
    arms, seeds = arms_of(config, overrides, queries), sorted(set(seeds))
    plain = load(config, overrides)
    folder = (out or Path("runs") / f"compare-{plain.name}").resolve()
    with locked(folder / "hospitals", wait=True):
        _claim(folder, plain)
    jobs = [(arm, seed) for seed in seeds for arm in arms]
    try:
        with progress_for("compare", console) as progress:
            for place, (arm, seed) in enumerate(jobs):
                _once(folder, config, overrides, arm, seed, _Part(progress, place, len(jobs), f"{arm.name}, seed {seed}"))
    except KeyboardInterrupt:
        console.print("\nStopped; every finished step is kept. The same command goes on, and others may help with it.")
        sys.exit(130)
    found = [ran for arm, seed in jobs if (ran := record.read(_folder(folder, arm, seed) / "record.json")) is not None]
    page = write_page(folder, plain, arms, found, seeds=len(seeds), command=_command(config, overrides, queries, seeds, out))
    console.print(f"Comparison: {page}", highlight=False, soft_wrap=True)
    return folder


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


def _claim(folder: Path, run: Run) -> None:
    """Make the folder this comparison's own; strategies and seeds may be added later, the configuration stays."""
    path, told = folder / "compare.json", json.dumps({"configuration": dump(run)}, sort_keys=True)
    if path.exists() and path.read_text() != told:
        raise RunFolderError(f"{folder} holds a comparison of another configuration: choose another folder with --out")
    theirs = [entry for entry in folder.iterdir() if entry.name != "hospitals" and entry.suffix != ".part"]
    if not path.exists() and theirs:
        raise RunFolderError(f"{folder} is not empty and holds no comparison: choose another folder with --out")
    write_text(path, told)


def _folder(folder: Path, arm: Arm, seed: int) -> Path:
    return folder / "runs" / f"{arm.folder}-seed{seed}"


def _once(folder: Path, config: Path, overrides: Sequence[str], arm: Arm, seed: int, shown: Progress) -> None:
    """Run an arm with a seed, unless it is done or another process is at it."""
    own, run = _folder(folder, arm, seed), run_of(config, overrides, arm, seed=seed)
    if record.read(own / "record.json") is not None:
        return
    with locked(folder / "hospitals", wait=True):
        seeded = load(config, [*overrides, f"seed={seed}"])
        made, names = hospitals(seeded, folder, progress=lambda what, done, total: shown.step(what, done=done, total=total))
    try:
        with locked(own):
            federations = [[name] for name in names] if arm.alone else [names]
            folders = [own / names_[0] if arm.alone else own / "all" for names_ in federations]
            for part, members in zip(folders, federations, strict=True):
                lend(made, members, run, part, cache=folder / "cache")
                start(part, members, engine="inline", shown=shown)
            record.write(own / "record.json", record.taken(arm.name, seed, folders, settings=dump(run)))
    except FolderInUse:
        return
