"""Proposals are of this run's model, made once, and reading the model is not repeated from request to request."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import client.annotate.proposal as proposal
from client.annotate.proposal import Proposals
from client.annotate.worklist import carry_out, collect
from client.models import LocalModels, save_models
from client.plan import Plan, network_for
from client.site import Site

Joined = Callable[..., tuple[Site, Plan, Any]]


def keep_a_model(site: Site, plan: Plan, *, run: str, seen: int) -> None:
    """Weights of a network that sees class `seen` in every pixel."""
    state = network_for(plan).state_dict()
    last = [name for name in state if name.endswith("bias")][-1]
    state[last] = state[last] + 50 * (np.arange(3) == seen).astype(np.float32)
    save_models(site.workspace / "models" / "local.safetensors", LocalModels(run, 1, 1, 0, state))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often a network was made for proposals."""
    made: list[str] = []
    honest: Callable[..., Any] = vars(proposal)["network_with"]

    def network_with(*args: Any) -> Any:
        made.append("a network")
        return honest(*args)

    monkeypatch.setattr(proposal, "network_with", network_with)
    return made


def slow_expert(site: Site) -> None:
    """No label comes before tick 100."""
    delays = {case.id: 100 for case in site.store.cases("unlabelled")}
    (site.workspace / "schedule.json").write_text(json.dumps({"delay": delays, "absent_cycles": []}))


def test_the_model_is_read_once_however_many_requests_wait_and_not_again_for_those_that_have_a_proposal(
    joined: Joined, reads: list[str]
) -> None:
    site, plan, _ = joined()
    keep_a_model(site, plan, run="r", seen=1)
    slow_expert(site)
    carry_out(site, plan, run="r", cycle=1, cases=5, tick=2)
    for tick in (2, 3):
        assert collect(site, plan, run="r", cycle=1, tick=tick) == 0
        assert len(reads) == 1
    requests = site.store.open_requests()
    assert [request.proposed for request in requests] == [True] * 5
    keep_a_model(site, plan, run="r", seen=2)
    proposals = Proposals(site, plan, run="r")
    masks = [proposals.of(request) for request in requests]
    assert all(mask is not None and mask.shape == (24, 32) and (mask == 1).mean() > 0.9 for mask in masks), "the first stays"
    assert len(reads) == 1


def test_what_an_earlier_run_left_proposes_nothing_and_saves_no_minutes(joined: Joined, reads: list[str]) -> None:
    site, plan, _ = joined(labels=0)
    keep_a_model(site, plan, run="an earlier run", seen=1)
    carry_out(site, plan, run="r", cycle=0, cases=3, tick=1)
    assert [Proposals(site, plan, run="r").of(request) for request in site.store.open_requests()] == [None] * 3
    assert not reads
    assert collect(site, plan, run="r", cycle=0, tick=1) == 3
    other, other_plan, _ = joined(labels=3, name="a new workspace")
    assert [minutes for _, minutes in site.store.costs()] == [minutes for _, minutes in other.store.costs()]
    assert all(minutes > 0 for _, minutes in site.store.costs())
    assert other_plan == plan


def test_a_model_that_finds_nothing_is_not_asked_again(joined: Joined, reads: list[str]) -> None:
    site, plan, _ = joined()
    keep_a_model(site, plan, run="r", seen=0)
    slow_expert(site)
    carry_out(site, plan, run="r", cycle=1, cases=2, tick=2)
    for tick in (2, 3, 4):
        collect(site, plan, run="r", cycle=1, tick=tick)
    assert len(reads) == 1
    assert [Proposals(site, plan, run="r").of(request) for request in site.store.open_requests()] == [None] * 2
