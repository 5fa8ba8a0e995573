"""What the programs that write result pages share: runs that are done once, their numbers, and intervals.

A run lies in a folder of its own under runs/; one that has ended is not run again, one that was interrupted goes on, and
one whose configuration or SAM has changed since is run anew.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy import stats

from client.evaluate import evaluate
from client.plan import Plan, network_with
from client.sam_checkpoint import digest, path_of
from client.site import Site
from client.store import ImageRow
from configs.files import write_text
from configs.load import dump, load
from server.app import settings_for_sites
from server.report_data import history_lines
from simulation.run import simulate
from strategies.metrics import dice_by_class

ROOT = Path(__file__).resolve().parents[1]
THREADS = "threads=1"
"""One thread for every run: results follow the count, and two runs side by side then use two cores well."""


@dataclass(frozen=True)
class Job:
    """One run: its name, its configuration and what is changed in it."""

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    engine: str = "inline"
    group: str = "demo"

    def seeded(self, seed: int) -> Job:
        overrides = (*self.overrides, THREADS, f"seed={seed}")
        return Job(f"{self.name}-seed{seed}", self.config, overrides, self.engine, self.group)

    @property
    def command(self) -> str:
        """What reproduces it by hand."""
        options = "".join(f" --set {override}" for override in self.overrides if not override.startswith("seed="))
        return f"wardround simulate {self.config}{options}" + (" --engine cluster" if self.engine == "cluster" else "")


def finished(folder: Path) -> bool:
    path = folder / "history.jsonl"
    return path.exists() and any(event.get("event") == "end" for event in history_lines(path)[0])


def run_job(job: Job, runs: Path) -> None:
    """Run, or go on with, a job; nothing to do where it has ended."""
    folder = runs / job.name
    config = folder / "config.toml"
    run = load(ROOT / job.config, job.overrides)
    made_with = folder / "made_with.json"
    weights = {"sam": digest(path_of(run.sam.checkpoint))[:16]} if run.sam.enabled else {}
    stale = config.exists() and dump(load(config)) != dump(run)
    stale = stale or (made_with.exists() and json.loads(made_with.read_text()) != weights)
    if finished(folder) and not stale:
        return
    begun = config.exists() and not stale
    print(f"== {job.name}: {job.command}", flush=True)
    simulate(ROOT / job.config, job.overrides, engine=job.engine, out=folder, fresh=stale, resume=begun)
    write_text(made_with, json.dumps(weights))


def run_benchmark(name: str, runs: Path) -> None:
    """Run a benchmark program once and keep its last line."""
    kept = runs / f"{name}.json"
    if kept.exists():
        return
    print(f"== benchmarks/{name}.py", flush=True)
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / f"{name}.py")], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stderr[-2000:], file=sys.stderr)
        sys.exit(f"benchmarks/{name}.py failed; nothing of it is on the page")
    write_text(kept, done.stdout.strip().splitlines()[-1])


def benchmark_rows(runs: Path, names: Sequence[str]) -> list[str]:
    """Rows of a table "promised, measured, met" from the last lines that `run_benchmark` kept."""
    rows = []
    for path in (path for name in names if (path := runs / f"{name}.json").exists()):
        line = json.loads(path.read_text())
        figures = ", ".join(f"{key} {_plain(value)}" for key, value in line.items() if key not in ("name", "goal", "met"))
        rows.append(f"| `benchmarks/{path.stem}.py`: {line['goal']} | {figures} | {'yes' if line['met'] else '**no**'} |")
    return rows


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {inner}" for key, inner in value.items()) + ")"
    return str(value)


@dataclass(frozen=True)
class Ended:
    """What a finished run says of itself."""

    dice: float | None
    dice_test: float | None
    worst_test: float | None
    labels: int | None
    cases: int | None
    seconds: float
    commit: str
    events: list[Any]


def ended(folder: Path) -> Ended | None:
    """The numbers of a run that has ended, else None."""
    if not finished(folder):
        return None
    events = list(history_lines(folder / "history.jsonl")[0])
    last = [event for event in events if event["event"] == "assess"][-1]
    pools = [site["cases"] for site in next(event for event in events if event["event"] == "join")["sites"].values()]
    cases = None if any(pool is None for pool in pools) else sum(pools)
    seconds = float(events[-1].get("seconds") or 0)
    commit = next(event for event in events if event["event"] == "start").get("commit") or "unrecorded"
    return Ended(
        dice=last["dice_mean"],
        dice_test=last["dice_mean_test"],
        worst_test=last["dice_worst_test"],
        labels=last["labels_total"],
        cases=cases,
        seconds=seconds,
        commit=commit,
        events=events,
    )


def patient_dice(folder: Path, role: str = "test") -> dict[str, float]:
    """Mean Dice over classes and volumes of each held-out patient (`site/patient`) by a run's final model; kept in the run."""
    kept = folder / f"patients_{role}.json"
    if kept.exists():
        found: dict[str, float] = json.loads(kept.read_text())
        return found
    run = load(folder / "config.toml")
    torch.set_num_threads(run.threads)
    plan = Plan.read(settings_for_sites(run))
    network = network_with(plan, load_file(folder / "weights" / "final.safetensors"))
    values: dict[str, list[float]] = {}
    for workspace in sorted((folder / "sites").iterdir()):

        def seen(image: ImageRow, truth: NDArray[np.uint8], mask: NDArray[np.uint8], site: str = workspace.name) -> None:
            dice = dice_by_class(mask, truth, classes=len(plan.classes))
            if np.isfinite(dice).any():
                values.setdefault(f"{site}/{image.patient}", []).append(float(np.nanmean(dice)))

        with Site(workspace) as site:
            evaluate(site, network.to(site.device), plan.preprocess, role=role, classes=len(plan.classes), seen=seen)
    means = {patient: statistics.mean(dice) for patient, dice in sorted(values.items())}
    write_text(kept, json.dumps(means))
    return means


def with_interval(values: Sequence[float]) -> str:
    """Mean, and the 95 % t interval over seeds where there are several."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.3f} (1 seed)"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f} ± {half:.3f} ({len(values)} seeds)"


def written_by(program: str) -> str:
    """The sentence on top of a page: by what, at which commit, on which machine."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    machine = f"{os.cpu_count()} cores ({platform.machine()}), no GPU, Python {platform.python_version()}"
    return f"Written by `python benchmarks/{program}` at commit {commit}, on {machine}."


def write_page(page: Path, lines: Sequence[str]) -> None:
    """Write a result page and say where it is."""
    write_text(page, "\n".join(lines))
    print(page)
