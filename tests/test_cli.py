"""The command line as a newcomer meets it: help that teaches, faults that help, no traceback for a mistake."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

import wardround
from simulation.run import simulate

ROOT = Path(__file__).parents[1]


def call(arguments: Sequence[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code and everything printed, of the real entry point in this process."""
    monkeypatch.setattr(sys, "argv", ["wardround", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    code = 0
    try:
        wardround.main()
    except SystemExit as end:
        code = int(end.code or 0)
    printed = capsys.readouterr()
    return code, re.sub(r"\x1b\[[0-9;]*m", "", printed.out + printed.err)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    return lambda *arguments: call(arguments, capsys, monkeypatch)


Cli = Callable[..., tuple[int, str]]


def test_version(cli: Cli) -> None:
    assert cli("--version") == (0, f"wardround {version('wardround')}\n")


def test_every_command_has_help(cli: Cli) -> None:
    code, text = cli("--help")
    assert code == 0
    for command in ("simulate", "check", "report", "pretrain-sam", "site"):
        assert command in text
        code, of_command = cli(command, "--help")
        assert code == 0
        assert len(of_command) > 200
    for command in ("egress", "worklist", "sam", "clear"):
        assert cli("site", command, "--help")[0] == 0


def test_check_says_what_a_configuration_would_run(cli: Cli) -> None:
    code, text = cli("check", str(ROOT / "configs" / "demo.toml"))
    assert code == 0
    assert "is valid" in text
    assert "4 cycles" in text


def test_check_says_in_how_many_rounds_sam_has_a_part(cli: Cli) -> None:
    options = [option for value in ("federation.cycles=4", "train.rounds_per_cycle=5") for option in ("--set", value)]
    assert "with SAM in 10 of 20 rounds" in cli("check", "configs/demo.toml", *options)[1]
    code, text = cli("check", "configs/demo.toml", *options, "--set", "sam.start=0.97")
    assert code == 0
    assert "with SAM in 0 of 20 rounds" in text
    assert "SAM has no part in this run" in text
    code, text = cli("check", "configs/demo.toml", *options, "--set", "sam.start=0.97", "--set", "sam.adapt=decoder")
    assert code == 2
    assert "trains a SAM that is never asked" in text


def test_check_tells_all_faults_at_once_without_a_traceback(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('[classes]\na = 1\n[train]\nlocal_stepz = 3\nlearning_rate = -1\n[data]\nformat = "nifti"\n')
    code, text = cli("check", str(path))
    assert code == 2
    for told in ("train.local_stepz", "did you mean train.local_steps", "train.learning_rate", "root is empty"):
        assert told in text
    assert "Traceback" not in text


def test_check_explains_every_setting(cli: Cli) -> None:
    code, text = cli("check", "--explain")
    assert code == 0
    for key in ("train.local_steps", "budget.per_cycle", "privacy.share"):
        assert key in text


def test_check_wants_something_to_do(cli: Cli) -> None:
    assert cli("check")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("simulate", "nowhere.toml"), "nowhere.toml"),
        (("report", "nowhere"), "history.jsonl"),
        (("site", "worklist", "nowhere"), "site.db"),
        (("site", "clear", "nowhere"), "site.db"),
        (("site", "sam", "nowhere"), "site.db"),
        (("simulate", "configs/demo.toml", "--engine", "warp"), "inline, cluster"),
        (("check", "configs/demo.toml", "--set", "sam.checkpoint=nowhere.pth"), "no SAM checkpoint at nowhere.pth"),
        (("check", "configs/demo.toml", "--set", "sam.box=false", "--set", "sam.positives=0"), "clicks outside alone"),
        (("pretrain-sam", "--out", "OUT", "--resume"), "without --resume"),
        (("pretrain-sam", "--out", "OUT", "--device", "gpu"), "no device 'gpu' here: choose one of auto, cpu"),
        (("pretrain-sam", "--out", "OUT", "--start", "nowhere.pth"), "no SAM checkpoint at nowhere.pth"),
    ],
)
def test_mistakes_get_a_sentence_and_exit_code_2(cli: Cli, tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    code, text = cli(*(str(tmp_path / "out") if word == "OUT" else word for word in arguments))
    assert code == 2
    assert told in text
    assert "Traceback" not in text


def test_a_run_can_be_looked_into(cli: Cli, tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    folder = simulate(tiny_config(cycles=1), out=tmp_path / "run")
    code, text = cli("site", "egress", str(folder / "sites" / "north"))
    assert code == 0
    assert "intact" in text
    assert "update" in text
    code, text = cli("site", "worklist", str(folder / "sites" / "north"))
    assert code == 0
    assert "2 labelled" in text
    code, text = cli("site", "sam", str(folder / "sites" / "north"), "--cases", "2")
    assert code == 0
    assert "on 2 slices" in text
    assert "keep it here" in text
    assert (folder / "sites" / "north" / "sam.png").read_bytes().startswith(b"\x89PNG")
    (folder / "report.html").unlink()
    assert cli("report", str(folder))[0] == 0
    assert (folder / "report.html").exists()


def test_a_bug_of_ours_is_not_dressed_up(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import configs.show

    def broken(*_: object, **__: object) -> None:
        raise KeyError("a slip")

    monkeypatch.setattr(configs.show, "check", broken)
    with pytest.raises(KeyError, match="a slip"):
        cli("check", "configs/demo.toml")


def test_ctrl_c_prints_the_command_that_resumes(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    config = tiny_config()
    code = (
        "import os, signal, simulation.run as r, server.rounds as s\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it\n"
        "honest = s.train\n"
        "def train(*a, **k):\n    os.kill(os.getpid(), signal.SIGINT)\n    return honest(*a, **k)\n"
        "train.__name__ = 'train'\ns.train = train\n"
        f"import pathlib; r.simulate(pathlib.Path({str(config)!r}), out=pathlib.Path({str(tmp_path / 'run')!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert "--resume" in done.stderr
    simulate(config, out=tmp_path / "run", resume=True)
