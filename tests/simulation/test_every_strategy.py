"""Every query strategy chooses in a real run of two cycles, and says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from tests_support import events

from simulation.run import simulate
from strategies.query import STRATEGIES

NEEDS: dict[str, dict[str, object]] = {
    "dropout": {"network.dropout": 0.2, "query.passes": 2},
    "evidential head": {"network.head": "evidential"},
}


@pytest.mark.parametrize("name", [*STRATEGIES, "feal+stochastic", "entropy+balanced+cap"])
def test_a_run_with_it_asks_its_experts_and_says_why(tiny_config: Callable[..., Path], tmp_path: Path, name: str) -> None:
    needed = [item for need in STRATEGIES[name.split("+")[0]].needs for item in NEEDS.get(need, {}).items()]
    overrides = [f"{key}={value}" for key, value in needed] + [f"query.strategy={name}"]
    folder = simulate(tiny_config(cycles=2, rounds_per_cycle=1, local_steps=1), overrides, out=tmp_path / "run")
    record = events(folder)
    assert record[-1]["event"] == "end"
    assert not [event for event in record if event["event"] == "refused"]
    chosen = [row for site in ("north", "south", "west") for row in requests(folder / "sites" / site) if row.number == 1]
    assert chosen
    assert all(row.reason for row in chosen)
    at_random = "at random" in " ".join(row.reason for row in chosen)
    assert at_random == name.startswith("random"), [row.reason for row in chosen]


def requests(workspace: Path) -> list[Any]:
    """Rows (number, reason) of a site's requests."""
    with create_engine(f"sqlite:///{workspace / 'site.db'}").connect() as connection:
        return list(connection.execute(text("SELECT number, reason FROM requests")))


@pytest.mark.parametrize("name", ["typiclust", "probcover"])
def test_sites_share_kinds_out_from_sums(tiny_config: Callable[..., Path], tmp_path: Path, name: str) -> None:
    overrides = [f"query.strategy={name}", "query.cold_start=typiclust", "budget.rule=coordinated"]
    folder = simulate(tiny_config(cycles=2, rounds_per_cycle=1, local_steps=1), overrides, out=tmp_path / "run")
    record = events(folder)
    assert record[-1]["event"] == "end"
    assert not [event for event in record if event["event"] == "refused"]
    grants = [event["sites"] for event in record if event["event"] == "grant"]
    asked = [sum(site["granted"] for site in sites.values()) for sites in grants]
    assert asked == [6, 3], "as many as with equal grants, but where they are worth most"
    assert all(site["bytes_up"] > 0 for sites in grants for site in sites.values()), "what sums cost is told"
    reasons = [row.reason for site in ("north", "south", "west") for row in requests(folder / "sites" / site)]
    assert len(reasons) == 9
    told = [reason.split("kinds came first that ")[1] for reason in reasons]
    assert told.count("all sites together have annotated least") == (9 if name == "typiclust" else 6), "the first request's order"
    assert told.count("have most cases unlike any that a site has annotated") == (0 if name == "typiclust" else 3)
    assert all(sum(site["by_kind"] for site in sites.values()) == total for sites, total in zip(grants, asked, strict=True))


@pytest.mark.parametrize("rule", ["proportional", "adaptive"])
def test_budgets_that_differ_by_site_are_met(tiny_config: Callable[..., Path], tmp_path: Path, rule: str) -> None:
    """The same grants in all, and as many labels, wherever they go; numbers of experts' minutes come with them."""
    overrides = [f"budget.rule={rule}", "budget.floor=0.5"]
    folder = simulate(tiny_config(cycles=2, rounds_per_cycle=1, local_steps=1, per_cycle=2), overrides, out=tmp_path / "run")
    record = events(folder)
    assert record[-1]["event"] == "end"
    grants = [sum(site["granted"] for site in event["sites"].values()) for event in record if event["event"] == "grant"]
    assert grants == [6, 6]
    labels = [event["labels_total"] for event in record if event["event"] == "assess"]
    assert labels == [6, 12]
    annotated = [event["sites"].values() for event in record if event["event"] == "annotate"]
    minutes = [sum(site["minutes"] for site in sites) for sites in annotated]
    assert 0 < minutes[0] < minutes[1]


def test_minutes_over_too_few_patients_are_withheld(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    folder = simulate(tiny_config(cycles=1, rounds_per_cycle=1, local_steps=1), ["privacy.min_patients=3"], out=tmp_path / "run")
    (annotated,) = (event for event in events(folder) if event["event"] == "annotate")
    assert all(site["received"] == 2 for site in annotated["sites"].values())
    assert all(site.get("minutes") is None and site.get("patients") is None for site in annotated["sites"].values())
