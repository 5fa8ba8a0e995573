"""Memory that is freed and taken again costs no page faults, and a user's own settings are left alone."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from client.allocator import keep_freed_memory

ROOT = Path(__file__).parents[2]

FAULTS = """
import resource, sys
import torch
from client.allocator import keep_freed_memory
granted = keep_freed_memory() if sys.argv[1] == "keep" else False

def step():  # what a network's activations do: all there at once, then none
    held = [torch.zeros(2**18) for _ in range(64)]
    held.clear()

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(granted, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


def faults(how: str, **more: str) -> tuple[bool, float]:
    """Whether it was granted, and page faults a step, of a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    code = [sys.executable, "-c", FAULTS, how]
    done = subprocess.run(code, cwd=ROOT, env=clean | more, capture_output=True, text=True, check=True)
    granted, count = done.stdout.split()
    return granted == "True", float(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library here is not glibc")
def test_freed_memory_is_not_fetched_again_page_by_page() -> None:
    _, plain = faults("plain")
    granted, kept = faults("keep")
    assert granted
    assert kept < plain / 10


def test_who_has_set_glibcs_own_variables_keeps_them() -> None:
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] is False


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("client.allocator.ctypes.CDLL", lambda _: object())
    assert not keep_freed_memory()
