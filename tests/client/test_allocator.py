"""Memory that is freed and taken again costs no page faults, and a user's own settings are left alone."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from client.allocator import keep_freed_memory

ROOT = Path(__file__).parents[2]

FAULTS = """
import ctypes, json, resource, sys
import torch
from client.allocator import keep_freed_memory
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages: a page fault is 4 KiB, whatever the system prefers
granted = keep_freed_memory() if sys.argv[1] == "keep" else False

def step():  # what a network's activations do: all there at once, then none
    held = [torch.zeros(2**18) for _ in range(64)]
    held.clear()

faults = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps([granted, faults]))
"""


def faults(how: str, **more: str) -> tuple[bool, list[int]]:
    """Whether it was granted, and page faults of each step, of a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    code = [sys.executable, "-c", FAULTS, how]
    done = subprocess.run(code, cwd=ROOT, env=clean | more, capture_output=True, text=True, check=True)
    granted, counts = json.loads(done.stdout)
    return granted, counts


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library here is not glibc")
def test_freed_memory_is_not_fetched_again_page_by_page() -> None:
    """Left alone, the second step tells: by chance, later ones find memory that something small has held in its place."""
    _, plain = faults("plain")
    granted, kept = faults("keep")
    assert granted
    assert sum(kept[1:]) < plain[1] / 4


def test_who_has_set_glibcs_own_variables_keeps_them() -> None:
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] is False


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("client.allocator.ctypes.CDLL", lambda _: object())
    assert not keep_freed_memory()
