"""The same apps on a Flower SuperLink with its Ray simulation runtime, started and stopped here.

The SuperLink gets a folder of its own for its state (`FLWR_HOME`, in the run's folder while it runs), a free port on
loopback, and no right to install anything: the code runs in this very environment. What it prints goes to `cluster.log` in
the run's folder. A command that is killed can't stop it; the next one on that folder does.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import psutil
from rich.console import Console

from server.history import History

PROJECT = Path(__file__).resolve().parents[1]
START_SECONDS = 60.0
STOP_SECONDS = 10.0
CONNECTION = "wardround"
HOME = "flwr_home"
"""Folder of a run that runs on a cluster at this moment."""

PROGRESS = re.compile(r"^\S+\s+\d+/\d+  ")


class ClusterFault(RuntimeError):
    """The SuperLink did not start or the run failed on it; the message names the log."""


def run_on_cluster(folder: Path, *, sites: int) -> None:
    """Run the prepared run in `folder` on a SuperLink of its own, one simulated SuperNode per site.

    Raises:
        ClusterFault: with the last lines of the log.
    """
    log = folder / "cluster.log"
    console = Console(stderr=True)
    with interrupted_by_sigterm(), superlink(log) as environment:
        command = [_program("flwr"), "run", str(_bundled(folder / HOME / "bundled")), CONNECTION, "--stream"]
        command += ["--run-config", f'run-dir="{folder}" engine="cluster"']
        command += ["--federation-config", f"num-supernodes={sites}"]
        with log.open("a", encoding="utf-8") as sink:
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
            )
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    sink.write(line)
                    if PROGRESS.match(line):
                        console.print(line.rstrip(), highlight=False)
                process.wait()
            finally:
                _stop(process)
    if process.returncode or not History(folder / "history.jsonl").ended:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise ClusterFault(f"the run did not end on the cluster; the whole log is {log}, its last lines:\n{tail}")


def _bundled(folder: Path) -> Path:
    """A copy of what the bundle is made of: Flower would walk the whole checkout, with .venv and every image of every run."""
    settings = PROJECT / "pyproject.toml"
    if not settings.exists():
        raise ClusterFault(
            f"{PROJECT} has no pyproject.toml, which tells Flower what to run: the cluster needs wardround installed from its "
            "checkout (make install). The inline engine, without --engine, does not"
        )
    app = tomllib.loads(settings.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
    try:
        for pattern in ("pyproject.toml", "LICENSE", *app["fab-include"]):
            for path in PROJECT.glob(pattern):
                copy = folder / path.relative_to(PROJECT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
    except OSError as error:
        raise ClusterFault(
            f"cannot write {folder}: {error.strerror or error}. Free some space there and go on with --resume"
        ) from error
    return folder


@contextlib.contextmanager
def superlink(log: Path) -> Iterator[dict[str, str]]:
    """A SuperLink with the simulation runtime on a free loopback port; gives the environment for `flwr`."""
    home = log.parent / HOME
    home.mkdir()
    port = _free_port()
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
        # flower-superlink starts its helpers by name: they must be found beside this Python.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    command = [_program("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("a", encoding="utf-8") as sink:
        process = subprocess.Popen(command, env=environment, stdout=sink, stderr=sink, start_new_session=True)
    try:
        _wait_for(port, process, log)
        yield environment
    finally:
        _stop(process)
        shutil.rmtree(home, ignore_errors=True)


def end_leftovers(folder: Path) -> None:
    """End what a killed command left running for the run in `folder`: it would go on writing there.

    To be called by whoever holds the folder's lock, so that no living command owns it. All that a SuperLink starts, also
    Ray's processes that leave its group, inherits where its state lies, and is known by that.
    """
    home = folder / HOME
    if not home.exists():
        return
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # another user's, or gone by now
            if process.environ().get("FLWR_HOME") == str(home):
                left.append(process)
    _end(left)
    shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM, as from a batch system at the end of its hours, counts as Ctrl-C: what was started here is stopped."""
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handler
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise ClusterFault(f"flower-superlink did not start on port {port}; its log {log} ends with:\n{tail}")


def _stop(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """End the process and all that it started, also what left its process group (Flower's and Ray's own helpers)."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(process.pid).children(recursive=True)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=STOP_SECONDS)
            break
    _end(psutil.wait_procs(family, timeout=STOP_SECONDS / 2)[1])


def _end(processes: list[psutil.Process]) -> None:
    """Ask processes to end, and kill those that do not."""
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with contextlib.suppress(psutil.Error):
                end(process)
        processes = psutil.wait_procs(processes, timeout=STOP_SECONDS / 2)[1]


def _program(name: str) -> str:
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise ClusterFault(f"{path} is missing: install wardround with its dependencies (make install)")
    return str(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
