"""The site's weights between messages: whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from client.models import LocalModels, load_models, save_models


def some(**changes: object) -> LocalModels:
    fields = {
        "run": "r",
        "cycle": 2,
        "round": 3,
        "student": {"a.weight": torch.arange(6.0).reshape(2, 3)},
        "helpers": {"teacher": {"a.weight": torch.ones(2, 3)}},
        "reply": {"labelled": 4, "losses": {"total": 0.5}},
    }
    return LocalModels(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [(), ("teacher",), ("peer", "teacher")])
def test_what_is_saved_comes_back(tmp_path: Path, names: tuple[str, ...]) -> None:
    helpers = {name: {"a.weight": torch.full((2, 3), float(len(name))), "b": torch.zeros(1)} for name in names}
    save_models(tmp_path / "m", some(helpers=helpers))
    back = load_models(tmp_path / "m")
    assert back is not None
    assert back.is_of(run="r", cycle=2, round=3)
    assert not back.is_of(run="r", cycle=2, round=4)
    assert not back.is_of(run="s", cycle=2, round=3)
    torch.testing.assert_close(back.student, some().student)
    torch.testing.assert_close(back.helpers, helpers)
    assert back.reply == some().reply


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_torn_file_counts_as_none(tmp_path: Path, keep: int) -> None:
    save_models(tmp_path / "m", some())
    content = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(content[:keep])
    assert load_models(tmp_path / "m") is None


def test_no_file_is_none(tmp_path: Path) -> None:
    assert load_models(tmp_path / "m") is None
