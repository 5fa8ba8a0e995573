"""An invariant that breaks at one site stops that site, by its code; the others go on."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy import text
from tests_support import events

import client.app as client_app
from client.annotate.oracle import Oracle
from client.faults import SiteFault
from client.look import Looked, looks
from client.plan import Plan
from client.site import Site
from client.store import Store
from simulation.run import simulate
from strategies.query.parse import parse_query
from strategies.query.strategy import Strategy
from strategies.records import Choice, Scores, Selection

Config = Callable[..., Path]
ENTROPY = parse_query("entropy")
REQUEST, ADD_LABEL = Store.request, Store.add_label


def predictions_that_are_not_finite(*args: Any, **kwargs: Any) -> Iterator[Looked]:
    for cases, seen in looks(*args, **kwargs):
        yield cases, replace(seen, logits={model: torch.full_like(logits, torch.nan) for model, logits in seen.logits.items()})


def a_strategy_that_chooses_too_few(plan: Plan, *, progress: float) -> Strategy:
    return replace(ENTROPY, choose=lambda scores, cases, rng: Selection(()))


def a_strategy_that_chooses_twice(plan: Plan, *, progress: float) -> Strategy:
    return replace(ENTROPY, choose=lambda scores, cases, rng: Selection((Choice(scores.case_ids[0], 0.0, "again"),) * 2))


def a_strategy_that_chooses_elsewhere(plan: Plan, *, progress: float) -> Strategy:
    return replace(ENTROPY, choose=lambda scores, cases, rng: Selection((Choice("a held-out case", 0.0, "it is easy"),)))


def a_strategy_that_chooses_by_no_number(plan: Plan, *, progress: float) -> Strategy:
    return replace(ENTROPY, choose=lambda scores, cases, rng: Selection((Choice(scores.case_ids[0], np.nan, "who knows"),)))


def a_strategy_that_fails(plan: Plan, *, progress: float) -> Strategy:
    def choose(scores: Scores, cases: int, rng: np.random.Generator) -> Selection:
        raise IndexError(f"index {cases} is out of bounds")

    return replace(ENTROPY, choose=choose)


def a_strategy_that_loses_a_row(plan: Plan, *, progress: float) -> Strategy:
    return replace(ENTROPY, finish=lambda columns: {name: column[1:] for name, column in columns.items()})


def a_strategy_that_sees_too_little(plan: Plan, *, progress: float) -> Strategy:
    assert ENTROPY.look is not None
    see = ENTROPY.look
    return replace(ENTROPY, look=lambda seen: {name: column[1:] for name, column in see(seen).items()})


def a_strategy_that_fails_to_look(plan: Plan, *, progress: float) -> Strategy:
    def look(seen: Any) -> Any:
        raise KeyError("features")

    return replace(ENTROPY, look=look)


def an_expert_who_looks_at_all_that_waits(self: Oracle, requests: Any, **_: Any) -> Any:
    """Reads every label, and gives the first alone."""
    return [(request, self.read(request.case)) for request in requests][:1]


def a_store_that_loses_an_image(self: Store, *args: Any, **kwargs: Any) -> int:
    """In place of `Store.request`: what is left adds up."""
    with self._engine.begin() as connection:
        for table, key in (("cases", "image"), ("images", "id")):
            connection.execute(text(f"DELETE FROM {table} WHERE {key} = (SELECT min(id) FROM images WHERE role = 'test')"))
    return REQUEST(self, *args, **kwargs)


def a_store_that_drops_labels(*_: Any, **__: Any) -> None:
    """In place of `Store.add_label`."""


def a_store_that_labels_another_case_too(self: Store, case_id: str, mask: Any, **kwargs: Any) -> None:
    """In place of `Store.add_label`."""
    ADD_LABEL(self, case_id, mask, **kwargs)
    with self._engine.begin() as connection:
        other = "SELECT min(id) FROM cases WHERE state = 'unlabelled'"
        connection.execute(text(f"UPDATE cases SET state = 'labelled' WHERE id = ({other})"))


@pytest.mark.parametrize(
    ("part", "target", "broken", "code", "step", "cycles", "said"),
    [
        (
            "score",
            "client.score.looks",
            predictions_that_are_not_finite,
            "invariant-broken",
            "assess",
            2,  # and no case is chosen without a score in the cycle that follows
            "strategy entropy: values of case",
        ),
        (
            "carry_out",
            "client.annotate.worklist.strategy_of",
            a_strategy_that_chooses_too_few,
            "invariant-broken",
            "annotate",
            2,  # the first choice by score follows the first cycle
            "strategy entropy: 0 cases were chosen of the 1 asked for",
        ),
        (
            "carry_out",
            "client.annotate.worklist.strategy_of",
            a_strategy_that_chooses_twice,
            "invariant-broken",
            "annotate",
            2,
            "was chosen twice",
        ),
        (
            "carry_out",
            "client.annotate.worklist.strategy_of",
            a_strategy_that_chooses_elsewhere,
            "invariant-broken",
            "annotate",
            2,
            "strategy entropy: case a held-out case was chosen, which is not in the pool",
        ),
        (
            "carry_out",
            "client.annotate.worklist.strategy_of",
            a_strategy_that_chooses_by_no_number,
            "invariant-broken",
            "annotate",
            2,
            "was chosen by the score nan: not finite",
        ),
        (
            "carry_out",
            "client.annotate.worklist.strategy_of",
            a_strategy_that_fails,
            "invariant-broken",
            "annotate",
            2,
            "strategy entropy: choosing 1 cases failed: IndexError: index 1 is out of bounds",
        ),
        (
            "assess",
            "client.app.strategy_of",
            a_strategy_that_loses_a_row,
            "invariant-broken",
            "assess",
            2,
            "strategy entropy: values has 9 rows for 10 cases",
        ),
        (
            "assess",
            "client.app.strategy_of",
            a_strategy_that_sees_too_little,
            "invariant-broken",
            "assess",
            2,
            "strategy entropy: values has 9 rows for 10 cases",
        ),
        (
            "assess",
            "client.app.strategy_of",
            a_strategy_that_fails_to_look,
            "invariant-broken",
            "assess",
            2,
            "strategy entropy: scoring failed: KeyError: 'features'",
        ),
        (
            "collect",
            "client.annotate.oracle.Oracle.answers",
            an_expert_who_looks_at_all_that_waits,
            "invariant-broken",
            "annotate",
            1,
            "strategy random (of the first request): 2 hidden labels were read, and 1 labels came; case ",
        ),
        (
            "collect",
            "client.store.Store.add_label",
            a_store_that_drops_labels,
            "invariant-broken",
            "annotate",
            1,
            "strategy random (of the first request): 2 labels came, but the labelled set grew from 0 to 0; case ",
        ),
        (
            "collect",
            "client.store.Store.add_label",
            a_store_that_labels_another_case_too,
            "invariant-broken",
            "annotate",
            1,
            "strategy random (of the first request): 2 labels came, but the labelled set grew from 0 to 4; case ",
        ),
        (
            "carry_out",
            "client.store.Store.request",
            a_store_that_loses_an_image,
            "invariant-broken",
            "annotate",
            1,
            "strategy random (of the first request): the pool has lost what it held: 5 images were stored, and 4 are left",
        ),
    ],
    ids=[
        "scores that are not finite",
        "too few choices",
        "a case twice",
        "a case of no pool",
        "a choice by no number",
        "a choice that fails",
        "a score that is missing",
        "a score that was never made",
        "a look that fails",
        "hidden labels read in vain",
        "labels that get lost",
        "labels that nobody gave",
        "an image that gets lost",
    ],
)
def test_a_broken_invariant_stops_its_site_and_the_others_go_on(
    tiny_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    target: str,
    broken: Callable[..., Any],
    code: str,
    step: str,
    cycles: int,
    said: str,
) -> None:
    honest: Callable[..., Any] = vars(client_app)[part]

    def broken_in_south(site: Site, *args: Any, **kwargs: Any) -> Any:
        with monkeypatch.context() as patch:
            if site.name == "south":
                patch.setattr(target, broken)
            return honest(site, *args, **kwargs)

    monkeypatch.setattr(client_app, part, broken_in_south)
    folder = simulate(tiny_config(cycles=cycles, rounds_per_cycle=1, local_steps=1), out=tmp_path / "run")
    record = events(folder)
    refused = [event for event in record if event["event"] == "refused"]
    assert refused
    assert refused[0]["step"] == step
    assert all({site: why["code"] for site, why in event["sites"].items()} == {"south": code} for event in refused)
    log = (folder / "sites" / "south" / "site.log").read_text()
    assert said in log.partition(refused[0]["sites"]["south"]["reference"])[2]
    done = [event for event in record if event["event"] in ("train", "assess", "annotate")]
    assert len(done) == 3 * cycles
    assert all({"north", "west"} <= set(event["sites"]) for event in done)
    after = record[record.index(refused[0]) :]
    assert not any("south" in event["sites"] for event in after if event in done), (
        "it stays stopped: it chooses and labels nothing"
    )
    assert record[-1]["event"] == "end"


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("delete from labels", r"are 0 and \d+; case [\w.]+ is labelled, has no label, and was requested"),
        ("update cases set state = 'unlabelled'", r"case [\w.]+ is unlabelled, has a label, and was requested"),
        ("delete from cases where state = 'unlabelled'", "slices of all images and cases are"),
    ],
)
def test_a_pool_that_does_not_add_up_names_a_case(tiny_config: Config, tmp_path: Path, sql: str, said: str) -> None:
    folder = simulate(tiny_config(cycles=1, rounds_per_cycle=1, local_steps=1), out=tmp_path / "run")
    path = folder / "sites" / "south" / "site.db"
    with sqlite3.connect(path) as database:
        database.execute(sql)
    with pytest.raises(SiteFault, match=said):
        Store.at(path).check_conserved()
