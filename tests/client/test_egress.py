"""The egress log shows every edit, survives a kill in the middle of a line, and takes several writers at a time."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

import client.egress as egress
from client.egress import GENESIS, EgressLog, Withheld, head, read, render, verify
from configs.files import StorageFault


def append(path: Path, content: bytes = b"content", *, sent: bool = True, round: int = 1) -> None:
    if sent:
        records = {"site": {"name": "text"}, "update": {"w": "float32[2,3] 24 B", "b": "float32[2] 8 B"}}
        EgressLog(path).append(message="train", cycle=1, round=round, sent=True, content=content, records=records)
    else:
        EgressLog(path).append(
            message="query.assess",
            cycle=1,
            round=round,
            sent=False,
            content=content,
            records={"refused": {"name": "text", "code": "text", "reference": "text"}},
            code="reply-not-allowed",
            reference="1a2b3c4d",
            withheld=Withheld(records=3, bytes=4096),
        )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of five lines, the third a refusal."""
    path = tmp_path / "egress.jsonl"
    for number in range(5):
        append(path, bytes([number]), sent=number != 2, round=number)
    return path


def rewrite(path: Path, lines: list[bytes]) -> None:
    path.write_bytes(b"".join(lines))


# -------------------------------------------------------------------------------------------------------------- append


def test_lines_count_from_one_and_each_names_the_hash_before(log: Path) -> None:
    entries = read(log)
    assert [entry.n for entry in entries] == [1, 2, 3, 4, 5]
    assert entries[0].previous == GENESIS
    assert [entry.previous for entry in entries[1:]] == [entry.hash for entry in entries[:-1]]
    assert verify(log) == []


def test_a_line_says_what_left_by_kind_shape_size_and_hash(log: Path) -> None:
    sent, refused = read(log)[1], read(log)[2]
    assert (sent.message, sent.cycle, sent.round, sent.sent, sent.bytes) == ("train", 1, 1, True, 1)
    # sha256 of the single byte 01
    assert sent.sha256 == "4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a"
    assert sent.records["update"]["w"] == "float32[2,3] 24 B"
    assert (sent.code, sent.reference, sent.withheld) == (None, None, None)
    assert (refused.sent, refused.code, refused.reference) == (False, "reply-not-allowed", "1a2b3c4d")
    assert refused.withheld == Withheld(records=3, bytes=4096)
    assert sent.time.endswith("+00:00")


def test_an_append_is_on_the_disk_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    path = tmp_path / "egress.jsonl"
    monkeypatch.setattr(os, "fsync", lambda handle: sizes.append(path.stat().st_size))
    append(path)
    assert sizes  # the file itself, and then the folder that names it
    assert sizes[0] == path.stat().st_size > 0
    assert len(sizes) == 2


def test_an_empty_log_is_intact(tmp_path: Path) -> None:
    path = tmp_path / "egress.jsonl"
    assert (read(path), verify(path), head(path)) == ([], [], GENESIS)


def _append_many(path: Path, count: int) -> None:
    for number in range(count):
        append(path, bytes(number), round=number)


def test_several_processes_append_to_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "egress.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, 15)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(read(path)) == 45
    assert verify(path) == []


def test_a_lock_that_is_never_given_back_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "egress.jsonl"
    monkeypatch.setattr(egress, "LOCK_TIMEOUT_S", 0.0)
    with FileLock(tmp_path / "egress.jsonl.lock"), pytest.raises(StorageFault, match=r"egress\.jsonl.*locked.*end it"):
        append(path)


def test_a_log_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFault, match=r"file/egress\.jsonl.*Nothing leaves.*writable"):
        append(tmp_path / "file" / "egress.jsonl")


# ------------------------------------------------------------------------------------------------------------- tamper


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize(
    "change",
    [{"bytes": 7}, {"sent": None}, {"records": {}}, {"time": "2020-01-01T00:00:00.000+00:00"}, {"extra": 1}],
    ids=lambda change: next(iter(change)),
)
def test_an_edited_line_is_found(log: Path, number: int, change: dict[str, object]) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    entry = json.loads(lines[number])
    entry.update({key: not entry["sent"] if key == "sent" else value for key, value in change.items()})
    lines[number] = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    rewrite(log, lines)
    assert verify(log) == [f"line {number + 1} was edited: its content does not give its hash"]


