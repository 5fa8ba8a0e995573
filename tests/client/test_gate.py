"""The gate around a handler: honest replies leave as they are, of a failure a code leaves, and the egress log has both."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from gate_support import (
    CASE,
    MASK,
    MESSAGES,
    PATH,
    PATIENT,
    Bench,
    answer,
    ask,
    assert_addressed,
    assert_no_trace,
    assert_refused,
    everything,
    honest,
    serialised,
)

import client.gate as gate_module
from client import egress
from client.allowed import SLACK_BYTES
from client.egress import Withheld
from client.faults import SiteFault
from client.formats.image import FormatError
from client.gate import Policy, make_gate
from configs.files import StorageFault
from strategies.wire import (
    ANNOTATE,
    ASSESS,
    JOIN,
    TRAIN,
    pack_weights,
    unpack_refused,
)

pytestmark = pytest.mark.usefixtures("flower_runtime")


# ------------------------------------------------------------------------------------------------------ honest replies


@pytest.mark.parametrize("kind", MESSAGES)
def test_an_honest_reply_leaves_bit_for_bit(bench: Bench, kind: str) -> None:
    message, content = ask(kind), honest(kind)
    reply = bench.send(message, answer(content))
    assert serialised(reply.content) == serialised(content)
    assert_addressed(message, reply)
    assert bench.said == ""


@pytest.mark.parametrize("kind", MESSAGES)
def test_what_leaves_is_in_the_egress_log_by_shape_not_by_value(bench: Bench, kind: str) -> None:
    reply = bench.send(ask(kind), answer(honest(kind)))
    (entry,) = egress.read(bench.path)
    data = serialised(reply.content)
    assert (entry.message, entry.cycle, entry.round, entry.sent) == (kind, 2, 1, True)
    assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert {name: set(keys) for name, keys in entry.records.items()} == {
        name: set(record) for name, record in reply.content.items()
    }
    assert entry.records["site"]["name"] == "text"
    if kind == TRAIN:
        assert entry.records["update"]["conv.weight"] == "float32[16,1,3,3] 576 B"
        assert entry.records["losses"]["total"] == "number"
    if kind == ASSESS:
        assert entry.records["test"] == {"dice": "number[2]", "counts": "number[2]", "patients": "number"}
    if kind == JOIN:
        assert entry.records["site"] == {"name": "text", "protocol": "number", "classes": "text[2]", "sam": "text"}


def test_the_line_is_written_before_the_reply_leaves_and_without_it_nothing_does(bench: Bench) -> None:
    bench.path = bench.folder / "file" / "egress.jsonl"
    (bench.folder / "file").write_text("")
    message = ask(TRAIN)
    reply = bench.send(message, answer(honest(TRAIN)))
    refused = unpack_refused(reply.content)
    assert refused is not None
    assert refused.code == "storage"
    assert set(reply.content) == {"refused"}
    assert str(bench.folder) not in everything(reply).decode("latin-1")
    assert f"refusal {refused.reference} leaves without a line in the egress log" in bench.said
    assert "egress.jsonl" in bench.said


def test_a_site_may_withhold_what_is_not_the_update(bench: Bench) -> None:
    for kind in (JOIN, TRAIN, ASSESS, ANNOTATE):
        content = honest(kind)
        for name in list(content.metric_records):
            del content[name]
        reply = bench.send(ask(kind), answer(content))
        assert serialised(reply.content) == serialised(content)
    assert [entry.sent for entry in egress.read(bench.path)] == [True] * 4


def test_keys_leave_in_the_order_they_came_in(bench: Bench) -> None:
    content = honest(JOIN)
    content["site"] = ConfigRecord(dict(reversed(list(content.config_records["site"].items()))))
    assert serialised(bench.send(ask(JOIN), answer(content)).content) == serialised(content)


def test_numpy_floats_leave_as_floats(bench: Bench) -> None:
    content = honest(TRAIN)
    content["losses"] = MetricRecord({"total": np.float64(0.1), "patients": 5})
    reply = bench.send(ask(TRAIN), answer(content))
    assert serialised(reply.content) == serialised(content)
    assert type(reply.content.metric_records["losses"]["total"]) is float


def test_replies_without_settings_where_no_class_is_spoken_of(bench: Bench) -> None:
    message = ask(ANNOTATE)
    message.content["request"] = ConfigRecord({**message.content.config_records["request"], "settings": "null"})
    assert unpack_refused(bench.send(message, answer(honest(ANNOTATE))).content) is None


# ---------------------------------------------------------------------------------------------------------- exceptions


def chained() -> Exception:
    try:
        try:
            raise KeyError(PATIENT)
        except KeyError as cause:
            raise RuntimeError(f"cannot read {PATH}") from cause
    except RuntimeError as error:
        error.add_note(CASE)
        return error


def relabelled() -> SiteFault:
    fault = SiteFault("bad-data", PATH)
    fault.code = PATIENT
    return fault


class Unprintable(Exception):
    """Fails when somebody wants to know what it says."""

    def __str__(self) -> str:
        raise ValueError(PATIENT)


EXCEPTIONS: Mapping[str, tuple[Callable[[], BaseException], str, str]] = {
    "a value error": (lambda: ValueError(f"{PATIENT} has no mask"), "internal", PATIENT),
    "a chain with a note": (chained, "internal", PATH),
    "a group": (lambda: ExceptionGroup("many", [ValueError(PATIENT)]), "internal", PATIENT),
    "a class with a name": (lambda: type(PATIENT, (Exception,), {})(CASE), "internal", PATIENT),
    "no Exception at all": (lambda: type("Odd", (BaseException,), {})(PATIENT), "internal", PATIENT),
    "no text": (Unprintable, "internal", "Unprintable"),
    "a site fault": (lambda: SiteFault("nothing-labelled", f"{CASE} is the only one"), "nothing-labelled", CASE),
    "a site fault with another code": (relabelled, "internal", PATH),
    "a format error": (lambda: FormatError(f"{PATH} is truncated"), "bad-data", PATH),
    "a missing file": (lambda: FileNotFoundError(2, "No such file", PATH), "storage", PATH),
    "a full disk": (lambda: StorageFault(28, f"cannot write {PATH}"), "storage", PATH),
    "NaN": (lambda: FloatingPointError(f"{CASE} holds NaN"), "not-finite", CASE),
}


@pytest.mark.parametrize("name", EXCEPTIONS)
@pytest.mark.parametrize("kind", [TRAIN, ANNOTATE])
def test_of_an_exception_a_code_leaves_and_the_rest_is_in_the_sites_log(bench: Bench, kind: str, name: str) -> None:
    error, code, kept = EXCEPTIONS[name]

    def handler(message: Message, _: Context) -> Message:
        raise error()

    message = ask(kind)
    said = assert_refused(bench, message, bench.send(message, handler), code=code)
    assert kept in said
    assert "Traceback" in said
    assert "in handler" in said  # the line of the handler that raised it
    assert egress.read(bench.path)[-1].withheld is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_person_or_the_system_can_stop_a_handler(bench: Bench, error: type[BaseException]) -> None:
    def stop(*_: object) -> Any:
        raise error

    with pytest.raises(error):
        bench.send(ask(TRAIN), stop)
    assert egress.read(bench.path) == []
    bench.policy_of = stop
    with pytest.raises(error):
        bench.send(ask(TRAIN), answer(honest(TRAIN)))


@pytest.mark.parametrize("opened", [True, False])
def test_a_log_that_fails_sends_nothing_instead(
    bench: Bench, opened: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(logging.Handler):
        """As a file that can't be opened."""

        def emit(self, record: logging.LogRecord) -> None:
            raise OSError(28, "No space left on device", PATH)

    def broken(*_: object) -> Any:
        raise ValueError(PATIENT)

    bench.log.addHandler(Full())
    monkeypatch.setattr(gate_module, "LOG", bench.log)
    if not opened:
        bench.policy_of = broken
    for handler in (broken, answer(RecordDict())):
        message = ask(TRAIN)
        reply = bench.send(message, handler)
        assert set(reply.content) == {"refused"}
        assert_no_trace(everything(reply))
    assert "No space left on device" in capsys.readouterr().err


