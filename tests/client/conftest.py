"""A site behind its gate, and what Flower's runtime would set around it."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity
from gate_support import Bench


@pytest.fixture
def flower_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Flower's runtime sets before it calls an app; here 1 is the coordinator."""
    for name, value in {"_run_id": 7, "_task_id": 3, "_node_id": 1}.items():
        monkeypatch.setattr(TaskIdentity, name, value)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)