def test_an_edit_with_a_hash_that_fits_breaks_the_chain_behind_it(log: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    entry = json.loads(lines[1])
    entry["bytes"] = 7
    del entry["hash"]
    entry["hash"] = egress._hash(entry)
    lines[1] = egress._line(entry)
    rewrite(log, lines)
    assert verify(log) == ["line 3 does not follow the one before: a line was edited, deleted, added or moved"]


@pytest.mark.parametrize("spelling", [b" \n", b'"n": 2', b'"n":9,"n":2'], ids=["space", "spaces", "twice"])
def test_another_spelling_of_the_same_entry_is_an_edit(log: Path, spelling: bytes) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    old = b"\n" if spelling.endswith(b"\n") else b'"n":2'
    assert old in lines[1]
    lines[1] = lines[1].replace(old, spelling)
    rewrite(log, lines)
    assert [problem for problem in verify(log) if "line 2 was edited" in problem]


@pytest.mark.parametrize("number", range(4))
def test_a_deleted_line_is_found(log: Path, number: int) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    del lines[number]
    rewrite(log, lines)
    problems = verify(log)
    assert any(f"line {number + 1} does not follow" in problem for problem in problems)
    assert any(f"says that it is line {number + 2}" in problem for problem in problems)


@pytest.mark.parametrize("number", range(4))
def test_two_lines_that_changed_places_are_found(log: Path, number: int) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    lines[number], lines[number + 1] = lines[number + 1], lines[number]
    rewrite(log, lines)
    assert any(f"line {number + 1} does not follow" in problem for problem in verify(log))


def test_a_number_alone_that_is_out_of_order_is_found(log: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    entry = json.loads(lines[4])
    entry["n"] = 6
    del entry["hash"]
    entry["hash"] = egress._hash(entry)
    lines[4] = egress._line(entry)
    rewrite(log, lines)
    assert verify(log) == ["line 5 says that it is line 6: lines were deleted, added or moved"]


def test_a_line_of_something_else_is_found(log: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    rewrite(log, [*lines[:2], b"nothing to see here\n", *lines[2:]])
    assert "line 3 is unreadable" in verify(log)
    assert len(read(log)) == 5


def test_a_cut_end_is_found_against_a_kept_head_only(log: Path) -> None:
    kept = head(log)
    append(log)
    assert verify(log, kept=kept) == []  # a log that has grown still holds the hash
    rewrite(log, log.read_bytes().splitlines(keepends=True)[:4])
    assert verify(log) == []
    assert verify(log, kept=kept) == [
        f"no line has the hash {kept} that was kept: lines were cut off, or the log was written anew"
    ]
    assert verify(log, kept=GENESIS) == []


# --------------------------------------------------------------------------------------------------------------- kill


@settings(max_examples=40, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True))
@example(place=0.0)
@example(place=0.99999)
def test_a_kill_at_any_byte_of_an_append_loses_no_line(place: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, aside = Path(folder) / "egress.jsonl", Path(folder) / "egress.jsonl.torn"
        append(path)
        append(path)
        whole = path.read_bytes()
        append(path)
        line = path.read_bytes()[len(whole) :]
        cut = int(place * len(line))  # 0: nothing was written; one less than all: only the end of the line is missing
        path.write_bytes(whole + line[:cut])
        torn = "line 3 is torn: an append was interrupted, that reply never left"
        assert verify(path) == ([torn] if cut else [])

        append(path)

        assert path.read_bytes().startswith(whole)
        assert [entry.n for entry in read(path)] == [1, 2, 3]
        set_aside = "1 torn line(s) lie in egress.jsonl.torn: appends were interrupted, those replies never left"
        assert verify(path) == ([set_aside] if cut else [])
        assert not cut or aside.read_bytes() == line[:cut] + b"\n"


def test_a_torn_line_is_on_the_disk_elsewhere_before_it_is_cut_off(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = log.read_bytes()
    log.write_bytes(whole + b"torn")
    aside = log.with_name("egress.jsonl.torn")
    seen: list[tuple[bytes, int]] = []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append((aside.read_bytes(), log.stat().st_size - len(whole))))
    append(log)
    assert seen[0] == (b"torn\n", 4)
    assert seen[1] == (b"torn\n", 0)
    assert len(seen) == 3  # and the new line


def test_a_first_line_that_was_torn_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "egress.jsonl"
    path.write_bytes(b'{"bytes":12,"cy')
    append(path)
    assert [entry.n for entry in read(path)] == [1]
    assert (tmp_path / "egress.jsonl.torn").read_bytes() == b'{"bytes":12,"cy\n'


def test_a_last_line_whose_middle_never_reached_the_disk_is_torn(log: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    hole = lines[-1][:20] + bytes(len(lines[-1]) - 40) + lines[-1][-20:]
    rewrite(log, [*lines[:-1], hole])
    append(log)
    assert [entry.n for entry in read(log)] == [1, 2, 3, 4, 5]
    assert (log.parent / "egress.jsonl.torn").read_bytes() == hole


def test_an_edited_last_line_stays_where_it_is_found(log: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b'"round":4', b'"round":5'))
    append(log)
    assert verify(log) == ["line 5 was edited: its content does not give its hash"]


def test_the_last_line_is_found_across_blocks(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    for text in (b"", b"a", b"a\n", b"a\nbb", b"aaaa\nbbbbbbb\n", b"\n\n", b"aaa\n" + b"b" * 9 + b"\n"):
        path.write_bytes(text)
        expected = text[:-1].rfind(b"\n") + 1
        for block in (1, 2, 3, 100):
            with open(path, "rb") as file:
                assert egress._start_of_last_line(file, block=block) == expected


# ------------------------------------------------------------------------------------------------------------- render


def printed(path: Path, width: int = 160) -> str:
    out = io.StringIO()
    render(path, Console(file=out, width=width))
    return out.getvalue()


def test_a_person_can_read_what_left(log: Path) -> None:
    text = printed(log)
    assert "update (2 arrays)" in text
    assert "reply-not-allowed, reference 1a2b3c4d; 3 records, 4,096 B stayed here" in text
    assert "4 sent, 1 refused, 5 bytes left this site." in text
    assert f"The chain is intact. Head: {head(log)}" in text


def test_a_broken_chain_is_said_below_the_table(log: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b'"round":3', b'"round":7'))
    text = printed(log)
    assert "line 4 was edited" in text
    assert "intact" not in text


def test_brackets_in_a_path_are_not_markup(tmp_path: Path) -> None:
    path = tmp_path / "[bold]site[" / "egress.jsonl"
    append(path)
    assert "[bold]site[" in printed(path, width=400)


def test_nothing_has_left_yet(tmp_path: Path) -> None:
    assert "0 sent, 0 refused, 0 bytes" in printed(tmp_path / "egress.jsonl")
