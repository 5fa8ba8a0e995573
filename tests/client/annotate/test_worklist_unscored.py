"""A grant for a pool that was not scored in the cycle, or not as it is now."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.annotate import worklist
from client.annotate.worklist import carry_out
from client.faults import SiteFault
from client.plan import Plan
from client.score import save_scores
from client.site import Site
from client.store import Request
from configs.load import load
from server.app import settings_for_sites
from simulation.run import simulate
from strategies.records import Case, Scores

Hospital = Callable[..., Any]


@pytest.fixture
def hospital(tiny_config: Callable[..., Path], tmp_path: Path) -> Hospital:
    """The prepared site "north", images taken in, and the plan of its run."""

    @contextmanager
    def at(*overrides: str) -> Iterator[tuple[Site, Plan]]:
        folder = simulate(tiny_config(), overrides, out=tmp_path / "run", prepare_only=True)
        plan = Plan.read(settings_for_sites(load(tiny_config(), overrides)))
        with Site(folder / "sites" / "north") as site:
            site.take_in(plan.preprocess)
            yield site, plan

    return at


def asked_for(site: Site) -> list[Request]:
    return list(site.store.open_requests())


def features_of(cases: Sequence[Case], kinds: Sequence[int]) -> Scores:
    """Each case of one of so many kinds, in the pool's order, as SAM's embeddings would tell."""
    features = np.eye(max(kinds) + 1, dtype=np.float32)[list(kinds)] + 0.01 * np.arange(len(cases), dtype=np.float32)[:, None]
    return Scores([case.id for case in cases], [case.patient for case in cases], features=features)


def test_chance_in_the_place_of_a_strategy_keeps_its_cap(hospital: Hospital) -> None:
    with hospital("query.strategy=entropy+cap") as (site, plan):
        patients = {case.patient for case in site.store.cases("unlabelled")}
        for cycle in range(1, 5):
            carry_out(site, plan, run="r", cycle=cycle, cases=len(patients), tick=cycle)
            assert set(Counter(request.case.patient for request in asked_for(site)).values()) == {cycle}
        reasons = {request.reason for request in asked_for(site)}
        assert reasons == {"chosen at random: the pool was not scored here in this cycle"}


def test_a_strategy_that_needs_no_model_chooses_though_the_site_was_away(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest kind comes first; the largest of the pool has seven of ten cases."""

    def score(site: Site, *_: Any, **__: Any) -> Scores:
        cases = site.store.cases("unlabelled")
        return features_of(cases, [0] * 7 + [1] * (len(cases) - 7))

    monkeypatch.setattr(worklist, "score", score)
    with hospital("query.strategy=typiclust") as (site, plan):
        large = {case.id for case in site.store.cases("unlabelled")[:7]}
        carry_out(site, plan, run="r", cycle=1, cases=1, tick=1)
        (asked,) = asked_for(site)
        assert asked.reason.startswith("typical of a kind")
        assert asked.case.id in large


def test_a_pool_that_was_empty_when_it_was_scored_waits_a_cycle(hospital: Hospital) -> None:
    """Images came between its scoring and the grant: they are in no score, and no site stops for that."""
    with hospital("query.strategy=entropy") as (site, plan):
        save_scores(site.workspace / "scores", Scores([], []), run="r", cycle=1)
        assert carry_out(site, plan, run="r", cycle=1, cases=2, tick=1) == 0


def test_what_is_chosen_beside_shared_out_kinds_is_of_others(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kinds give one case of three, of the largest of the strategy's own kinds; it goes on with the others."""
    with hospital("query.strategy=typiclust", "budget.rule=coordinated") as (site, plan):
        cases = site.store.cases("unlabelled")
        kinds = [0] * 5 + [1] * 3 + [2] * (len(cases) - 8)
        monkeypatch.setattr(worklist, "score", lambda *_, **__: features_of(cases, kinds))
        monkeypatch.setattr(worklist, "most_typical", lambda *_, **__: [cases[0]])
        carry_out(site, plan, run="r", cycle=1, cases=3, tick=1, kinds=(0, 0, 0), centroids=np.eye(2, 64))
        assert sorted(kinds[cases.index(request.case)] for request in asked_for(site)) == [0, 1, 2]


def test_a_case_twice_among_shared_out_kinds_stops_the_site(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    with hospital("query.strategy=typiclust", "budget.rule=coordinated") as (site, plan):
        first = site.store.cases("unlabelled")[0]
        monkeypatch.setattr(worklist, "most_typical", lambda *_, **__: [first, replace(first)])
        with pytest.raises(SiteFault, match=f"case {re.escape(first.id)} was chosen twice") as caught:
            carry_out(site, plan, run="r", cycle=1, cases=2, tick=1, kinds=(0, 0), centroids=np.eye(2, 64))
        assert caught.value.code == "invariant-broken"
