"""A damaged file of a run or a site is named with what to do about it, and doing that helps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tests_support import events

from client.annotate.show import render_worklist
from client.faults import SiteFault
from client.models import LocalModels, save_models
from configs.files import StorageFault, read_object
from simulation.run import simulate

Config = Callable[..., Path]


@pytest.fixture
def halfway(tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A configuration, and its run, stopped before the second cycle."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("server.rounds.assess", stop)
        stop.__name__ = "assess"
        with pytest.raises(SystemExit):
            simulate(tiny_config(cycles=1), out=tmp_path / "run")
    return tiny_config(cycles=1), tmp_path / "run"


def test_a_damaged_checkpoint_is_named_and_a_backup_helps(halfway: tuple[Path, Path]) -> None:
    config, folder = halfway
    state, backup = folder / "checkpoint" / "state.json", folder / "backup.json"
    shutil.copy(state, backup)
    state.write_text(state.read_text()[:100])
    with pytest.raises(StorageFault, match=rf"{state} is damaged.*put a backup .*--resume, or start over with --fresh"):
        simulate(config, out=folder, resume=True)
    backup.rename(state)
    simulate(config, out=folder, resume=True)
    assert events(folder)[-1]["event"] == "end"


def test_damaged_or_missing_weights_of_a_checkpoint_are_named_and_a_fresh_start_helps(halfway: tuple[Path, Path]) -> None:
    config, folder = halfway
    (weights,) = (folder / "checkpoint").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(StorageFault, match=rf"{weights} is damaged or missing.*start over with --fresh"):
        simulate(config, out=folder, resume=True)
    weights.unlink()
    with pytest.raises(StorageFault, match=rf"{weights} is damaged or missing.*start over with --fresh"):
        simulate(config, out=folder, resume=True)
    simulate(config, out=folder, fresh=True)
    assert events(folder)[-1]["event"] == "end"


@pytest.mark.parametrize("name", ["data/prepared.json", "sites/south/hidden/done.json"])
def test_what_preparing_left_is_made_again_where_it_is_damaged(tiny_config: Config, tmp_path: Path, name: str) -> None:
    config = tiny_config()
    folder = simulate(config, out=tmp_path / "run", prepare_only=True)

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before, path = content(), folder / name
    path.write_text("{")
    if name.startswith("sites"):  # otherwise it is not looked at again
        (folder / "data" / "prepared.json").unlink()
    with pytest.raises(StorageFault, match=rf"{path} is damaged.*delete it and go on with --resume"):
        simulate(config, out=folder, resume=True)
    path.unlink()
    simulate(config, out=folder, resume=True, prepare_only=True)
    assert content() == before


def test_damaged_models_of_a_site_cost_what_stays_there_and_the_log_says_so(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(path: Path, models: LocalModels) -> None:
        save_models(path, models)
        path.write_bytes(path.read_bytes()[:100])

    monkeypatch.setattr("client.app.save_models", torn)
    folder = simulate(tiny_config(cycles=1), out=tmp_path / "run")
    assert events(folder)[-1]["event"] == "end"
    for site in ("north", "south", "west"):
        log = (folder / "sites" / site / "site.log").read_text()
        assert log.count("what stays at a site (a teacher)") == 1, "in the second round, not in the first"


def test_a_damaged_database_is_named_and_costs_only_its_site(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(cycles=1, rounds_per_cycle=1)
    folder = simulate(config, out=tmp_path / "run", prepare_only=True)
    path = folder / "sites" / "south" / "site.db"
    path.write_text("no database " * 100)
    simulate(config, out=folder, resume=True)
    (refused,) = [event for event in events(folder) if event["event"] == "refused"]
    assert {site: why["code"] for site, why in refused["sites"].items()} == {"south": "storage"}
    told = f"cannot use {path} (file is not a database): it is damaged"
    said = path.with_name("site.log").read_text().partition(refused["sites"]["south"]["reference"])[2]
    assert told in said
    assert "Put a backup of it back" in said
    assert events(folder)[-1]["event"] == "end"
    with pytest.raises(SiteFault, match=r"site\.db \(file is not a database\).*Put a backup of it back"):
        render_worklist(path.parent, Console())


def test_an_object_is_read_with_all_that_it_must_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"one": 1, "two": 2}')
    assert read_object(path, keys=["one"], remedy="mend it") == {"one": 1, "two": 2}
    for content, told in (
        ('{"one": 1, "two": 2}', "it lacks three"),
        ("[]", "it holds no object"),
        ("", "Expecting value.*"),
        ('{"one": ', "Expecting value.*"),
        ("\0" * 50, ".*"),
    ):
        path.write_text(content)
        with pytest.raises(StorageFault, match=rf"a\.json is damaged \({told}\): mend it"):
            read_object(path, keys=["one", "three"], remedy="mend it")
