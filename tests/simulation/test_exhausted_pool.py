"""A pool that is used up ends a site's requests, not its part in the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests_support import events

from simulation.run import simulate


@pytest.mark.parametrize("name", ["coreset", "random_fg", "entropy+stochastic"])
def test_a_site_without_a_case_left_goes_on_training(tiny_config: Callable[..., Path], tmp_path: Path, name: str) -> None:
    config = tiny_config(cycles=3, rounds_per_cycle=1, local_steps=1)
    folder = simulate(config, [f"query.strategy={name}", "budget.per_cycle=1000"], out=tmp_path / "run")
    record = events(folder)
    assert not [event for event in record if event["event"] == "refused"]
    granted = [sum(site["granted"] for site in event["sites"].values()) for event in record if event["event"] == "annotate"]
    assert granted[-1] == 0, "nothing was left to ask for"
    assert len([event for event in record if event["event"] == "train"]) == 3
