"""Budgets in whole runs: sites that tell nothing, sites that come late, grants of whole volumes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests_support import events

import client.app as client_app
import server.rounds as server_rounds
from configs.load import dump, load_site
from server.sites import FederationFault
from simulation.run import simulate, start

Config = Callable[..., Path]
SITES = ("north", "south", "west")


def grants(folder: Path, cycle: int) -> dict[str, int]:
    (found,) = (event["sites"] for event in events(folder) if event["event"] == "grant" and event["cycle"] == cycle)
    return {site: numbers["granted"] for site, numbers in found.items()}


@pytest.mark.parametrize("rule", ["proportional", "adaptive"])
def test_a_site_that_shares_updates_alone_gets_the_equal_share_and_stops_nobody(
    tiny_config: Config, tmp_path: Path, rule: str
) -> None:
    config, options = tiny_config(rounds_per_cycle=1, local_steps=1, per_cycle=2), [f"budget.rule={rule}"]
    folder = simulate(config, options, out=tmp_path / "run", prepare_only=True)
    path = folder / "sites" / "south" / "site.toml"
    path.write_text(dump(load_site(path).model_copy(update={"share": "updates"})))
    start(folder, list(SITES), engine="inline")  # `simulate` would write site.toml anew
    assert events(folder)[-1]["event"] == "end"
    granted = grants(folder, 1)
    assert granted["south"] == 2
    assert granted["north"] + granted["west"] == 4


@pytest.mark.parametrize("rule", ["proportional", "adaptive"])
def test_a_site_that_joins_at_a_resume_just_before_a_grant_is_granted_its_part(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    config, options = tiny_config(rounds_per_cycle=1, local_steps=1, per_cycle=11), [f"budget.rule={rule}"]
    join: Callable[..., Any] = vars(client_app)["join"]
    grant = server_rounds.grant

    def join_without_south(site: Any, *args: Any) -> Any:
        if site.name == "south":
            raise OSError("the disk is away")
        return join(site, *args)

    @functools.wraps(grant)
    def stop_before_the_second(*args: Any, cycle: int) -> Any:
        if cycle:
            raise FederationFault("the power failed")
        return grant(*args, cycle=cycle)

    with monkeypatch.context() as patch:
        patch.setattr(client_app, "join", join_without_south)
        patch.setattr(server_rounds, "grant", stop_before_the_second)
        with pytest.raises(FederationFault, match="the power failed"):
            simulate(config, options, out=tmp_path / "run")
    folder = simulate(config, options, out=tmp_path / "run", resume=True)
    assert events(folder)[-1]["event"] == "end"
    assert grants(folder, 1) == {"north": 10, "south": 12, "west": 10}, "11 a site: all there is, and none of south's is labelled"
    assert "south" in events(folder)[-2]["sites"], "and it is assessed with the others"


@pytest.mark.parametrize("rule", ["fixed", "proportional", "adaptive"])
def test_no_more_volumes_are_granted_than_wait(tiny_config: Config, tmp_path: Path, rule: str) -> None:
    """Each site's pool is three volumes of four slices, one of which was annotated at the start."""
    overrides = ["query.unit=volume", "budget.cold_start=1", "budget.per_cycle=3", f"budget.rule={rule}"]
    folder = simulate(tiny_config(rounds_per_cycle=1, local_steps=1), overrides, out=tmp_path / "run")
    assert grants(folder, 1) == dict.fromkeys(SITES, 2)
    assert [event["unit"] for event in events(folder) if event["event"] == "grant"] == ["volume", "volume"]
    last = [event for event in events(folder) if event["event"] == "annotate"][-1]
    assert all(site["received"] == 8 and site["unlabelled"] == 0 for site in last["sites"].values())
