"""Requests are made once, labels only come for what was asked, and what they cost is told in sums."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text
from store_support import choices, filled

from client.database import open_engine
from client.faults import SiteFault
from client.store import Store
from strategies.records import Case, Choice


def test_the_database_survives_a_kill_and_readers_do_not_wait(tmp_path: Path) -> None:
    with open_engine(f"sqlite:///{tmp_path / 'site.db'}").connect() as connection:
        told = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert told == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_a_grant_is_carried_out_once(tmp_path: Path) -> None:
    store = filled(tmp_path / "site.db")
    ids = [case.id for case in store.cases("unlabelled")]
    assert store.granted("run", 1) is None
    assert store.request("run", 1, cases=2, choices=choices(*ids[:2]), tick=1) == 2
    assert store.request("run", 1, cases=2, choices=choices(*ids[2:4]), tick=9) == 2, "a repeat answers from the first time"
    assert [request.case.id for request in store.open_requests()] == ids[:2]
    assert [request.tick for request in store.open_requests()] == [1, 1]
    assert store.counts() == {"unlabelled": 4, "requested": 2, "test": 1}


def test_labels_come_in_the_order_asked_for_however_many_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "site.db")
    ids = [case.id for case in store.cases("unlabelled")][:5]
    store.request("run", 0, cases=5, choices=choices(*ids), tick=1)
    for number, case_id in enumerate(ids):
        store.add_label(case_id, np.full((2, 3), number, np.uint8), run="run", cycle=0, tick=2, annotator="oracle")
    asked = [3, 0, 4, 1, 3]
    for at_once in (1, 2, 64):
        monkeypatch.setattr("client.store.LABELS_AT_ONCE", at_once)
        assert [int(mask[0, 0]) for mask in store.labels([ids[n] for n in asked])] == asked
    with pytest.raises(KeyError):
        list(store.labels([ids[0], "nobody's"]))


def test_a_label_and_its_state_change_together_and_survive_reopening(tmp_path: Path) -> None:
    store = filled(tmp_path / "site.db")
    first = store.cases("unlabelled")[0].id
    store.request("run", 0, cases=1, choices=choices(first), tick=1)
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    store.add_label(first, mask, run="run", cycle=2, tick=5, annotator="oracle")
    store.close()
    again = Store.at(tmp_path / "site.db")
    np.testing.assert_array_equal(again.label(first), mask)
    assert again.counts()["labelled"] == 1
    assert [again.received(run, cycle, tick=5) for run, cycle in (("run", 2), ("run", 1), ("other", 2))] == [1, 0, 0]
    assert again.received("run", 2, tick=4) == 0, "an answer given again knows no more than at first"
    assert (again.received_after("run", tick=4), again.received_after("run", tick=5)) == (1, 0)
    again.check_conserved()


@pytest.mark.parametrize("state", ["unlabelled", "labelled", "test", "unknown"])
def test_a_label_nobody_asked_for_is_refused(tmp_path: Path, state: str) -> None:
    store = filled(tmp_path / "site.db")
    case = {"unlabelled": store.cases("unlabelled")[0].id, "test": "q.h.0000", "unknown": "nowhere", "labelled": ""}[state]
    mask = np.zeros((2, 2), dtype=np.uint8)
    if state == "labelled":
        case = store.cases("unlabelled")[1].id
        store.request("run", 0, cases=1, choices=choices(case), tick=1)
        store.add_label(case, mask, run="run", cycle=0, tick=1, annotator="oracle")
    before = store.counts()
    with pytest.raises(SiteFault, match=state) as caught:
        store.add_label(case, mask, run="run", cycle=0, tick=1, annotator="oracle")
    assert caught.value.code == "invariant-broken"
    assert store.counts() == before


def test_a_case_cannot_be_requested_twice_and_nothing_of_the_grant_stays(tmp_path: Path) -> None:
    store = filled(tmp_path / "site.db")
    ids = [case.id for case in store.cases("unlabelled")]
    store.request("run", 0, cases=1, choices=choices(ids[0]), tick=1)
    with pytest.raises(SiteFault, match=ids[0]):
        store.request("run", 1, cases=2, choices=choices(ids[1], ids[0]), tick=2)
    assert store.granted("run", 1) is None
    assert store.counts()["requested"] == 1, "the first choice of the refused grant went back too"


def test_skipped_cases_keep_their_reason_and_are_not_offered(tmp_path: Path) -> None:
    store = filled(tmp_path / "site.db")
    first = store.cases("unlabelled")[0].id
    store.skip([first], reason="motion artefact")
    assert first not in {case.id for case in store.cases("unlabelled")}
    assert [case.id for case in store.cases("skipped")] == [first]
    store.check_conserved()


def test_an_image_is_taken_in_once(tmp_path: Path) -> None:
    store = filled(tmp_path / "site.db")
    before = store.counts()
    filled(tmp_path / "site.db")
    assert store.counts() == before


def test_a_database_of_another_schema_is_not_touched(tmp_path: Path) -> None:
    store = filled(tmp_path / "site.db")
    with store._engine.begin() as connection:
        connection.execute(text("UPDATE meta SET value = '99'"))
    with pytest.raises(SiteFault, match="schema 99"):
        Store.at(tmp_path / "site.db")


def as_of_schema_1(path: Path) -> None:
    """A database as the first version of the schema had it, with a label in it."""
    store = filled(path)
    with store._engine.begin() as connection:
        for change in (
            "ALTER TABLE labels DROP COLUMN minutes",
            "ALTER TABLE requests DROP COLUMN proposal",
            "DROP TABLE dice",
            "UPDATE meta SET value = '1'",
        ):
            connection.execute(text(change))
    store.close()


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_an_older_database_is_brought_up_though_it_is_killed_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    path = tmp_path / "site.db"
    as_of_schema_1(path)
    done: list[Any] = []
    execute = Connection.execute

    def killed(self: Connection, statement: Any, *given: Any, **how: Any) -> Any:
        if "ALTER TABLE" in str(statement):
            if len(done) == stop:
                raise KeyboardInterrupt
            done.append(statement)
        return execute(self, statement, *given, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "execute", killed)
        if stop < 2:
            with pytest.raises(KeyboardInterrupt):
                Store.at(path)
    store = Store.at(path)
    store.check_conserved()
    (case,) = store.cases("unlabelled")[:1]
    store.request("run 2", 0, cases=1, choices=[Choice(case.id, 1.0, "why")], tick=1)
    store.add_label(case.id, np.ones((2, 3), np.uint8), run="run 2", cycle=0, tick=1, annotator="oracle", minutes=2.5)
    assert minutes(store, "run 2") == 2.5
    assert minutes(Store.at(path), "run 2") == 2.5, "once is enough"


def minutes(store: Store, run: str) -> float | None:
    told = store.tell(run, tick=1, min_patients=1)
    return None if told is None else told.minutes


def label(store: Store, case: Case, *, tick: int, minutes: float) -> None:
    mask = np.ones((1, 1), np.uint8)
    store.add_label(case.id, mask, run="run", cycle=0, tick=tick, annotator="o", minutes=minutes)


@settings(max_examples=10, deadline=None)
@given(
    min_patients=st.integers(1, 3),
    came=st.lists(st.lists(st.integers(0, 11), max_size=3), min_size=1, max_size=5),
    asked=st.lists(st.integers(0, 5), max_size=3),
)
def test_no_two_sums_of_what_labels_cost_differ_by_few_patients(
    tmp_path_factory: pytest.TempPathFactory, min_patients: int, came: list[list[int]], asked: list[int]
) -> None:
    """Whatever tick is asked for, also after a restart, and while labels come late under a tick that was answered.

    Label n costs 2ⁿ minutes, so that a sum says of which labels it is.
    """
    path = tmp_path_factory.mktemp("told") / "site.db"
    store = filled(path, images=4, slices=3)
    pool = store.cases("unlabelled")
    store.request("run", 0, cases=len(pool), choices=choices(*(case.id for case in pool)), tick=0)
    answers: dict[int, list[int]] = {}
    for now, numbers in enumerate(came):
        for number in {*numbers} - {pool.index(case) for case in store.cases("labelled")}:
            label(store, pool[number], tick=now, minutes=2.0**number)
            for tick in (now, *asked):
                told = store.tell("run", tick=tick, min_patients=min_patients)
                answers.setdefault(tick, []).append(0 if told is None else int(told.minutes))
                if told is not None:
                    assert sum(2 ** pool.index(case) for case in told.cases) == told.minutes
                    assert told.patients >= min_patients
        store.close()
        store = Store.at(path)
    sums = sorted({0, *(said for each in answers.values() for said in each)})
    for less, more in itertools.combinations(sums, 2):
        assert less & more == less, "what was told stays told"
        patients = {pool[number].patient for number in range(len(pool)) if (more - less) >> number & 1}
        assert len(patients) >= min_patients


def test_an_answer_that_is_given_again_tells_the_same_costs(tmp_path: Path) -> None:
    store = filled(tmp_path / "site.db", images=3, slices=4)
    pool = store.cases("unlabelled")
    store.request("run", 0, cases=len(pool), choices=choices(*(case.id for case in pool)), tick=0)
    for tick, number in enumerate((0, 4, 8, 1)):  # the first slice of each patient, then the second of the first
        label(store, pool[number], tick=tick, minutes=1.0)
    at_first = [store.tell("run", tick=tick, min_patients=2) for tick in range(4)]
    assert [None if told is None else (told.minutes, told.patients) for told in at_first] == [None, (2, 2), (2, 2), (4, 2)]
    for number in (5, 9):  # late, under a tick that was answered
        label(store, pool[number], tick=1, minutes=1.0)
    again = Store.at(tmp_path / "site.db")
    assert [again.tell("run", tick=tick, min_patients=2) for tick in (3, 1, 0, 2)] == [at_first[tick] for tick in (3, 1, 0, 2)]
    later = again.tell("run", tick=4, min_patients=2)
    assert later is not None
    assert later.minutes == 6
    assert again.tell("run", tick=4, min_patients=3) is None, "a site that raises the bar takes back what is below it"
    assert again.tell("another run", tick=3, min_patients=1) is None


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_labels_grow_by_exactly_what_was_received(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    store = filled(tmp_path_factory.mktemp("pool") / "site.db", images=3, slices=4)
    for number, size in enumerate(sizes):
        wanted = [case.id for case in store.cases("unlabelled")][:size]
        store.request("run", number, cases=size, choices=choices(*wanted), tick=number)
        before = store.counts().get("labelled", 0)
        came = store.open_requests()
        for request in came:
            store.add_label(request.case.id, np.ones((1, 1), np.uint8), run="run", cycle=number, tick=number, annotator="o")
        assert store.counts().get("labelled", 0) == before + len(came)
        assert sum(store.counts().values()) == 13
        store.check_conserved()
