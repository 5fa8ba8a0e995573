"""Hidden labels are read for requested cases only, when they are due."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.annotate.oracle import Oracle, none_read_in_vain
from client.annotate.worklist import carry_out, collect
from client.faults import SiteFault
from client.plan import Plan
from client.site import Site
from configs.load import load
from server.app import settings_for_sites
from simulation.run import simulate
from strategies.records import Case


@pytest.fixture
def site_and_plan(tiny_config: Callable[..., Path], tmp_path: Path) -> tuple[Site, Plan]:
    config = tiny_config()
    folder = simulate(config, out=tmp_path / "run", prepare_only=True)
    site, plan = Site(folder / "sites" / "north"), Plan.read(settings_for_sites(load(config)))
    site.take_in(plan.preprocess)
    return site, plan


def set_schedule(site: Site, *, delay: dict[str, int] | None = None, absent: list[int] | None = None) -> None:
    path = site.workspace / "schedule.json"
    path.write_text(json.dumps({"delay": delay or {}, "absent_cycles": absent or []}))


def test_a_label_that_was_not_requested_cannot_be_read(site_and_plan: tuple[Site, Plan]) -> None:
    site, plan = site_and_plan
    oracle = Oracle(site, plan, run="r")
    case = site.store.cases("unlabelled")[0]
    with pytest.raises(SiteFault, match=case.id) as caught:
        oracle.read(case)
    assert caught.value.code == "invariant-broken"
    assert site.hidden_reads == []


def test_requested_labels_come_with_the_right_slice(site_and_plan: tuple[Site, Plan]) -> None:
    site, plan = site_and_plan
    assert carry_out(site, plan, run="r", cycle=0, cases=3, tick=1) == 3
    oracle = Oracle(site, plan, run="r")
    answers = oracle.answers(site.store.open_requests(), cycle=0, tick=1)
    assert site.hidden_reads == [request.case.id for request, _ in answers]
    assert len(answers) == 3
    for request, mask in answers:
        with np.load(site.workspace / "hidden" / f"{request.case.image}.npz") as file:
            np.testing.assert_array_equal(mask, file["mask"][request.case.index])
    assert all(r.reason for r in site.store.open_requests())


def test_a_hidden_label_that_is_read_and_not_given_breaks_an_invariant(site_and_plan: tuple[Site, Plan]) -> None:
    site, plan = site_and_plan
    carry_out(site, plan, run="r", cycle=0, cases=3, tick=1)
    with none_read_in_vain(site):
        assert collect(site, plan, run="r", cycle=0, tick=1) == 3
    with none_read_in_vain(site):
        pass
    carry_out(site, plan, run="r", cycle=1, cases=2, tick=2)
    (first, second) = (request.case for request in site.store.open_requests())

    def peek(case: Case, *, collects: bool) -> None:
        with none_read_in_vain(site):
            Oracle(site, plan, run="r").read(case)
            if collects:
                collect(site, plan, run="r", cycle=1, tick=2)

    with pytest.raises(SiteFault, match=f"1 hidden labels were read, and 0 labels came; case {first.id}") as caught:
        peek(first, collects=False)
    assert caught.value.code == "invariant-broken"
    with pytest.raises(SiteFault, match=f"3 hidden labels were read, and 2 labels came; case {second.id} was read 2 times"):
        peek(second, collects=True)


def test_labels_come_when_they_are_due_and_not_in_an_absence(site_and_plan: tuple[Site, Plan]) -> None:
    site, plan = site_and_plan
    carry_out(site, plan, run="r", cycle=0, cases=2, tick=1)
    slow = site.store.open_requests()[0].case.id
    set_schedule(site, delay={slow: 3}, absent=[2])
    assert collect(site, plan, run="r", cycle=0, tick=1) == 1
    assert collect(site, plan, run="r", cycle=1, tick=3) == 0
    assert collect(site, plan, run="r", cycle=2, tick=4) == 0, "the expert is away"
    assert collect(site, plan, run="r", cycle=3, tick=5) == 1
    assert site.store.counts()["labelled"] == 2


def test_a_choice_is_made_once_and_follows_the_seed(site_and_plan: tuple[Site, Plan]) -> None:
    site, plan = site_and_plan
    carry_out(site, plan, run="r", cycle=0, cases=3, tick=1)
    chosen = [request.case.id for request in site.store.open_requests()]
    assert carry_out(site, plan, run="r", cycle=0, cases=3, tick=7) == 3
    assert [request.case.id for request in site.store.open_requests()] == chosen


def test_more_than_the_pool_is_the_pool(site_and_plan: tuple[Site, Plan]) -> None:
    site, plan = site_and_plan
    everything = len(site.store.cases("unlabelled"))
    assert carry_out(site, plan, run="r", cycle=0, cases=1000, tick=1) == everything
    assert carry_out(site, plan, run="r", cycle=1, cases=5, tick=2) == 0


def test_a_missing_schedule_is_told(site_and_plan: tuple[Site, Plan]) -> None:
    site, plan = site_and_plan
    (site.workspace / "schedule.json").unlink()
    with pytest.raises(SiteFault, match=r"schedule\.json"):
        Oracle(site, plan, run="r")
