"""A run folder that may not be written, met for real: by a user who is not root, in a child process."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.load import load
from simulation.run import simulate

Config = Callable[..., Path]
NOBODY = 65534


@pytest.fixture
def place(tiny_config: Config) -> Iterator[Path]:
    """A folder that any user may enter, unlike pytest's own; it holds the tiny configuration."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        shutil.copy(tiny_config(), folder / "tiny.toml")
        load(folder / "tiny.toml")  # what is imported on first use (codecs) must be there before rights are given up
        yield folder


def read_only(folder: Path) -> None:
    """Nobody's folders, which nobody may change; the files in them stay writable."""
    for path in [folder, *folder.rglob("*")]:
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        path.chmod(0o555 if path.is_dir() else 0o644)


def as_nobody(work: Callable[[], object]) -> str:
    """What `work` raises, type and text, where root's rights are given up.

    A fork, because who is not root may be kept from the folder of the Python that would have to start anew.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "nothing was raised"
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            work()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


def test_a_folder_that_cannot_be_made_is_named_with_the_remedy(place: Path) -> None:
    read_only(place)
    said = as_nobody(lambda: simulate(place / "tiny.toml", out=place / "run"))
    assert said.startswith("StorageFault: ")
    assert f"cannot write {place / 'run'}: Permission denied. Choose a folder that you may write to (--out)" in said


@pytest.mark.parametrize(("option", "told"), [("resume", "cannot write "), ("fresh", "cannot delete ")])
def test_a_run_folder_that_became_read_only_is_named_with_the_remedy_and_kept(place: Path, option: str, told: str) -> None:
    run = simulate(place / "tiny.toml", out=place / "run", prepare_only=True)
    before = sorted(run.rglob("*"))
    read_only(place)
    said = as_nobody(lambda: simulate(place / "tiny.toml", out=run, resume=option == "resume", fresh=option == "fresh"))
    assert said.startswith("StorageFault: ")
    assert f"{told}{run}/" in said
    assert "Permission denied" in said
    assert "(--out)" in said
    assert sorted(run.rglob("*")) == before
