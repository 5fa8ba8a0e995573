"""What a handler returns beside an honest content, or instead of a reply, stays: by every way that Flower's messages have."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from flwr.app import Array, Context, Error, Message, MetricRecord
from gate_support import (
    CASE,
    IMAGE,
    PATH,
    PATIENT,
    Bench,
    Named,
    Numbers,
    answer,
    ask,
    assert_addressed,
    assert_no_trace,
    assert_refused,
    everything,
    honest,
)

from strategies.wire import (
    JOIN,
    TRAIN,
    unpack_refused,
)

pytestmark = pytest.mark.usefixtures("flower_runtime")


def retyped(message: Message) -> Message:
    class Reply(Message):
        """A Message with something besides."""

        secret = PATIENT

    return Reply(honest(TRAIN), reply_to=message)


def with_metadata(**fields: Any) -> Callable[[Message], Message]:
    def reply(message: Message) -> Message:
        made = Message(honest(TRAIN), reply_to=message)
        made.metadata.__dict__.update({f"_{name}": value for name, value in fields.items()})
        return made

    return reply


def with_content(content: Any) -> Callable[[Message], Message]:
    def reply(message: Message) -> Message:
        made = Message(honest(TRAIN), reply_to=message)
        made.__dict__["_content"] = content
        return made

    return reply


NOT_A_REPLY: Mapping[str, tuple[Callable[[Message], Any], str]] = {
    "nothing": (lambda message: None, "returned a NoneType"),
    "text": (lambda message: PATIENT, "returned a str"),
    "content without a message": (lambda message: honest(TRAIN), "returned a RecordDict"),
    "a message of another class": (retyped, "returned a Reply"),
    "an error": (
        lambda message: Message(Error(0, f"{PATH}: {PATIENT}"), reply_to=message),
        rf"with an error: Error\(.*{PATIENT}",
    ),
    "no content": (with_content(None), "no RecordDict for content"),
    "content of another class": (with_content({"site": {"name": PATIENT}}), "no RecordDict for content"),
    "a group": (with_metadata(group_id=CASE), f"metadata has group_id '{CASE}'"),
    "another node": (with_metadata(dst_node_id=66), "metadata has dst_node_id 66"),
    "another sender": (with_metadata(src_node_id=66), "metadata has src_node_id 66"),
    "another run": (with_metadata(run_id=66), "metadata has run_id 66"),
    "another task": (with_metadata(dst_task_id=66), "metadata has dst_task_id 66"),
    "from another task": (with_metadata(src_task_id=66), "metadata has src_task_id 66"),
    "another request": (with_metadata(reply_to_message_id=PATIENT), f"reply_to_message_id '{PATIENT}'"),
    "an id": (with_metadata(message_id=PATIENT), f"message_id '{PATIENT}'"),
    "another type": (with_metadata(message_type=f"query.{PATIENT}"), f"message_type 'query.{PATIENT}'"),
    "a delivery": (with_metadata(delivered_at=PATIENT), f"delivered_at '{PATIENT}'"),
}


@pytest.mark.parametrize("name", NOT_A_REPLY)
def test_what_is_no_reply_to_this_request_stays(bench: Bench, name: str) -> None:
    handler, why = NOT_A_REPLY[name]
    message = ask(TRAIN)
    reply = bench.send(message, lambda message, _: handler(message))
    assert re.search(why, assert_refused(bench, message, reply, code="reply-not-allowed"))


def test_a_new_message_to_the_coordinator_is_no_reply(bench: Bench) -> None:
    message = ask(TRAIN)
    reply = bench.send(message, lambda *_: Message(honest(TRAIN), dst_node_id=1, message_type=TRAIN))
    assert_refused(bench, message, reply, code="reply-not-allowed")


def test_what_is_tacked_on_to_an_honest_reply_is_left_behind(bench: Bench) -> None:
    """Attributes, cached chunks and times are not compared: what leaves is made anew, without them."""

    def handler(message: Message, _: Context) -> Message:
        content = honest(TRAIN)
        content["losses"] = MetricRecord({"total": Numbers(0.5), "patients": 6})
        content.array_records["update"]["conv.bias"].dtype = Named("float64")
        other = Array(IMAGE)
        # Flower sends an array in chunks, and takes these from a cache where there is one.
        content["update"]["conv.weight"].__dict__["_chunks"] = other.slice_array()
        for item in (content, content["update"], content["site"], content["update"]["conv.bias"]):
            item.__dict__["secret"] = PATIENT
        reply = Message(content, reply_to=message, ttl=740312.0)
        reply.metadata.created_at = 740312.0
        reply.metadata.__dict__["_secret"] = CASE
        reply.__dict__["secret"] = PATH
        return reply

    message = ask(TRAIN)
    reply = bench.send(message, handler)
    assert unpack_refused(reply.content) is None
    assert_no_trace(everything(reply))
    assert b"740312" not in everything(reply)
    assert_addressed(message, reply)
    assert type(reply.content.metric_records["losses"]["total"]) is float
    assert type(reply.content.array_records["update"]["conv.bias"].dtype) is str
    assert reply.metadata.created_at > message.metadata.created_at
    expires = message.metadata.created_at + message.metadata.ttl
    assert reply.metadata.created_at + reply.metadata.ttl == pytest.approx(expires, abs=0.01)


def test_what_a_handler_does_to_its_reply_later_does_not_leave(bench: Bench) -> None:
    content = honest(TRAIN)
    reply = bench.send(ask(TRAIN), answer(content))
    content.config_records["site"]["name"] = PATIENT
    content.metric_records["losses"][PATIENT] = 1.0
    content.array_records["update"]["conv.weight"].data = CASE.encode()
    assert_no_trace(everything(reply))


def test_a_handler_that_rewrites_the_request_allows_itself_nothing(bench: Bench) -> None:
    def handler(message: Message, _: Context) -> Message:
        message.content.array_records["weights"]["image"] = Array(IMAGE)
        content = honest(TRAIN)
        content.array_records["update"]["image"] = Array(IMAGE)
        return Message(content, reply_to=message)

    message = ask(TRAIN)
    said = assert_refused(bench, message, bench.send(message, handler), code="reply-not-allowed")
    assert "record update has a key 'image'" in said


def test_a_handler_that_rewrites_the_classes_sends_no_name(bench: Bench) -> None:
    def handler(message: Message, _: Context) -> Message:
        settings = json.dumps({"classes": [PATIENT, "spleen"]})
        message.content.config_records["request"]["settings"] = settings
        content = honest(JOIN)
        content.config_records["site"]["classes"] = [PATIENT, "spleen"]
        return Message(content, reply_to=message)

    message = ask(JOIN)
    assert_refused(bench, message, bench.send(message, handler), code="reply-not-allowed")


def test_a_handler_that_rewrites_the_requests_metadata_readdresses_nothing(bench: Bench) -> None:
    def handler(message: Message, _: Context) -> Message:
        message.metadata.group_id = CASE
        message.metadata.__dict__.update(_src_node_id=66, _message_id=PATIENT)
        return Message(honest(TRAIN), reply_to=message)

    reply = bench.send(ask(TRAIN), handler)
    assert_refused(bench, ask(TRAIN), reply, code="reply-not-allowed")
    assert reply.metadata.group_id == "2.1"
    assert reply.metadata.dst_node_id == 1
