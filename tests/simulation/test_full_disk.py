"""One hospital's disk is full in the middle of a run: it is refused by code, the others go on, and it comes back."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests_support import events, timeless

from client.site import Site
from client.store import Store
from configs.files import StorageFault
from server.history import Event, History
from server.sites import FederationFault
from simulation.run import simulate

Config = Callable[..., Path]
FillDisk = Callable[[Path, int], list[Path]]


@pytest.fixture
def fill_disk(monkeypatch: pytest.MonkeyPatch) -> FillDisk:
    """Lets the next writes of models and scores in a site's folder meet a full disk; gives the list of them, as it grows."""

    def fill(site: Path, writes: int) -> list[Path]:
        honest = os.replace
        met: list[Path] = []

        def replace(source: str, target: Path) -> None:
            if target.parent in (site / "models", site / "scores") and len(met) < writes:
                met.append(target)
                raise OSError(errno.ENOSPC, "No space left on device")
            honest(source, target)

        monkeypatch.setattr(os, "replace", replace)
        return met

    return fill


def test_a_site_whose_disk_is_full_sits_out_until_there_is_room(tiny_config: Config, tmp_path: Path, fill_disk: FillDisk) -> None:
    folder, south = tmp_path / "run", tmp_path / "run" / "sites" / "south"
    met = fill_disk(south, 3)
    simulate(tiny_config(), out=folder)
    assert [path.parent.name for path in met] == ["models", "models", "scores"]
    record = events(folder)
    refused = [event for event in record if event["event"] == "refused"]
    assert [(event["step"], event["cycle"], event["round"]) for event in refused] == [
        ("train", 1, 1),
        ("train", 1, 2),
        ("assess", 1, 0),
    ]
    for event, path in zip(refused, met, strict=True):
        assert set(event["sites"]) == {"south"}
        assert event["sites"]["south"]["code"] == "storage"
        said = (south / "site.log").read_text().partition(event["sites"]["south"]["reference"])[2]
        assert f"cannot write {path}: the disk is full. Free some space" in said
    there = {(e["event"], e["cycle"], e["round"]): set(e["sites"]) for e in record if e["event"] in ("train", "assess")}
    everybody = {"north", "south", "west"}
    assert all(sites == (everybody - {"south"} if cycle == 1 else everybody) for (_, cycle, _), sites in there.items())
    assert record[-1]["event"] == "end"
    assert record[-1]["labels_total"] == 9
    store = Store.at(south / "site.db")
    store.check_conserved()
    store.close()
    assert not list(south.rglob("*.part"))
    assert str(tmp_path) not in (folder / "history.jsonl").read_text()


def test_a_run_that_needs_the_site_stops_and_goes_on_when_there_is_room(
    tiny_config: Config, tmp_path: Path, fill_disk: FillDisk
) -> None:
    config, needed = tiny_config(cycles=1), ["federation.min_sites=3"]
    fill_disk(tmp_path / "run" / "sites" / "south", 1)
    with pytest.raises(FederationFault, match=r"2 of 3 sites answered, 3 are needed.*south: storage.*--resume"):
        simulate(config, needed, out=tmp_path / "run")
    simulate(config, needed, out=tmp_path / "run", resume=True)
    simulate(config, needed, out=tmp_path / "whole")
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")


def test_where_no_site_can_write_the_coordinator_itself_says_what_to_do(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole disk is full, so there is no log to look into."""
    config = tiny_config(cycles=1)
    folder = simulate(config, out=tmp_path / "run", prepare_only=True)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Site, "take_in", full)
    monkeypatch.setattr(logging.FileHandler, "_open", full)
    told = r"0 of at least 1 sites joined.*south: storage.*disks are full.*free some space.*--resume"
    with pytest.raises(FederationFault, match=told):
        simulate(config, out=folder, resume=True)
    assert not list(folder.rglob("site.log"))
    monkeypatch.undo()
    simulate(config, out=folder, resume=True)
    assert events(folder)[-1]["event"] == "end"


@pytest.mark.parametrize("written", ['{"schema": 1, "event": "end", "cycle"', '{"schema": 1, "event": "end"}', ""])
def test_a_run_whose_last_line_was_torn_has_not_ended(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    """The disk fills up in the middle of the last event, so what says `end` is no event yet."""
    config, honest = tiny_config(cycles=1, rounds_per_cycle=1, local_steps=1), History.append

    def torn(self: History, told: Sequence[Event]) -> None:
        if told[0]["event"] != "end":
            return honest(self, told)
        with self._path.open("a") as file:
            file.write(written)
        raise StorageFault(errno.ENOSPC, "free some space, then go on with --resume")

    with monkeypatch.context() as patch:
        patch.setattr(History, "append", torn)
        with pytest.raises(StorageFault, match="--resume"):
            simulate(config, out=tmp_path / "run")
    assert not History(tmp_path / "run" / "history.jsonl").ended
    simulate(config, out=tmp_path / "run", resume=True)
    assert [event["event"] for event in events(tmp_path / "run")].count("end") == 1
    assert History(tmp_path / "run" / "history.jsonl").ended
