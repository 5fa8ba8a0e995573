"""A site behind its gate, one that has taken its images in, and what Flower's runtime would set around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity
from gate_support import Bench

from client.annotate.worklist import carry_out, collect
from client.plan import Plan
from client.site import Site
from configs.load import load
from server.app import initial_weights, settings_for_sites
from simulation.run import simulate
from strategies.records import Weights

Made = tuple[Site, Plan, Weights]


@pytest.fixture
def flower_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Flower's runtime sets before it calls an app; here 1 is the coordinator."""
    for name, value in {"_run_id": 7, "_task_id": 3, "_node_id": 1}.items():
        monkeypatch.setattr(TaskIdentity, name, value)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def joined(tiny_config: Callable[..., Path], tmp_path: Path) -> Callable[..., Made]:
    """A site that has taken its images in and has two labels, the plan of its run, and the initial weights."""

    def make(*overrides: str, labels: int = 2, name: str = "run") -> Made:
        config = tiny_config()
        folder = simulate(config, overrides, out=tmp_path / name, prepare_only=True)
        run = load(config, overrides)
        site = Site(folder / "sites" / "north")
        plan = Plan.read(settings_for_sites(run))
        site.take_in(plan.preprocess)
        if labels:
            carry_out(site, plan, run="r", cycle=0, cases=labels, tick=1)
            collect(site, plan, run="r", cycle=0, tick=1)
        return site, plan, initial_weights(run)

    return make
