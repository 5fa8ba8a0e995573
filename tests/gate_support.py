"""A site behind its gate, for tests: requests, honest replies, secrets, and a search for these in what leaves."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_to_proto, recorddict_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from client import egress
from client.egress import EgressLog
from client.gate import Policy, make_gate
from strategies.records import Annotation, Assessment, Demand, Joined, SiteUpdate, Sums, Weights
from strategies.wire import (
    ANNOTATE,
    ASSESS,
    CODES,
    JOIN,
    KINDS,
    PROTOCOL,
    TRAIN,
    Request,
    pack_annotation,
    pack_assessment,
    pack_joined,
    pack_kinds,
    pack_request,
    pack_update,
    pack_weights,
    unpack_refused,
)

CLASSES = ("liver", "spleen")
MESSAGES = (JOIN, TRAIN, ASSESS, ANNOTATE, KINDS)
WEIGHTS: Weights = {
    "conv.weight": np.arange(16 * 9, dtype=np.float32).reshape(16, 1, 3, 3),
    "conv.bias": np.zeros(16, np.float64),
    "steps": np.array([3], np.int64),
    "empty": np.zeros((0, 4), np.float32),
}
UPDATE: Weights = {name: (array + 1).astype(array.dtype) for name, array in WEIGHTS.items()}

SAM = "5a3c0e9f77d1b246"
"""What the site's SAM is called."""

PATIENT = "ID-740312-MEIER"
CASE = "9f2c41aa77de03b1.77aa11bb22cc33dd.0007"
PATH = "/pacs/MEIER^HANS/IM0007.dcm"
PIXELS = np.random.default_rng(0).integers(1, 255, (16, 16), dtype=np.uint8)
IMAGE = PIXELS.astype(np.float32)
MASK = np.pad(np.array([[1, 2, 1], [2, 1, 2], [1, 1, 2]], np.uint8), 3)
SECRETS = (
    *(text.encode() for text in (PATIENT, CASE, PATH, "MEIER", "77aa11bb22cc33dd", "IM0007")),
    *(array.tobytes() for array in (PIXELS, IMAGE, MASK, MASK.astype(np.float32))),
    *(pixels[3].tobytes() for pixels in (PIXELS, IMAGE)),  # one row is too much
)


class Named(str):
    """A string that equals an honest key and carries something besides."""

    secret = PATIENT


class Numbers(float):
    """A float with something besides."""

    secret = PATIENT


def ask(kind: str, *, settings: Any = None, weights: Weights | None = None) -> Message:
    """A request as it arrives at node 5."""
    settings = {"classes": list(CLASSES), "seed": 0} if settings is None else settings
    content = pack_request(
        Request(cycle=2, round=1, settings=settings),
        pack_weights(WEIGHTS if weights is None else weights) if kind in (TRAIN, ASSESS, KINDS) else None,
    )
    message = Message(content, dst_node_id=5, message_type=kind, group_id="2.1")
    message.metadata.__dict__["_message_id"] = "request-1"
    return message


def honest(kind: str) -> RecordDict:
    """What a good handler answers."""
    match kind:
        case "query.join":
            return pack_joined(Joined("A", PROTOCOL, CLASSES, SAM, 80, 0, 80))
        case "train":
            losses: Any = {"total": 0.5, "supervised": 0.25, "sam": 0.0}
            told = {"losses": losses, "losses_patients": 6, "trust": (0.75, 0.0), "trust_patients": 5}
            return pack_update(SiteUpdate("A", UPDATE, 4, 4, 76, **told, seconds=1.5, minutes=12, patients=7))
        case "query.assess":
            sums = Sums((1.5, 0.75), (2, 1), 9)
            return pack_assessment(Assessment("A", sums, sums, Demand(76, 76, (0.0, 0.1, 0.2, 0.3, 0.4), 9), 2.5))
        case "query.kinds":
            return pack_kinds("A", UPDATE, patients=9)
        case _:
            return pack_annotation(Annotation("A", 4, 4, 0, 8, 72, 0, minutes=12, balance=0.5, patients=7, seconds=0.5))