def test_two_refusals_have_two_references(bench: Bench) -> None:
    for _ in range(2):
        bench.send(ask(TRAIN), answer(RecordDict()))
    first, second = egress.read(bench.path)
    assert first.reference != second.reference


def test_a_giant_key_does_not_fill_the_sites_log(bench: Bench) -> None:
    content = honest(ANNOTATE)
    content["x" * 60000] = MetricRecord({})
    bench.send(ask(ANNOTATE), answer(content))
    assert len(bench.said) < 1000
    assert "(60002 characters)" in bench.said


# -------------------------------------------------------------------------------------------- before the handler runs


def never(*_: object) -> Any:
    raise AssertionError("the handler ran")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError(2, "No such file", f"{PATH}/site.toml"), "internal"),
        (ValueError(f"site.toml: key = {PATIENT!r} is too short"), "internal"),
        (type("Odd", (BaseException,), {})(PATIENT), "internal"),
        (SiteFault("bad-request", f"no workspace for {PATH}"), "bad-request"),
    ],
)
def test_a_site_that_cannot_be_opened_says_no_more_than_that(
    bench: Bench, caplog: pytest.LogCaptureFixture, error: BaseException, code: str
) -> None:
    def policy_of(context: Context) -> Policy:
        raise error

    bench.policy_of = policy_of
    message = ask(TRAIN)
    with caplog.at_level(logging.ERROR, logger="wardround"):
        reply = bench.send(message, never)
    bench.text.write(caplog.text)
    said = assert_refused(bench, message, reply, code=code, name="")
    assert "Traceback" in said
    assert "MEIER" in said
    assert not bench.path.exists()


