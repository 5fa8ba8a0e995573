"""The same apps on a SuperLink with Ray: the same cases, nearly the same numbers, and nothing left running."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import psutil
import pytest
from flwr.cli.build import build_fab_from_disk
from tests_support import events, timeless

from client.store import Store
from simulation import cluster
from simulation.cluster import ClusterFault, run_on_cluster, superlink
from simulation.run import simulate

ROOT = Path(__file__).parents[2]


def labelled(folder: Path) -> dict[str, list[str]]:
    cases = {}
    for path in sorted((folder / "sites").iterdir()):
        store = Store.at(path / "site.db")
        cases[path.name] = [case.id for case in store.cases("labelled")]
        store.close()
    return cases


def left_running(mark: str) -> list[str]:
    """Command lines of processes that inherited `WARDROUND_TEST=mark`: those that one test started, and no other run's."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = process.pid != os.getpid() and process.environ().get("WARDROUND_TEST") == mark
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def test_what_runs_on_a_cluster_would_be_seen() -> None:
    environment = {**os.environ, "WARDROUND_TEST": "probe"}
    with subprocess.Popen([sys.executable, "-c", "input()"], env=environment, stdin=subprocess.PIPE) as process:
        assert left_running("probe")
        process.kill()


def test_inline_and_cluster_label_the_same_cases(
    tiny_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARDROUND_TEST", str(tmp_path))
    config = tiny_config()
    options = ['query.strategy="random"', "sam.enabled=true"]
    inline = simulate(config, options, out=tmp_path / "inline")
    clustered = simulate(config, options, out=tmp_path / "cluster", engine="cluster")
    assert labelled(inline) == labelled(clustered)
    one, other = ([e["dice_mean_test"] for e in events(folder) if e["event"] == "assess"] for folder in (inline, clustered))
    assert one == pytest.approx(other, abs=0.02)
    assert [e["event"] for e in events(inline)] == [e["event"] for e in events(clustered)]
    assert events(clustered)[0]["engine"] == "cluster"
    assert not left_running(str(tmp_path)), "the SuperLink and all it started have ended"


def test_a_command_that_was_killed_leaves_a_cluster_that_the_next_one_ends(
    tiny_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster would go on training beside it, and hold the checkpoint."""
    monkeypatch.setenv("WARDROUND_TEST", str(tmp_path))
    config, folder, options = tiny_config(), tmp_path / "run", ["query.strategy=random"]
    command = [sys.executable, "-m", "wardround", "simulate", str(config), "--set", *options, "--engine", "cluster"]
    with subprocess.Popen([*command, "--out", str(folder)], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("train 1" in line for line in process.stderr), "it came as far as the first round"
        process.kill()
    assert left_running(str(tmp_path))
    assert events(folder)[-1]["event"] != "end"
    simulate(config, options, out=folder, resume=True)  # on the engine that takes a second
    assert not left_running(str(tmp_path))
    assert not (folder / "flwr_home").exists()
    whole = simulate(config, options, out=tmp_path / "whole")
    assert labelled(folder) == labelled(whole)
    assert [e for e in timeless(folder) if e["event"] == "assess"] == [e for e in timeless(whole) if e["event"] == "assess"]


def test_a_command_that_is_told_to_end_takes_its_superlink_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDROUND_TEST", str(tmp_path))
    code = f"""
from pathlib import Path
from simulation.cluster import interrupted_by_sigterm, superlink
with interrupted_by_sigterm(), superlink(Path({str(tmp_path / "log.txt")!r})):
    print("up", flush=True)
    input()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == b"up\n"
        assert left_running(str(tmp_path))
        process.terminate()
        assert process.wait() != 0
    assert not left_running(str(tmp_path))
    assert not (tmp_path / "flwr_home").exists()


def test_a_run_that_fails_on_the_cluster_names_its_log(tmp_path: Path) -> None:
    with pytest.raises(ClusterFault, match=r"cluster\.log"):
        run_on_cluster(tmp_path, sites=1)
    assert "config.toml" in (tmp_path / "cluster.log").read_text()


def test_a_superlink_that_does_not_start_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    broken = tmp_path / "bin" / "flower-superlink"
    broken.write_text("#!/bin/sh\necho no licence to link >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(cluster, "_program", lambda name: str(broken))
    with pytest.raises(ClusterFault, match="no licence to link"), superlink(tmp_path / "log.txt"):
        pass


def test_the_bundle_holds_code_and_configurations_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `flwr run .` would send to every site, from a checkout in which a run and its images lie about."""
    copied = tmp_path / "copied"
    tmp_path /= "checkout"
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    stray = tmp_path / "runs" / "demo" / "sites" / "north"
    stray.mkdir(parents=True)
    (stray / "history.jsonl").write_text("{}")
    (stray / "images.json").write_text("[]")
    with zipfile.ZipFile(BytesIO(build_fab_from_disk(tmp_path))) as bundle:
        names = bundle.namelist()
    folders = {name.partition("/")[0] for name in names}
    own = {"client", "server", "strategies", "simulation", "configs"}
    assert folders <= own | {"wardround.py", "pyproject.toml", ".info", "LICENSE"}
    assert {Path(name).suffix for name in names if "/" in name and not name.startswith(".info")} <= {".py", ".toml"}
    for needed in ("client/app.py", "server/app.py", "strategies/wire.py", "configs/schema.py", "configs/demo.toml"):
        assert needed in names
    assert not [name for name in names if "test" in name or "runs" in name]
    monkeypatch.setattr(cluster, "PROJECT", tmp_path)
    with zipfile.ZipFile(BytesIO(build_fab_from_disk(cluster._bundled(copied)))) as bundle:
        assert sorted(bundle.namelist()) == sorted(names), "and so does what a simulated cluster is given"
    (tmp_path / "pyproject.toml").unlink()
    with pytest.raises(ClusterFault, match="make install"):
        cluster._bundled(copied)


def test_importing_the_command_line_starts_no_engine() -> None:
    """`wardround --help` must be quick: neither torch nor Flower nor Ray is imported for it, nor to check settings."""
    code = "import sys, configs.load, wardround; print([m for m in ('torch', 'flwr', 'ray', 'monai') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip() == "[]"