@dataclass
class Bench:
    """A site with its gate, its egress log and its own log."""

    folder: Path
    share: str = "updates+sums"
    min_patients: int = 5
    policy_of: Callable[[Context], Policy] | None = None
    text: io.StringIO = field(default_factory=io.StringIO)

    def __post_init__(self) -> None:
        self.log = logging.Logger("site A")
        self.log.addHandler(logging.StreamHandler(self.text))
        self.path = self.folder / "egress.jsonl"

    def policy(self, context: Context) -> Policy:
        return Policy("A", self.share, self.min_patients, EgressLog(self.path), self.log, lambda: SAM)

    def send(self, message: Message, handler: Callable[[Message, Context], Any]) -> Message:
        context = Context(run_id=7, node_id=5, node_config={}, state=RecordDict(), run_config={})
        return make_gate(self.policy_of or self.policy)(message, context, handler)

    @property
    def said(self) -> str:
        """The site's own log."""
        return self.text.getvalue()


def answer(content: RecordDict) -> Callable[[Message, Context], Message]:
    return lambda message, _: Message(content, reply_to=message)


def serialised(content: RecordDict) -> bytes:
    data: bytes = recorddict_to_proto(content).SerializeToString()
    return data


def everything(reply: Message) -> bytes:
    """All bytes that Flower could make of a reply: whole, in parts as it travels, and every attribute."""
    parts = [message_to_proto(reply).SerializeToString()]
    for item in get_all_nested_objects(reply).values():
        parts += [item.deflate(), repr(vars(item)).encode()]
    return b"\0".join([*parts, repr(vars(reply.metadata)).encode()])


def spellings(secret: bytes) -> Iterator[bytes]:
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    yield base64.b64encode(secret)[: len(secret) // 3 * 4]
    yield repr(secret)[2:-1].encode()
    text = secret.decode("latin-1")
    yield from (
        text.encode("utf-8"),
        text.encode("utf-16-le"),
        text.encode("utf-32-le"),
        json.dumps(text)[1:-1].encode(),
    )


def assert_no_trace(data: bytes) -> None:
    for secret in SECRETS:
        for spelling in spellings(secret):
            assert spelling not in data, f"{spelling[:40]!r} left the site"


def assert_refused(bench: Bench, message: Message, reply: Message, *, code: str, name: str = "A") -> str:
    """A refusal with that code, nothing else, and the log line that explains it; gives the log line."""
    assert not reply.has_error()
    assert_no_trace(everything(reply))
    assert set(reply.content) == {"refused"}
    assert set(reply.content.config_records["refused"]) == {"name", "code", "reference"}
    refused = unpack_refused(reply.content)
    assert refused is not None
    assert (refused.name, refused.code) == (name, code)
    assert code in CODES
    assert re.fullmatch("[0-9a-f]{8}", refused.reference)
    assert_addressed(message, reply)
    if name:
        entry = egress.read(bench.path)[-1]
        assert (entry.sent, entry.code, entry.reference) == (False, code, refused.reference)
        assert (entry.message, entry.cycle, entry.round) == (message.metadata.message_type, 2, 1)
        assert entry.sha256 == hashlib.sha256(serialised(reply.content)).hexdigest()
        assert entry.bytes == len(serialised(reply.content))
        assert set(entry.records) == {"refused"}
        assert_no_trace(bench.path.read_bytes())
        assert egress.verify(bench.path) == []
    said = bench.said
    assert refused.reference in said
    return said[said.index(refused.reference) :]


def assert_addressed(message: Message, reply: Message) -> None:
    """The metadata that Flower gives a reply to this request, and no other."""
    expected = vars(Message(RecordDict(), reply_to=message).metadata)
    times = ("_created_at", "_ttl")
    assert {k: v for k, v in vars(reply.metadata).items() if k not in times} == {
        k: v for k, v in expected.items() if k not in times
    }
    assert set(vars(reply)) <= {"_metadata", "_content", "_error", "_object_id"}
