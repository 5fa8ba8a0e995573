"""The numbers behind docs/results/foundation.md: runs the configurations and the benchmarks, then writes the page.

    WARDROUND_DATA=/path/to/data python benchmarks/foundation.py [--only demo acdc sts engines benchmarks] [--seeds 1]

Resumable: every run lies in runs/foundation, a finished one is not run again and an interrupted one goes on. With --write
nothing is run and the page is written from what is there.
"""

from __future__ import annotations

import argparse
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

from scipy import stats

from configs.load import dump, load
from server.report_data import history_lines
from simulation.run import simulate

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "foundation"
PAGE = ROOT / "docs" / "results" / "foundation.md"
ALL_LABELS = ("budget.cold_start=100000", "budget.per_cycle=0")
QUICK = ("query.strategy=random", "federation.cycles=2", "train.rounds_per_cycle=3")
THREADS = "threads=1"
"""One thread for every run: results follow the count, and two runs side by side then use two cores well."""


@dataclass(frozen=True)
class Job:
    """One run: its name in runs/foundation, its configuration and what is changed in it."""

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


JOBS = (
    Job("demo", "configs/demo.toml"),
    Job("demo-no-grants", "configs/demo.toml", ("budget.per_cycle=0",)),
    Job("demo-updates-only", "configs/demo.toml", ("privacy.share=updates",)),
    Job("acdc", "configs/acdc.toml", group="acdc"),
    Job("acdc-all-labels", "configs/acdc.toml", ALL_LABELS, group="acdc"),
    Job("sts", "configs/sts.toml", group="sts"),
    Job("sts-all-labels", "configs/sts.toml", ALL_LABELS, group="sts"),
    Job("engines-inline", "configs/demo.toml", QUICK, group="engines"),
    Job("engines-cluster", "configs/demo.toml", QUICK, "cluster", group="engines"),
)
BENCHMARKS = ("phantom_difficulty", "overhead", "memory", "quality", "sam_quality")


def finished(folder: Path) -> bool:
    path = folder / "history.jsonl"
    return path.exists() and any(event.get("event") == "end" for event in history_lines(path)[0])


def run_job(job: Job) -> None:
    """Run, or go on with, a job; nothing to do where it has ended."""
    folder = RUNS / job.name
    config = folder / "config.toml"
    stale = config.exists() and dump(load(config)) != dump(load(ROOT / job.config, job.overrides))
    if finished(folder) and not stale:
        return
    begun = config.exists() and not stale
    print(f"== {job.name}: {job.command}", flush=True)
    simulate(ROOT / job.config, job.overrides, engine=job.engine, out=folder, fresh=stale, resume=begun)


def run_benchmark(name: str) -> None:
    """Run a benchmark program once and keep its last line."""
    kept = RUNS / f"{name}.json"
    if kept.exists():
        return
    print(f"== benchmarks/{name}.py", flush=True)
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / f"{name}.py")], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stderr[-2000:], file=sys.stderr)
        sys.exit(f"benchmarks/{name}.py failed; nothing of it is on the page")
    RUNS.mkdir(parents=True, exist_ok=True)
    kept.write_text(done.stdout.strip().splitlines()[-1])


# ------------------------------------------------------------------------------------------------------------ the page


@dataclass(frozen=True)
class Ended:
    """What a finished run says of itself."""

    dice_test: float | None
    worst_test: float | None
    labels: int | None
    cases: int | None
    seconds: float
    events: list[Any]


def ended(name: str) -> Ended | None:
    folder = RUNS / name
    if not finished(folder):
        return None
    events = list(history_lines(folder / "history.jsonl")[0])
    last = [event for event in events if event["event"] == "assess"][-1]
    pools = [site["cases"] for site in next(event for event in events if event["event"] == "join")["sites"].values()]
    cases = None if any(pool is None for pool in pools) else sum(pools)
    seconds = float(events[-1].get("seconds") or 0)
    return Ended(last["dice_mean_test"], last["dice_worst_test"], last["labels_total"], cases, seconds, events)


