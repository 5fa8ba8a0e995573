"""The folder of a run: never overwritten or deleted by mistake, and safe when the disk is full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests_support import timeless

from configs.files import FolderInUse, StorageFault, locked
from simulation.run import RunFolderError, simulate

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
