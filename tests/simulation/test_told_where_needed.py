"""A site tells what a budget or a switch needs where there is one, and before a grant that follows it; nobody else is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from tests_support import events

import client.app as client_app
from client import egress
from client.plan import Plan
from client.site import Site
from configs.load import dump, load_site
from simulation.run import simulate, start
from strategies.records import Demand, Scores
from strategies.wire import Request

Config = Callable[..., Path]


def of_enough_cases(scores: Scores, *, units: int, min_patients: int) -> Demand:
    """As `demand_of` has it of a large pool; the tiny one has too few cases for a quantile."""
    if scores.values is None:
        return Demand(20, units)
    return Demand(20, units, (0.1, 0.2, 0.3, 0.4, 0.5), 5)


@pytest.mark.parametrize(("rule", "cycles"), [("fixed", []), ("proportional", []), ("adaptive", [1, 2])])
def test_quantiles_leave_for_an_adaptive_grant_alone(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, cycles: list[int]
) -> None:
    """Nor in the last of three cycles, after which nothing is granted."""
    monkeypatch.setattr("client.app.demand_of", of_enough_cases)
    config = tiny_config(cycles=3, rounds_per_cycle=1, local_steps=1)
    folder = simulate(config, [f"budget.rule={rule}"], out=tmp_path / "run")
    lines = [line for line in egress.read(folder / "sites" / "north" / "egress.jsonl") if line.message == "query.assess"]
    assert [line.cycle for line in lines] == [1, 2, 3]
    assert [line.cycle for line in lines if any("quantiles" in record for record in line.records.values())] == cycles


def test_sites_are_told_how_much_of_the_runs_queries_is_done(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 0 at the first query that a model answers to 1 at the last, which three of four cycles are followed by."""
    asked: dict[str, dict[int, float]] = {"assess": {}, "annotate": {}}

    def noting(step: str) -> Callable[..., RecordDict]:
        honest: Callable[..., Any] = vars(client_app)[step]

        def handler(site: Site, plan: Plan, request: Request, message: Message) -> RecordDict:
            asked[step][request.cycle] = request.progress
            content: RecordDict = honest(site, plan, request, message)
            return content

        return handler

    for step in asked:
        monkeypatch.setattr(client_app, step, noting(step))
    simulate(tiny_config(cycles=4, rounds_per_cycle=1, local_steps=1), ["query.strategy=random"], out=tmp_path / "run")
    assert asked == {"annotate": {0: 0.0, 1: 0.0, 2: 0.5, 3: 1.0}, "assess": {1: 0.0, 2: 0.5, 3: 1.0, 4: 1.0}}


def test_centroids_go_to_sites_that_took_part_in_finding_them(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """South shares updates alone, and is told nothing of the others' images."""
    asked: dict[str, list[bool]] = {}
    honest: Callable[..., Any] = vars(client_app)["annotate"]

    def seen(site: Site, plan: Plan, request: Request, message: Message) -> RecordDict:
        asked.setdefault(site.name, []).append("weights" in message.content)
        content: RecordDict = honest(site, plan, request, message)
        return content

    monkeypatch.setattr(client_app, "annotate", seen)
    options = ["query.strategy=typiclust", "query.cold_start=typiclust", "budget.rule=coordinated"]
    config = tiny_config(cycles=1, rounds_per_cycle=1, local_steps=1)
    folder = simulate(config, options, out=tmp_path / "run", prepare_only=True)
    path = folder / "sites" / "south" / "site.toml"
    path.write_text(dump(load_site(path).model_copy(update={"share": "updates"})))
    start(folder, ["north", "south", "west"], engine="inline")
    assert {name: set(had) for name, had in asked.items()} == {"north": {True}, "south": {False}, "west": {True}}


@pytest.mark.parametrize(
    ("strategy", "model", "cycles"),
    [("entropy", "switch", [0, 1]), ("entropy", "global", []), ("random", "switch", []), ("kafal", "switch", [])],
)
def test_how_level_classes_are_is_told_for_a_switch_alone(
    tiny_config: Config, tmp_path: Path, strategy: str, model: str, cycles: list[int]
) -> None:
    """Nor where the strategy asks no model or names both, nor for the last cycle, after which nothing is granted."""
    config = tiny_config(cycles=3, rounds_per_cycle=1, local_steps=1)
    folder = simulate(config, [f"query.strategy={strategy}", f"query.model={model}"], out=tmp_path / "run")
    told: dict[int, Any] = {event["cycle"]: event["sites"]["north"] for event in events(folder) if event["event"] == "annotate"}
    assert sorted(told) == [0, 1, 2]
    assert [cycle for cycle, site in told.items() if site.get("balance") is not None] == cycles