def with_interval(values: Sequence[float]) -> str:
    """Mean, and the 95 % t interval over seeds where there are several."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.3f} (1 seed)"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f} ± {half:.3f} ({len(values)} seeds)"


def seeds_of(name: str) -> list[Ended]:
    found = [ended(folder.name) for folder in sorted(RUNS.glob(f"{name}-seed*"))]
    return [run for run in found if run is not None]


def dice_of(name: str) -> list[float]:
    return [run.dice_test for run in seeds_of(name) if run.dice_test is not None]


def run_table() -> list[str]:
    lines = ["| run | command | labels of the pool | test Dice | worst site | seconds |", "|---|---|---|---|---|---|"]
    for job in JOBS:
        runs = seeds_of(job.name)
        if not runs:
            continue
        dice = dice_of(job.name)
        worst = [run.worst_test for run in runs if run.worst_test is not None]
        first = runs[0]
        share = "withheld"
        if first.labels and first.cases:
            share = f"{first.labels} of {first.cases} ({first.labels / first.cases:.0%})"
        lines.append(
            f"| {job.name} | `{job.command}` | {share} | {with_interval(dice) if dice else 'withheld'} "
            f"| {f'{statistics.mean(worst):.3f}' if worst else 'withheld'} | {statistics.mean(r.seconds for r in runs):.0f} |"
        )
    return lines


def claims() -> list[str]:
    """What was promised, beside what came out."""
    lines = ["| promised | measured | met |", "|---|---|---|"]

    def add(promise: str, measured: str, met: bool) -> None:
        lines.append(f"| {promise} | {measured} | {'yes' if met else '**no**'} |")

    demo, cold = dice_of("demo"), dice_of("demo-no-grants")
    if demo and cold:
        gain = statistics.mean(demo) - statistics.mean(cold)
        add("demo: test Dice at least .80", f"{statistics.mean(demo):.3f}", statistics.mean(demo) >= 0.80)
        add("demo: at least .05 above the run without grants after the cold start", f"{gain:+.3f}", gain >= 0.05)
        add("demo: the cold start alone at most .70", f"{statistics.mean(cold):.3f}", statistics.mean(cold) <= 0.70)
    for name in ("acdc", "sts"):
        ours, whole = dice_of(name), dice_of(f"{name}-all-labels")
        if ours and whole:
            ratio, run = statistics.mean(ours) / statistics.mean(whole), seeds_of(name)[0]
            share = (run.labels or 0) / (run.cases or 1)
            add(
                f"{name}: with at most 25 % of the slices, at least .90 × the Dice of all labels",
                f"{ratio:.3f} with {share:.1%}",
                ratio >= 0.90 and share <= 0.25,
            )
    inline, cluster = dice_of("engines-inline"), dice_of("engines-cluster")
    if inline and len(inline) == len(cluster):
        apart = abs(statistics.mean(inline) - statistics.mean(cluster))
        add(f"inline and cluster: mean Dice within .02 over {len(inline)} seeds", f"{apart:.4f}", apart <= 0.02)
    for path in sorted(RUNS.glob("*.json")):
        line = json.loads(path.read_text())
        figures = ", ".join(f"{k} {v}" for k, v in line.items() if k not in ("name", "goal", "met"))
        add(f"`benchmarks/{path.stem}.py`: {line['goal']}", figures, bool(line["met"]))
    return lines


def curves() -> list[str]:
    """Learning curves of the runs with grants, first seed."""
    lines = []
    for name in ("demo", "demo-no-grants", "acdc", "sts"):
        runs = seeds_of(name)
        if runs:
            points = [(e["labels_total"], e["dice_mean_test"]) for e in runs[0].events if e["event"] == "assess"]
            told = ", ".join(f"{labels} labels {dice:.3f}" for labels, dice in points if dice is not None)
            lines.append(f"- {name}: {told}")
    return lines


def write_page() -> None:
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    machine = f"{os.cpu_count()} cores ({platform.machine()}), no GPU, Python {platform.python_version()}"
    text = [
        "# Foundation: what runs, and what comes out",
        "",
        f"Written by `python benchmarks/foundation.py` at commit {commit}, on {machine}.",
        "Dice is that of held-out test volumes on their own grid: mean over volumes, then classes, then sites. Nothing was",
        "tuned on test patients of ACDC or STS.",
        "",
        *run_table(),
        "",
        "## Promised and measured",
        "",
        *claims(),
        "",
        "## Test Dice against labels (first seed)",
        "",
        *curves(),
        "",
    ]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join(text))
    print(PAGE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    groups = [*sorted({job.group for job in JOBS}), "benchmarks"]
    parser.add_argument("--only", nargs="+", choices=groups, default=groups)
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to this, less one, of every run")
    parser.add_argument("--write", action="store_true", help="run nothing, write the page from what is there")
    arguments = parser.parse_args()
    if not arguments.write:
        for job in JOBS:
            for seed in range(arguments.seeds):
                if job.group in arguments.only:
                    run_job(job.seeded(seed))
        for name in BENCHMARKS if "benchmarks" in arguments.only else ():
            run_benchmark(name)
    write_page()


if __name__ == "__main__":
    main()
