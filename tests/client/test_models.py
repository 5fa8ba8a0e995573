"""The site's weights between messages: whole or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from client.faults import SiteFault
from client.models import LocalModels, load_models, save_models
from client.plan import Plan, network_for, network_with
from client.site import Site
from client.train import Trained, When, train
from simulation.run import simulate


def some(**changes: object) -> LocalModels:
    fields = {
        "run": "r",
        "cycle": 2,
        "round": 3,
        "step": 40,
        "total_steps": 120,
        "model": {"a.weight": torch.arange(6.0).reshape(2, 3)},
        "helpers": {"teacher": {"a.weight": torch.ones(2, 3)}},
        "reply": {"labelled": 4, "losses": {"total": 0.5}},
    }
    return LocalModels(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [(), ("teacher",), ("sam", "teacher")])
def test_what_is_saved_comes_back(tmp_path: Path, names: tuple[str, ...]) -> None:
    helpers = {name: {"a.weight": torch.full((2, 3), float(len(name))), "b": torch.zeros(1)} for name in names}
    save_models(tmp_path / "m", some(helpers=helpers))
    back = load_models(tmp_path / "m")
    assert back is not None
    assert back.is_of(run="r", cycle=2, round=3)
    assert not back.is_of(run="r", cycle=2, round=4)
    assert not back.is_of(run="s", cycle=2, round=3)
    torch.testing.assert_close(back.model, some().model)
    torch.testing.assert_close(back.helpers, helpers)
    assert back.reply == some().reply
    assert (back.step, back.total_steps) == (40, 120)


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_torn_file_counts_as_none(tmp_path: Path, keep: int) -> None:
    save_models(tmp_path / "m", some())
    content = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(content[:keep])
    assert load_models(tmp_path / "m") is None


def test_no_file_is_none(tmp_path: Path) -> None:
    assert load_models(tmp_path / "m") is None


def test_a_network_is_given_copies_of_weights_that_fit_and_says_when_they_do_not() -> None:
    plan = Plan.read({"seed": 1, "classes": ["a"], **{t: {} for t in ("preprocess", "network", "train", "sam", "query")}})
    weights = {name: tensor.numpy() + 1 for name, tensor in network_for(plan).state_dict().items()}
    network = network_with(plan, weights)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, torch.from_numpy(weights[name]))
    assert all(parameter.requires_grad for parameter in network.parameters())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert all((value != 0).any() for value in weights.values()), "training it leaves what came alone"
    name = next(iter(weights))
    with pytest.raises(SiteFault, match="do not fit UNet"):
        network_with(plan, {**weights, name: weights[name][:1]})


def test_the_teacher_is_taken_on_from_the_step_that_the_last_round_here_began_with(
    tiny_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the site's own last round, also where it was away for one: `north` sends nothing in round 2."""
    seen: list[tuple[str, int, int, int]] = []

    def watched(site: Site, plan: Plan, when: When, *given: Any, since: int, **more: Any) -> Trained:
        seen.append((site.name, when.round, since, when.step))
        if (site.name, when.round) == ("north", 2):
            raise FloatingPointError("away")
        return train(site, plan, when, *given, since=since, **more)

    monkeypatch.setattr("client.app.train", watched)
    simulate(tiny_config(), ("federation.cycles=1", "train.rounds_per_cycle=3"), out=tmp_path / "run")
    steps = {round_: step for _, round_, _, step in seen}
    assert [since for name, _, since, _ in seen if name == "south"] == [0, steps[1], steps[2]]
    assert [since for name, round_, since, _ in seen if name == "north" and round_ != 2] == [0, steps[1]]
    assert steps[3] == 2 * steps[2] > 0
