"""What the programs that write result pages share: runs that are done once, their records, and intervals.

A run lies in a folder of its own under runs/, which is not kept. What a page needs of it, a record of some kilobytes, lies in
docs/results/records/ and is: a page can be written anew from a fresh clone, and a grid goes on in another sitting. A run with a
record of the same configuration and SAM is not done again; one that was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from common import report
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy import stats
from torch import nn

from client.evaluate import evaluate
from client.plan import Plan, network_with
from client.sam_checkpoint import digest, path_of
from client.site import Site
from client.store import ImageRow
from configs.files import FolderInUse, locked, write_text
from configs.load import load
from configs.schema import Run
from server.app import settings_for_sites
from server.report_data import history_lines
from simulation.run import simulate

Mask: TypeAlias = NDArray[np.uint8]
ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "results" / "records"
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


@dataclass(frozen=True)
class Ended:
    """The record of a finished run.

    Attributes:
        settings: SHA-256 of the whole configuration without where the data lie, and without SAM's table where SAM took no part;
            `sam`: of SAM's weights, where it did.
        dice, dice_test, worst_test: of the last assessment, validation and test; None where withheld.
        labels, cases: in the pools at the end; None where withheld.
        curve: (labels, validation Dice, test Dice) of each cycle.
        patients: role to patient (`site/patient`) to mean Dice over classes and volumes, by the final model.
        trust: by class, how much SAM counted, in [0, 1]: the mean over the rounds and sites that judged it, and the share of
            these in which it counted at all. None where it took no part, and in records older than this field.
    """

    command: str
    settings: str
    sam: str
    commit: str
    machine: str
    seconds: float
    dice: float | None
    dice_test: float | None
    worst_test: float | None
    labels: int | None
    cases: int | None
    curve: list[tuple[int | None, float | None, float | None]]
    patients: dict[str, dict[str, float]]
    trust: dict[str, tuple[float, float]] | None = None


def recorded(page: str, name: str) -> Ended | None:
    """The record of a run of `page`, or None where it has not ended yet."""
    path = RECORDS / page / f"{name}.json"
    return Ended(**json.loads(path.read_text())) if path.exists() else None


def run_job(job: Job, page: str, *, more: Callable[[Path, Ended], Ended] | None = None) -> None:
    """Run, or go on with, a job, and write its record; nothing to do where that is there, or where another process runs it.

    `more` makes another record of the run's folder and its own record.
    """
    try:
        with locked(ROOT / "runs" / page / ".hands" / job.name):
            _run_alone(job, page, more)
    except FolderInUse:
        print(f"== {job.name} is left to the process that runs it", flush=True)


def _run_alone(job: Job, page: str, more: Callable[[Path, Ended], Ended] | None) -> None:
    run = load(ROOT / job.config, job.overrides)
    settings, sam = _settings(run), digest(path_of(run.sam.checkpoint))[:16] if run.sam.enabled else ""
    done = recorded(page, job.name)
    if done is not None and (done.settings, done.sam) == (settings, sam):
        return
    folder = ROOT / "runs" / page / job.name
    made_with = folder / "made_with.json"
    begun = (folder / "config.toml").exists()
    fresh = begun and not (made_with.exists() and json.loads(made_with.read_text()) == [settings, sam])
    print(f"== {job.name}: {job.command}", flush=True)
    if fresh or not begun:
        simulate(ROOT / job.config, job.overrides, engine=job.engine, out=folder, fresh=fresh, prepare_only=True)
        write_text(made_with, json.dumps([settings, sam]))
    if not finished(folder):
        simulate(ROOT / job.config, job.overrides, engine=job.engine, out=folder, resume=True)
    ended = _record(job, folder, settings, sam)
    told = asdict(ended if more is None else more(folder, ended))
    write_text(RECORDS / page / f"{job.name}.json", json.dumps(told, indent=1) + "\n")


def finished(folder: Path) -> bool:
    path = folder / "history.jsonl"
    return path.exists() and any(event.get("event") == "end" for event in history_lines(path)[0])


def _settings(run: Run) -> str:
    dumped = run.model_dump(mode="json")
    dumped["data"].pop("root")
    if not run.sam.enabled:
        dumped["sam"] = None  # what a SAM would do that takes no part
    return hashlib.sha256(json.dumps(dumped).encode()).hexdigest()[:16]  # in order: the order of classes is their number


def _record(job: Job, folder: Path, settings: str, sam: str) -> Ended:
    events = list(history_lines(folder / "history.jsonl")[0])
    start = next(event for event in events if event["event"] == "start")
    assessed = [event for event in events if event["event"] == "assess"]
    pools = [site["cases"] for site in next(event for event in events if event["event"] == "join")["sites"].values()]
    last = assessed[-1]
    return Ended(
        command=job.command,
        settings=settings,
        sam=sam,
        commit=start.get("commit") or "unrecorded",
        machine=f"{start['machine']}, {start['threads']} thread{'s' * (start['threads'] != 1)}",
        seconds=float(events[-1].get("seconds") or 0),
        dice=last["dice_mean"],
        dice_test=last["dice_mean_test"],
        worst_test=last["dice_worst_test"],
        labels=last["labels_total"],
        cases=None if any(pool is None for pool in pools) else sum(pools),
        curve=[(event["labels_total"], event["dice_mean"], event["dice_mean_test"]) for event in assessed],
        patients={role: patient_dice(folder, role) for role in ("validation", "test")},
        trust=sam_trust(events),
    )


def sam_trust(events: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]] | None:
    """`Ended.trust` of a run's history."""
    sites = [site for event in events if event["event"] == "train" for site in event["sites"].values()]
    told = [trust for site in sites if (trust := site.get("sam_trust"))]
    if not told:
        return None
    values = {name: [trust[name] for trust in told] for name in told[0]}
    return {name: (round(statistics.mean(of), 4), round(statistics.mean(v > 0 for v in of), 4)) for name, of in values.items()}


