"""Sites and experts that are late or absent: nobody waits for them, and what they missed is made up for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from tests_support import events, timeless

import client.app as client_app
import server.rounds as server_rounds
from client.site import Site
from server.sites import FederationFault
from simulation import run as simulation_run
from simulation.inline import InlineGrid
from simulation.run import simulate

Config = Callable[..., Path]
SITES = ["north", "south", "west"]


@pytest.fixture
def south_away_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """South refuses its first request, and carries out all others."""
    honest: Callable[..., Any] = vars(client_app)["carry_out"]
    away = {"south": 1}

    def carry_out(site: Site, *args: Any, **kwargs: Any) -> Any:
        if away.pop(site.name, 0):
            raise RuntimeError("the database is being moved")
        return honest(site, *args, **kwargs)

    monkeypatch.setattr("client.app.carry_out", carry_out)


def test_a_late_site_does_not_block_the_others(tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        """Time passes only while somebody waits."""

        now = 0.0

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            self.now += 1000.0

    class Deaf(InlineGrid):
        """North joins, then its replies get lost."""

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            ids = list(message_ids)
            lost = [i for i in ids if i in self._waiting and self._waiting[i].metadata.dst_node_id == 2]
            lost = [i for i in lost if self._waiting[i].metadata.message_type == "train"]
            return super().pull_messages([i for i in ids if i not in lost])

    monkeypatch.setattr(simulation_run, "InlineGrid", Deaf)
    monkeypatch.setattr("server.sites.time", Clock())
    folder = simulate(tiny_config(cycles=1), out=tmp_path / "run")
    late = [event for event in events(folder) if event["event"] == "late"]
    assert [(event["step"], list(event["sites"])) for event in late] == [("train", ["north"])] * 2
    assert all(event["sites"]["north"]["bytes_down"] > 10_000 for event in late), "the weights went out"
    assert all(event["sites"]["north"]["bytes_up"] == 0 for event in late)
    trained = [event for event in events(folder) if event["event"] == "train"]
    assert all(set(event["sites"]) == {"south", "west"} for event in trained)
    assert events(folder)[-1]["event"] == "end"


@pytest.mark.usefixtures("south_away_once")
def test_a_site_that_missed_its_request_gets_it_again_once_it_answers(tiny_config: Config, tmp_path: Path) -> None:
    """Away at the cold start, a site has nothing to train on; its grant is not lost, and it takes part a round later."""
    folder = simulate(tiny_config(cycles=1, rounds_per_cycle=3), ["federation.deadline_polls=1"], out=tmp_path / "run")
    trained = [sorted(event["sites"]) for event in events(folder) if event["event"] == "train"]
    assert trained == [list(SITES)] * 3, "it is asked again before the first round, and trains with the others"
    later = [event for event in events(folder) if event["event"] == "annotate" and event["round"] == 1]
    assert [(event["cycle"], sorted(event["sites"])) for event in later] == [(0, ["south"])]
    assert later[0]["sites"]["south"]["received"] == 2, "the cold start's grant, no more and no less"
    assert [event["labels_total"] for event in events(folder) if event["event"] == "assess"] == [6]


@pytest.mark.usefixtures("south_away_once")
def test_a_request_that_a_site_refused_at_first_counts_to_its_bytes(tiny_config: Config, tmp_path: Path) -> None:
    folder = simulate(tiny_config(cycles=1), ["experts.delay=1"], out=tmp_path / "run")
    assert not [event for event in events(folder) if event["event"] == "refused"], "the second poll went well"
    told = next(event for event in events(folder) if event["event"] == "annotate")["sites"]
    assert told["south"]["received"] == told["north"]["received"] == 2
    assert told["south"]["bytes_down"] > told["north"]["bytes_down"], "asked once more than the others"


def test_a_run_that_stops_while_a_site_catches_up_goes_on_to_the_same_history(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest: Callable[..., Any] = vars(client_app)["carry_out"]

    def run(name: str, *, stop: bool) -> Path:
        away = {"south": 1}

        def carry_out(site: Site, *args: Any, **kwargs: Any) -> Any:
            if away.pop(site.name, 0):
                raise RuntimeError("the database is being moved")
            return honest(site, *args, **kwargs)

        def stopping(*args: Any, **kwargs: Any) -> Any:
            catch_up(*args, **kwargs)
            raise FederationFault("killed")

        config = tiny_config(cycles=1)
        with monkeypatch.context() as patch:
            patch.setattr("client.app.carry_out", carry_out)
            if stop:
                catch_up = server_rounds._catch_up
                patch.setattr(server_rounds, "_catch_up", stopping)
                with pytest.raises(FederationFault, match="killed"):
                    simulate(config, ["federation.deadline_polls=1"], out=tmp_path / name)
            else:
                return simulate(config, ["federation.deadline_polls=1"], out=tmp_path / name)
        return simulate(config, ["federation.deadline_polls=1"], out=tmp_path / name, resume=True)

    whole, stopped = run("whole", stop=False), run("stopped", stop=True)
    histories = []
    for history in (timeless(whole), timeless(stopped)):
        (refused,) = [event for event in history if event["event"] == "refused"]
        refused["sites"]["south"].pop("reference")  # a random number
        histories.append(history)
    assert histories[0] == histories[1]


def test_with_too_few_sites_the_run_stops_with_the_reasons(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(site: Site, *args: Any, **kwargs: Any) -> Any:
        raise FloatingPointError("NaN in an image of patient 12")

    monkeypatch.setattr("client.app.train", train)
    with pytest.raises(FederationFault, match=r"0 of 3 sites.*north: not-finite \([0-9a-f]{8}\).*--resume") as caught:
        simulate(tiny_config(cycles=1), out=tmp_path / "run")
    assert "patient 12" not in str(caught.value)
    monkeypatch.undo()
    simulate(tiny_config(cycles=1), out=tmp_path / "run", resume=True)
    assert events(tmp_path / "run")[-1]["event"] == "end"


def test_late_experts_carry_over(tiny_config: Config, tmp_path: Path) -> None:
    quick = simulate(tiny_config(), out=tmp_path / "quick")
    slow = simulate(tiny_config(), ["experts.delay=2", "federation.deadline_polls=1"], out=tmp_path / "slow")
    last = [event for event in events(slow) if event["event"] == "train"][-1]
    first = next(event for event in events(slow) if event["event"] == "annotate")
    assert sum(site["outstanding"] for site in first["sites"].values()) > 0, "some labels were late"
    assert sum(site["received"] + site["outstanding"] for site in first["sites"].values()) == 6
    assert last["labels_total"] == [event for event in events(quick) if event["event"] == "train"][-1]["labels_total"]
