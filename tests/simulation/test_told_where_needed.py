"""A site tells what a budget or a switch needs where there is one, and before a grant that follows it; nobody else is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests_support import events

from client import egress
from simulation.run import simulate
from strategies.records import Demand, Scores

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