def patient_dice(folder: Path, role: str, network: nn.Module | None = None) -> dict[str, float]:
    """Mean Dice over classes and volumes of each held-out patient (`site/patient`), by a run's final model or by `network`."""
    run = load(folder / "config.toml")
    torch.set_num_threads(run.threads)
    plan = Plan.read(settings_for_sites(run))
    if network is None:
        network = network_with(plan, load_file(folder / "weights" / "final.safetensors"))
    values: dict[str, list[float]] = {}
    for workspace in sorted((folder / "sites").iterdir()):

        def seen(image: ImageRow, truth: Mask, mask: Mask, dice: NDArray[np.float64], site: str = workspace.name) -> None:
            if np.isfinite(dice).any():
                values.setdefault(f"{site}/{image.patient}", []).append(float(np.nanmean(dice)))

        with Site(workspace) as site:
            evaluate(site, network.to(site.device), plan.preprocess, role=role, classes=len(plan.classes), seen=seen)
    return {patient: round(statistics.mean(dice), 5) for patient, dice in sorted(values.items())}


def run_benchmark(name: str, page: str) -> None:
    """Run a benchmark program once and keep its last line, with the commit; delete the record to measure again."""
    kept = RECORDS / page / f"benchmark-{name}.json"
    if kept.exists():
        return
    print(f"== benchmarks/{name}.py", flush=True)
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / f"{name}.py")], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stderr[-2000:], file=sys.stderr)
        sys.exit(f"benchmarks/{name}.py failed; nothing of it is on the page")
    line = json.loads(done.stdout.strip().splitlines()[-1])
    write_text(kept, json.dumps({**line, "commit": commit()}, indent=1) + "\n")


def benchmark_rows(page: str, names: Sequence[str]) -> list[Claim]:
    """What benchmark programs promised and measured, from the last lines that `run_benchmark` kept."""
    rows = []
    for path in (path for name in names if (path := RECORDS / page / f"benchmark-{name}.json").exists()):
        line = json.loads(path.read_text())
        told = ", ".join(f"{key} {_plain(value)}" for key, value in line.items() if key not in ("name", "goal", "met", "commit"))
        promised = f"`benchmarks/{line['name']}.py`: {line['goal']}"
        rows.append(Claim(promised, f"{told} (code {line['commit']})", bool(line["met"])))
    return rows


@dataclass(frozen=True)
class Claim:
    """A row of a table "promised, measured, met"."""

    promised: str
    measured: str
    met: bool


def claim_table(claims: Sequence[Claim]) -> list[str]:
    rows = [f"| {c.promised} | {c.measured} | {'yes' if c.met else '**no**'} |" for c in claims]
    return ["| promised | measured | met |", "|---|---|---|", *rows]


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {inner}" for key, inner in value.items()) + ")"
    return str(value)


def with_interval(values: Sequence[float]) -> str:
    """Mean, and the 95 % t interval over seeds where there are several."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.3f} (1 seed)"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f} ± {half:.3f} ({len(values)} seeds)"


def commit() -> str:
    """The commit of the code, with a + where files of it were changed since."""
    paths = ["--", *(f"{folder}/*.py" for folder in ("benchmarks", "client", "configs", "server", "simulation", "strategies"))]
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", *paths], cwd=ROOT).returncode
    return head + "+" * bool(changed)


def written_by(program: str) -> str:
    """The sentence on top of a page: by what, at which commit, on which machine."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    machine = f"{os.cpu_count()} cores ({platform.machine()}), {gpu}, Python {platform.python_version()}"
    return f"Written by `python benchmarks/{program}` at commit {commit()}, on {machine}."


def write_page(page: Path, lines: Sequence[str], claims: Sequence[Claim], *, whole: bool = True) -> None:
    """Write a result page, say where it is, and close with a line of JSON as every benchmark does; a page that is not whole yet
    has kept nothing."""
    write_text(page, "\n".join(lines))
    print(page)
    kept = sum(claim.met for claim in claims)
    report(
        page.stem, promised=len(claims), kept=kept, goal="every promise on the page is kept", met=whole and kept == len(claims)
    )
