"""The folder of a run: never overwritten or deleted by mistake, and safe when the disk is full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests_support import timeless

from client.formats.image import FormatError
from client.sam_checkpoint import SMALL, SamUnavailable
from configs.files import FolderInUse, StorageFault, locked
from simulation.run import RunFolderError, simulate
from simulation.split import DataFault

Config = Callable[..., Path]


def test_a_folder_that_holds_this_run_is_not_overwritten(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(cycles=1)
    simulate(config, out=tmp_path / "run", prepare_only=True)
    with pytest.raises(RunFolderError, match=r"--resume.*--fresh.*--out"):
        simulate(config, out=tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"another configuration \(train.local_steps\)"):
        simulate(config, ["train.local_steps=3"], out=tmp_path / "run", resume=True)
    simulate(config, ["train.local_steps=3"], out=tmp_path / "run", fresh=True, prepare_only=True)


def test_a_folder_with_other_things_is_never_deleted(tiny_config: Config, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.txt").write_text("miaow")
    with pytest.raises(RunFolderError, match="holds no run"):
        simulate(tiny_config(), out=tmp_path / "photos", fresh=True)
    assert (tmp_path / "photos" / "cat.txt").exists()


def test_there_is_nothing_to_resume(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nothing to resume"):
        simulate(tiny_config(), out=tmp_path / "run", resume=True)


def test_a_folder_in_use_is_left_alone(tiny_config: Config, tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(FolderInUse, match=r"/run is in use by another .*choose another folder"):
        simulate(tiny_config(), out=tmp_path / "run")


def test_a_full_disk_stops_the_run_and_it_goes_on_afterwards(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    honest, calls = os.replace, []

    def full(source: str, target: str | Path) -> None:
        calls.append(target)
        if "weights-000004" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageFault, match=r"weights-000004.*disk is full.*--resume"):
        simulate(tiny_config(), out=tmp_path / "run")
    monkeypatch.undo()
    simulate(tiny_config(), out=tmp_path / "run", resume=True)
    simulate(tiny_config(), out=tmp_path / "whole")
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")


def test_a_run_that_failed_before_it_was_prepared_does_not_hold_its_folder(tiny_config: Config, tmp_path: Path) -> None:
    run, config = tmp_path / "run", tiny_config()
    with pytest.raises(SamUnavailable, match="no SAM checkpoint"):
        simulate(config, ["sam.enabled=true", "sam.checkpoint=nowhere.pth"], out=run)
    whole = config.read_text()
    config.write_text(whole.replace("bar = 2\n", ""))
    with pytest.raises(FormatError, match="holds the label values"):
        simulate(config, out=run)
    assert (run / "data").exists()
    config.write_text(whole)
    with pytest.raises(RunFolderError, match="another configuration"):
        simulate(config, out=run, resume=True)
    simulate(config, out=run, prepare_only=True)
    with pytest.raises(RunFolderError, match=r"another configuration \(seed\)"):
        simulate(config, ["seed=1"], out=run)


def test_what_a_run_has_made_is_kept_from_another_configuration_also_without_its_state(
    tiny_config: Config, tmp_path: Path
) -> None:
    """`data/prepared.json` is what a message may have told to delete."""
    run = simulate(tiny_config(cycles=1), out=tmp_path / "run")
    (run / "data" / "prepared.json").unlink()
    with pytest.raises(RunFolderError, match=r"another configuration \(seed\)"):
        simulate(tiny_config(cycles=1), ["seed=1"], out=run)
    assert (run / "sites" / "north" / "site.db").exists()


def test_a_run_of_an_older_version_does_not_go_on_with_defaults_it_did_not_have(tiny_config: Config, tmp_path: Path) -> None:
    run = simulate(tiny_config(cycles=1), out=tmp_path / "run")
    config = run / "config.toml"
    config.write_text(config.read_text().replace("start = 0.0\n", ""))
    with pytest.raises(RunFolderError, match=r"older wardround, which did not know sam\.start"):
        simulate(tiny_config(cycles=1), ["sam.start=0.5"], out=run, resume=True)


def test_a_run_does_not_go_on_with_another_sam(tiny_config: Config, tmp_path: Path) -> None:
    sam = tmp_path / "sam.safetensors"
    state = load_file(SMALL)
    save_file(state, sam)
    overrides = ["sam.enabled=true", f"sam.checkpoint={sam}"]
    simulate(tiny_config(), overrides, out=tmp_path / "run", prepare_only=True)
    save_file({name: 1.01 * value for name, value in state.items()}, sam)
    with pytest.raises(DataFault, match=r"the file of sam\.checkpoint differ.*--out"):
        simulate(tiny_config(), overrides, out=tmp_path / "run", resume=True)
