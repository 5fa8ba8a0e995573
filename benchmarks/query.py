"""What choosing costs: scoring a pool against the bare forward passes, and batches from 100,000 cases in time and memory.

    python benchmarks/query.py [--cases 100000] [--pairs 5] [--threads 2]

Scoring is `client.score.score` on a site's pool of 128 px slices with the 1.6 M UNet, in turns with a loop that does nothing
but read the same batches and run the network; medians. Choosing is each strategy on made-up features in a process of its own,
so that its peak memory is its own. Growth is the time over that at half the cases, and at half the budget, measured in turns.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import report, write_config, write_volumes

from client.plan import Plan, network_for
from client.predict import batches
from client.score import score
from client.site import Site, Slices
from configs.load import load
from server.app import settings_for_sites
from simulation.run import simulate
from strategies.query.groups import in_groups
from strategies.query.parse import parse_query
from strategies.query.strategy import Strategy
from strategies.records import Scores

FEATURES, BUDGET, LABELLED, CLASSES = 256, 500, 1_000, 4
MIN_PATIENTS = 5
GROUPS = "groups"
"""No strategy: what a site does once before it takes part in coordination."""
LARGE = ("coreset", "typiclust", "feal", "badge", "probcover", GROUPS)
SMALL = {"probcover": 20_000}
"""Strategies that are measured on fewer cases than the others."""
GROWING = ("coreset", "feal", "badge")
SECONDS, GIGABYTES = 60.0, 2.0
ENTROPY_SHARE, BALD_FACTOR, GROWTH = 0.8, 1.05, 2.3
PASSES = 8
TURNS = 3
"""Of a choice whose growth is told: medians."""


def pool(cases: int) -> Scores:
    """A pool as a site would have it: kinds of cases, some of them common, in 256 dimensions."""
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(200, FEATURES)).astype(np.float32)
    common = rng.dirichlet(np.full(200, 0.5))

    def draw(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        features = kinds[rng.choice(200, size=count, p=common)]
        features += 0.5 * rng.standard_normal(features.shape, dtype=np.float32)
        return features

    return Scores(
        case_ids=[f"{n:07d}" for n in range(cases)],
        patients=[f"{n // 10:06d}" for n in range(cases)],
        values=rng.random(cases),
        by_class=rng.random((cases, CLASSES)),
        features=draw(cases),
        labelled_features=draw(LABELLED),
    )


def choose_alone(name: str, cases: int, budget: int) -> dict[str, float]:
    """Seconds of one choice, and the process's peak in gigabytes beyond what the pool itself takes; in a child process."""
    command = [sys.executable, __file__, "--choose", name, str(cases), str(budget)]
    told: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return told


def _child(name: str, cases: int, budget: int) -> None:
    scores = pool(cases)
    choose = _group if name == GROUPS else functools.partial(_choose, parse_query(name))
    choose(pool(2_000), 10)  # libraries are loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    choose(scores, budget)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "gigabytes": peak * 1024 / 1e9, "beyond": (peak - before) * 1024 / 1e9}))


def _choose(strategy: Strategy, scores: Scores, budget: int) -> None:
    assert len(strategy.choose(scores, budget, np.random.default_rng(0)).choices) == budget


def _group(scores: Scores, _: int) -> None:
    assert scores.features is not None
    assert in_groups(scores.features, scores.patients, min_patients=MIN_PATIENTS).min() >= 0