def bad_request(**changes: Any) -> Message:
    message = ask(TRAIN)
    message.content["request"] = ConfigRecord({**message.content.config_records["request"], **changes})
    return message


def without(kind: str, record: str) -> Message:
    message = ask(kind)
    del message.content[record]
    return message


def weight(**fields: Any) -> Message:
    message = ask(TRAIN)
    for name, value in fields.items():
        setattr(message.content.array_records["weights"]["conv.weight"], name, value)
    return message


BAD_REQUESTS: Mapping[str, tuple[Callable[[], Message], str]] = {
    "settings that are not JSON": (lambda: bad_request(settings="{"), "settings are not JSON"),
    "classes that are no list": (lambda: bad_request(settings='{"classes": 3}'), "not a list of names"),
    "classes that are no names": (lambda: bad_request(settings='{"classes": [3]}'), "not a list of names"),
    "no request": (lambda: without(TRAIN, "request"), "no record `request`"),
    "train without weights": (lambda: without(TRAIN, "weights"), "without weights"),
    "join without classes": (lambda: ask(JOIN, settings={"seed": 0}), "without class names"),
    "assess without classes": (lambda: ask(ASSESS, settings={"seed": 0}), "without class names"),
    "a message that the protocol does not know": (lambda: ask("query.everything"), "query.everything"),
    "weights of text": (lambda: weight(dtype="<U200"), "a weight <U200"),
    "weights of objects": (lambda: weight(dtype="object"), "a weight object"),
    "weights of bytes": (lambda: weight(dtype="uint8"), "a weight uint8"),
    "weights of no type": (lambda: weight(dtype="no such type"), "without a dtype or shape"),
    "weights of no shape": (lambda: weight(shape=("x",)), "without a dtype or shape"),
    "weights of less than nothing": (lambda: weight(shape=(-1, 4)), "a weight float32[-1, 4]"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_request_that_allows_nothing_is_not_handled(bench: Bench, name: str) -> None:
    make, why = BAD_REQUESTS[name]
    message = make()
    reply = bench.send(message, never)
    refused = unpack_refused(reply.content)
    assert refused is not None
    assert (refused.name, refused.code) == ("A", "bad-request")
    assert why in bench.said[bench.said.index(refused.reference) :]
    assert not egress.read(bench.path)[-1].sent


def test_the_egress_log_says_null_where_the_request_does_not_say(bench: Bench) -> None:
    bench.send(without(TRAIN, "request"), never)
    bench.send(bad_request(cycle=True, round="1"), answer(honest(TRAIN)))
    assert [(entry.cycle, entry.round) for entry in egress.read(bench.path)] == [(None, None), (None, None)]


def test_a_policy_checks_itself(bench: Bench) -> None:
    policy = bench.policy(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="updates\\+sums"):
        replace(policy, share="all")
    with pytest.raises(ValueError, match="min_patients is 0"):
        replace(policy, min_patients=0)


# --------------------------------------------------------------------------------------------------------- in the app


def test_in_a_client_app_the_gate_is_the_way_out_of_every_handler(bench: Bench) -> None:
    app = ClientApp(mods=[make_gate(bench.policy)])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(honest(TRAIN), reply_to=message)

    @app.query("assess")
    def assess(message: Message, context: Context) -> Message:
        raise ValueError(PATIENT)

    context = Context(run_id=7, node_id=5, node_config={}, state=RecordDict(), run_config={})
    assert serialised(app(ask(TRAIN), context).content) == serialised(honest(TRAIN))
    message = ask(ASSESS)
    assert_refused(bench, message, app(message, context), code="internal")
    assert [entry.sent for entry in egress.read(bench.path)] == [True, False]


def test_how_much_stayed_is_counted_without_names(bench: Bench) -> None:
    content = RecordDict({"site": ConfigRecord({"name": "A", "x": b"12345"}), "x": pack_weights({"y": MASK})})
    bench.send(ask(TRAIN), answer(content))
    data = len(Array(MASK).data) + len("uint8") + len("numpy.ndarray") + 2 * 8
    assert egress.read(bench.path)[-1].withheld == Withheld(records=2, bytes=len("sitenameAx12345xy") + data)
    assert SLACK_BYTES == 65536
