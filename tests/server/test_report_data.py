"""Reading a history: what is torn, damaged, withheld, absent or recorded twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_history import events, write_run

from server import report_sums as sums
from server.report import render
from server.report_data import (
    NotARun,
    assessments,
    curve,
    history_lines,
    learning_curve,
    natural,
    number,
    plain,
    read_record,
)
from strategies.wire import CODES


def assess(cycle: int, sites: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"event": "assess", "cycle": cycle, "round": 0, "sites": sites, **more}


def test_a_torn_last_line_is_left_out_with_a_note(tmp_path: Path) -> None:
    lines = events(cycles=1)
    whole = write_run(tmp_path / "whole", lines)
    torn = write_run(tmp_path / "torn", lines, torn=json.dumps(lines[-1])[:-1])
    assert history_lines(whole / "history.jsonl") == (lines, [])
    found, notes = history_lines(torn / "history.jsonl")
    assert found == lines
    assert len(notes) == 1
    assert "torn" in notes[0]


def test_a_last_line_that_lost_its_newline_only_is_whole(tmp_path: Path) -> None:
    lines = events(cycles=1)
    run = write_run(tmp_path, lines[:-1], torn=json.dumps(lines[-1]))
    assert history_lines(run / "history.jsonl") == (lines, [])


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"event": "start"}\n\n{"event": \xff\xfe\n[1, 2]\n{"event": "end"}\n')
    found, notes = history_lines(path)
    assert [line["event"] for line in found] == ["start", "end"]
    assert ["Line 3" in notes[0], "Line 4" in notes[1], len(notes)] == [True, True, 2]


def test_no_history_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(NotARun, match=r"history\.jsonl can't be read .*wardround simulate"):
        learning_curve(tmp_path)


def test_the_curve_is_the_assessments_in_order(tmp_path: Path) -> None:
    run = write_run(
        tmp_path,
        [
            assess(
                1,
                {"B": {"dice_test": 0.5}, "A": {"dice_test": 0.7}},
                dice_mean=0.65,
                dice_mean_test=0.6,
                labels_total=8,
            ),
            assess(
                2,
                {"B": {"dice_test": 0.8}, "A": {"dice_test": 0.7}},
                dice_mean=0.7,
                dice_mean_test=0.75,
                labels_total=12,
            ),
        ],
    )
    first, second = learning_curve(run)
    assert (first.cycle, first.labels, first.dice, first.dice_test, first.gain) == (1, 8, 0.65, 0.6, None)
    assert (first.worst_site, first.dice_worst_test) == ("B", 0.5)
    assert (second.worst_site, second.dice_worst_test) == ("A", 0.7)
    assert second.gain == pytest.approx(0.15)


def test_minutes_are_those_that_sites_told_before_the_assessment(tmp_path: Path) -> None:
    """A site that is away in a cycle has spent what it told before; where one withholds, the sum is unknown."""

    def annotate(cycle: int, **minutes: float | None) -> dict[str, Any]:
        return {"event": "annotate", "cycle": cycle, "sites": {site: {"minutes": spent} for site, spent in minutes.items()}}

    history = [annotate(0, a=3, b=4), assess(1, {}), annotate(1, a=5), assess(2, {}), annotate(2, a=9, b=None), assess(3, {})]
    write_run(tmp_path, history)
    assert [point.minutes for point in learning_curve(tmp_path)] == [7, 9, None]
    write_run(tmp_path, [assess(1, {})])
    assert [point.minutes for point in learning_curve(tmp_path)] == [None], "nobody has told anything"


def test_minutes_of_labels_that_come_while_a_round_is_trained_count_with_them(tmp_path: Path) -> None:
    """Rounds of older runs say nothing of minutes, and take nothing back."""

    def told(event: str, **sites: dict[str, Any]) -> dict[str, Any]:
        return {"event": event, "cycle": 1, "round": 1, "sites": sites}

    asked = told("annotate", a={"minutes": 3, "labelled": 2}, b={"minutes": 4, "labelled": 2})
    round_ = told("train", a={"minutes": 8, "labelled": 5}, b={"labelled": 2})
    write_run(tmp_path, [asked, round_, assess(1, {}), told("train", a={"minutes": None, "labelled": 6}), assess(2, {})])
    assert [point.minutes for point in learning_curve(tmp_path)] == [12, None], "the last round's are withheld"


@pytest.mark.parametrize(("at_first", "labelled", "minutes"), [(0, 0, 3), (7, 7, 3), (0, 1, None), (7, 0, None), (0, None, None)])
def test_a_site_without_a_label_of_this_run_has_spent_nothing_and_one_that_withholds_an_unknown_time(
    tmp_path: Path, at_first: int, labelled: int | None, minutes: int | None
) -> None:
    join = {"event": "join", "sites": {"a": {"labelled": 0}, "b": {"labelled": at_first}}}
    sites = {"a": {"minutes": 3, "labelled": 2}, "b": {"minutes": None, "labelled": labelled}}
    write_run(tmp_path, [join, {"event": "annotate", "cycle": 0, "sites": sites}, assess(1, {})])
    assert [point.minutes for point in learning_curve(tmp_path)] == [minutes]


def test_withheld_is_none_never_zero(tmp_path: Path) -> None:
    for point in learning_curve(write_run(tmp_path, events(withheld=True))):
        numbers = (point.labels, point.dice, point.dice_test, point.worst_site, point.dice_worst_test, point.gain)
        assert numbers == (None,) * 6


def test_one_site_that_withholds_is_not_the_worst(tmp_path: Path) -> None:
    run = write_run(tmp_path, [assess(1, {"A": {"dice_test": None}, "B": {"dice_test": 0.4}}, dice_mean_test=0.4)])
    (point,) = learning_curve(run)
    assert (point.worst_site, point.dice_worst_test) == ("B", 0.4)


def test_a_gain_across_a_withheld_cycle_is_unknown(tmp_path: Path) -> None:
    values = [0.5, None, 0.6]
    run = write_run(tmp_path, [assess(i + 1, {}, dice_mean_test=value) for i, value in enumerate(values)])
    assert [point.gain for point in learning_curve(run)] == [None, None, None]


def test_a_cycle_assessed_twice_counts_once_and_the_later_wins(tmp_path: Path) -> None:
    lines = [assess(2, {}, dice_mean_test=0.5), assess(1, {}, dice_mean_test=0.4), assess(2, {}, dice_mean_test=0.6)]
    points = curve(read_record(write_run(tmp_path, lines)))
    assert [(point.cycle, point.dice_test) for point in points] == [(1, 0.4), (2, 0.6)]


def test_a_site_that_gave_no_answer_is_absent_not_none(tmp_path: Path) -> None:
    third = assessments(read_record(write_run(tmp_path, events(troubles=True))))[2]
    assert sorted(third.sites) == ["A", "B", "D"]


def test_equal_sites_name_the_first_in_natural_order(tmp_path: Path) -> None:
    run = write_run(tmp_path, [assess(1, {"s10": {"dice_test": 0.5}, "s2": {"dice_test": 0.5}})])
    assert learning_curve(run)[0].worst_site == "s2"
    assert sorted(["s10", "s2", "10", "a"], key=natural) == ["10", "a", "s2", "s10"]


def test_a_run_that_was_resumed_after_its_end_has_not_ended(tmp_path: Path) -> None:
    lines = events(cycles=1)
    assert read_record(write_run(tmp_path / "a", lines)).end is not None
    resumed = read_record(write_run(tmp_path / "b", [*lines, {"event": "resume", "cycle": 1, "round": 0}]))
    assert resumed.end is None
    assert (sums.status(resumed).ended, sums.status(resumed).resumed) == (False, 1)


@pytest.mark.parametrize("value", [True, "0.5", None, float("nan"), float("inf"), [1]])
def test_what_is_no_finite_number_is_none(value: object) -> None:
    assert number(value) is None


def test_names_lose_control_characters() -> None:
    assert plain("a\x00b\nc\u202e") == "a b c "


def test_labels_by_site_and_cycle(tmp_path: Path) -> None:
    lines = [
        {"event": "grant", "cycle": 0, "sites": {"A": {"granted": 4}, "B": {"granted": 4}}},
        {"event": "annotate", "cycle": 0, "sites": {"A": {"granted": 4, "received": 1}}},
        {"event": "annotate", "cycle": 0, "sites": {"A": {"granted": 3, "received": 3}, "B": {"received": None}}},
    ]
    record = read_record(write_run(tmp_path, lines))
    assert sums.labels(record) == {("A", 0): sums.Cell(4, 3), ("B", 0): sums.Cell(4, None)}
    assert sums.granted_total(record) == 8


def test_grants_of_volumes_are_told_as_such_and_labels_beside_the_slices_asked_for(tmp_path: Path) -> None:
    lines = [
        {"event": "grant", "cycle": 0, "unit": "volume", "sites": {"A": {"granted": 2}, "B": {"granted": 2}}},
        {"event": "annotate", "cycle": 0, "sites": {"A": {"granted": 40, "received": 31}}},
        {"event": "grant", "cycle": 1, "unit": "volume", "sites": {"A": {"granted": 1}}},
    ]
    record = read_record(write_run(tmp_path, lines))
    nothing = sums.Cell(None, None)
    assert sums.labels(record) == {("A", 0): sums.Cell(40, 31), ("A", 1): nothing, ("B", 0): nothing}
    assert (sums.granted_total(record), sums.unit_of_grants(record)) == (5, "volume")
    assert "5 volumes granted" in render(record)


def test_bytes_add_up_over_every_event(tmp_path: Path) -> None:
    lines = events(troubles=True)
    record = read_record(write_run(tmp_path, lines))
    by_hand = {"up": 0, "down": 0}
    for line in lines:
        for site in line.get("sites", {}).values():
            by_hand["up"] += site.get("bytes_up", 0)
            by_hand["down"] += site.get("bytes_down", 0)
    for moved in (sums.traffic(record), sums.traffic_by_step(record)):
        assert sum(m.up for m in moved.values()) == by_hand["up"]
        assert sum(m.down for m in moved.values()) == by_hand["down"]


def test_time_leaves_out_the_pause_before_a_resume(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"event": "start", "time": "2026-01-01T10:00:00+00:00"},
        {"event": "train", "time": "2026-01-01T10:00:30+00:00"},
        {"event": "resume", "time": "2026-01-02T10:00:00+00:00"},
        {"event": "train", "time": "2026-01-02T10:00:12+00:00"},
    ]
    assert sums.seconds(read_record(write_run(tmp_path / "a", lines))) == 42
    ended = [*lines, {"event": "end", "seconds": 9.0, "time": "2026-01-02T10:00:13+00:00"}]
    assert sums.seconds(read_record(write_run(tmp_path / "b", ended))) == 43  # `end` knows the last process only
    unbroken = [lines[0], ended[-1]]
    assert sums.seconds(read_record(write_run(tmp_path / "c", unbroken))) == 9
    assert sums.seconds(read_record(write_run(tmp_path / "d", [{"event": "start", "time": "soon"}]))) is None


def test_losses_keep_rounds_apart_and_withheld_ones_none(tmp_path: Path) -> None:
    lines = [
        {"event": "train", "cycle": 1, "round": 1, "sites": {"A": {"losses": {"total": 2.0, "sam": None}}}},
        {"event": "train", "cycle": 1, "round": 2, "sites": {"A": {"losses": None}}},
    ]
    first, second = sums.losses(read_record(write_run(tmp_path, lines)))
    assert first.terms == {"total": {"A": 2.0}, "sam": {"A": None}}
    assert second.terms == {"total": {"A": None}}


def test_trust_in_sam_is_kept_by_class_and_empty_where_none_was_told(tmp_path: Path) -> None:
    lines = [
        {"event": "train", "cycle": 1, "round": 1, "sites": {"A": {"sam_trust": {"liver": 0.5}}, "B": {"sam_trust": None}}},
        {"event": "train", "cycle": 1, "round": 2, "sites": {"A": {"losses": None}}},
    ]
    first, second = sums.trusts(read_record(write_run(tmp_path, lines)))
    assert first.terms == {"liver": {"A": 0.5}}
    assert second.terms == {}


def test_every_code_on_the_wire_has_a_meaning() -> None:
    assert set(sums.MEANINGS) == set(CODES)


def test_a_total_with_a_withheld_part_is_unknown() -> None:
    assert sums.total({"A": 1, "B": 2}) == 3
    assert sums.total({"A": 1, "B": None}) is None
    assert sums.total({}) is None