def in_turns(sides: dict[str, Callable[[], None]], pairs: int) -> dict[str, float]:
    """Median seconds of each side, measured in turns; the first turn is for warming up."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(pairs + 1):
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            if turn:
                took[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in took.items()}


def scoring(pairs: int, threads: int) -> dict[str, float]:
    """Throughput of entropy scoring over the bare forward pass; time of bald over as many passes."""
    with tempfile.TemporaryDirectory() as folder:
        write_volumes(Path(folder) / "set", sites=1, patients=12, slices=20, size_px=128)
        config = write_config(Path(folder) / "c.toml", root=Path(folder) / "set", rounds=1, steps=1, labels=1)
        overrides = [f"threads={threads}", "network.dropout=0.1", f"query.passes={PASSES}"]
        run = load(config, overrides)
        simulate(config, overrides, out=Path(folder) / "run")
        (workspace,) = (Path(folder) / "run" / "sites").iterdir()
        torch.set_num_threads(threads)
        plan = Plan.read(settings_for_sites(run))
        network = network_for(plan)
        with Site(workspace) as site:
            cases, slices = site.store.cases("unlabelled"), Slices(site, plan.preprocess)

            def bare(passes: int) -> None:
                network.train(passes > 1)
                with torch.inference_mode():
                    for _, images in batches(slices, cases, device=site.device):
                        for _ in range(passes):
                            network(images)

            def scored(name: str) -> None:
                score(site, plan, parse_query(name, passes=PASSES), {"global": network}, cycle=1)

            took = in_turns(
                {
                    "bare": lambda: bare(1),
                    "entropy": lambda: scored("entropy"),
                    "passes": lambda: bare(PASSES),
                    "bald": lambda: scored("bald"),
                },
                pairs,
            )
    return {"entropy_throughput": took["bare"] / took["entropy"], "bald_time": took["bald"] / took["passes"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--choose", nargs=3, metavar=("NAME", "CASES", "BUDGET"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.choose:
        _child(given.choose[0], int(given.choose[1]), int(given.choose[2]))
        return
    ratios = scoring(given.pairs, given.threads)
    print(f"entropy scoring: {ratios['entropy_throughput']:.2f} × the throughput of the bare forward pass (≥ {ENTROPY_SHARE})")
    print(f"bald, {PASSES} passes: {ratios['bald_time']:.3f} × the time of {PASSES} forward passes (≤ {BALD_FACTOR})")
    met = ratios["entropy_throughput"] >= ENTROPY_SHARE and ratios["bald_time"] <= BALD_FACTOR
    figures: dict[str, float] = {name: round(value, 3) for name, value in ratios.items()}
    for name in LARGE:
        cases = min(given.cases, SMALL.get(name, given.cases))
        sizes = {"once": (cases, BUDGET)}
        if name in GROWING:
            sizes |= {"cases": (cases // 2, BUDGET), "budget": (cases, BUDGET // 2)}
        turns = [{size: choose_alone(name, *of) for size, of in sizes.items()} for _ in range(TURNS if name in GROWING else 1)]
        seconds = {size: statistics.median(turn[size]["seconds"] for turn in turns) for size in sizes}
        gigabytes = max(turn["once"]["gigabytes"] for turn in turns)
        what = f"groups of {MIN_PATIENTS} patients for coordination: all" if name == GROUPS else f"{name}: {BUDGET}"
        print(f"{what} of {cases:,} in {seconds['once']:.1f} s, {gigabytes:.2f} GB at most", end="")
        met &= seconds["once"] <= SECONDS and gigabytes <= GIGABYTES
        figures |= {f"{name}_s": round(seconds["once"], 2), f"{name}_gb": round(gigabytes, 2)}
        if name in GROWING:
            growth = {size: seconds["once"] / seconds[size] for size in ("cases", "budget")}
            print(f"; twice the cases {growth['cases']:.2f} ×, twice the budget {growth['budget']:.2f} ×", end="")
            met &= max(growth.values()) <= GROWTH
            figures |= {f"{name}_growth_{what}": round(value, 2) for what, value in growth.items()}
        print()
    goal = (
        f"entropy ≥ {ENTROPY_SHARE}, bald ≤ {BALD_FACTOR}, each choice ≤ {SECONDS:g} s and ≤ {GIGABYTES:g} GB, "
        f"twice the cases or the budget ≤ {GROWTH} ×"
    )
    report("query", goal=goal, met=met, **figures)


if __name__ == "__main__":
    main()
