"""The gate: the one way out of a site. A Flower client mod around every handler.

Before the handler runs, the gate writes down what a reply to this request may hold: the records and numbers of
`strategies.wire.replies`, the request's class names, the names, dtypes and shapes of the weights that came with it.
Afterwards it compares. What fits is *built anew* from the values that were checked, in an envelope that was made before
the handler ran; so nothing leaves that the gate has not looked at: no attribute, cached chunk or metadata field of the
handler's own. What does not fit stays, all of it: the coordinator gets one code of `strategies.wire.CODES` and a random
reference. So it is with every exception, whose text Flower would otherwise send. What it was, with traceback, file name
and offending key, stands in the site's log under that reference.

Every reply, sent or refused, is in the site's egress log before it leaves.

What the gate can't do: an update that fits is numbers, and a handler that hides something in those numbers gets it out.
That is bounded by privacy budgets, not by a list.
"""

from __future__ import annotations

import io
import json
import logging
import math
import secrets
import traceback
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.common.serde import recorddict_to_proto
from numpy.lib import format as npy

from client.egress import EgressLog, Shapes, Withheld
from client.faults import SiteFault, code_of
from strategies.records import Refused
from strategies.wire import ASSESS, JOIN, PROTOCOL, Number, Reply, pack_refused, replies

LOG = logging.getLogger("wardround")
"""Where a failure goes that happens before the site, and with it the site's own log, is known."""

SLACK_BYTES = 65536
"""What a reply may weigh beside its arrays and class names: names, headers and a few dozen numbers."""

NUMPY = "numpy.ndarray"
"""Flower's name for an array in numpy's file format, the one serialisation that may leave."""


@dataclass(frozen=True)
class Policy:
    """What a site lets out, and where it writes that down.

    Attributes:
        name: the site's name, the only text of its own that leaves.
        share: `updates` (no number but the update) or `updates+sums`.
        min_patients: a metric over fewer patients is refused.
        egress: one line for every reply.
        log: the site's own log; it gets what the coordinator does not.
    """

    name: str
    share: str
    min_patients: int
    egress: EgressLog
    log: logging.Logger

    def __post_init__(self) -> None:
        if self.share not in ("updates", "updates+sums"):
            raise ValueError(f'share is {self.share!r}: it is "updates" or "updates+sums"')
        if self.min_patients < 1:
            raise ValueError(f"min_patients is {self.min_patients}: a metric is over 1 patient at least")


PolicyOf: TypeAlias = Callable[[Context], Policy]
Record = TypeVar("Record", ArrayRecord, MetricRecord, ConfigRecord)


def make_gate(policy_of: PolicyOf) -> Mod:
    """The mod. Put it first among the mods of a ClientApp: the first is the outermost.

    Args:
        policy_of: looks the site's policy up; what it raises does not leave either.
    """

    def gate(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        envelope = Message(RecordDict(), reply_to=message)
        try:
            policy = policy_of(context)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            code = code_of(error) if isinstance(error, SiteFault) else "internal"
            refused = Refused("", code, secrets.token_hex(4))
            _tell(LOG, f"refusal {refused.reference}: this node's site cannot be opened", error)
            envelope.content = pack_refused(refused)
            return envelope
        envelope.content = _let_out(message, context, call_next, policy=policy, envelope=envelope)
        return envelope

    return gate


def _let_out(
    message: Message, context: Context, call_next: ClientAppCallable, *, policy: Policy, envelope: Message
) -> RecordDict:
    """Run the handler; its content as far as it may leave, else a refusal. Either is in the egress log on return."""
    where = _Where.of(message)
    record = partial(policy.egress.append, message=where.message, cycle=where.cycle, round=where.round)
    withheld: Withheld | None = None
    try:
        allowed = Allowed.by(message, policy)
        reply = call_next(message, context)
        given = _content_of(reply, envelope)
        withheld = Withheld(records=len(given), bytes=_bytes_in(given))
        content = _checked(given, allowed=allowed, weight=withheld.bytes)
        record(sent=True, content=_serialised(content), records=_shapes(content))
        return content
    except (KeyboardInterrupt, SystemExit):
        raise
    except _NotAllowed as offence:
        refused = Refused(policy.name, "reply-not-allowed", secrets.token_hex(4))
        _tell(policy.log, f"refusal {refused.reference} of {where}: {offence}; nothing of the reply left")
    except BaseException as error:  # Flower would send its text
        refused = Refused(policy.name, code_of(error), secrets.token_hex(4))
        _tell(policy.log, f"refusal {refused.reference} of {where}: {refused.code}", error)
    content = pack_refused(refused)
    try:
        record(
            sent=False,
            code=refused.code,
            reference=refused.reference,
            content=_serialised(content),
            records=_shapes(content),
            withheld=withheld,
        )
    except Exception as error:
        # A refusal says nothing of the site, and without one the coordinator would get this exception's text instead.
        _tell(policy.log, f"refusal {refused.reference} leaves without a line in the egress log", error)
    return content


def _tell(log: logging.Logger, text: str, error: BaseException | None = None) -> None:
    """Into the site's log, with the traceback. Where the log fails too (a full disk), to standard error."""
    try:
        log.error("%s", text, exc_info=error)
    except Exception:  # it names the log's file, and Flower would send that
        traceback.print_exc()


# ---------------------------------------------------------------------------------------------------- what may leave


class _NotAllowed(Exception):
    """Something in a reply may not leave. The message names it, for the site's own log."""


@dataclass(frozen=True)
class Slot:
    """An array that a reply must hold: its dtype, shape and the exact bytes in front of its values."""

    dtype: str
    shape: tuple[int, ...]
    header: bytes

    @classmethod
    def like(cls, array: Array) -> Slot:
        """Raises SiteFault when what the request calls a weight can't be one."""
        try:
            dtype, shape = np.dtype(array.dtype), tuple(int(side) for side in array.shape)
        except (TypeError, ValueError) as error:
            raise SiteFault("bad-request", f"the request holds a weight without a dtype or shape: {error}") from error
        if dtype.kind not in "fi" or min(shape, default=0) < 0:
            raise SiteFault("bad-request", f"the request holds a weight {dtype}{list(shape)}: no network has such")
        header = io.BytesIO()
        npy.write_array_header_1_0(header, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
        return cls(str(dtype), shape, header.getvalue())

    @property
    def bytes(self) -> int:
        """Exact length of the array's data."""
        return len(self.header) + math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Allowed:
    """What the reply to one request may hold: copied from the request before a handler sees it."""

    name: str
    share: str
    min_patients: int
    message: str
    classes: tuple[str, ...]
    reply: Reply
    arrays: Mapping[str, Slot]

    @classmethod
    def by(cls, message: Message, policy: Policy) -> Allowed:
        """Raises SiteFault when the request is none that a reply could be checked against."""
        kind, content = message.metadata.message_type, message.content
        classes = _class_names(content)
        if kind in (JOIN, ASSESS) and not classes:
            raise SiteFault("bad-request", f"a request {kind} without class names in its settings")
        reply = replies(len(classes)).get(kind)
        if reply is None:
            raise SiteFault("bad-request", f"no reply to a message of type {kind} may leave a site")
        arrays = {}
        if reply.update:
            weights = content.get("weights")
            if not isinstance(weights, ArrayRecord):
                raise SiteFault("bad-request", f"a request {kind} without weights: nothing says which update is one")
            arrays = {name: Slot.like(array) for name, array in weights.items()}
        return cls(policy.name, policy.share, policy.min_patients, kind, classes, reply, arrays)

    @property
    def bytes(self) -> int:
        """No reply that is allowed weighs more than this."""
        names = sum(len(name.encode()) + 64 for name in (*self.classes, *self.arrays))
        return SLACK_BYTES + names + sum(slot.bytes for slot in self.arrays.values())


def _class_names(content: RecordDict) -> tuple[str, ...]:
    """The class names in the request's settings; none where it has no settings."""
    request = content.get("request")
    if not isinstance(request, ConfigRecord):
        raise SiteFault("bad-request", "not a wardround request: it has no record `request`")
    try:
        settings = json.loads(str(request.get("settings", "null")))
    except ValueError as error:
        raise SiteFault("bad-request", f"the request's settings are not JSON: {error}") from error
    names = settings.get("classes", []) if isinstance(settings, dict) else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SiteFault("bad-request", "the request's settings have `classes` that are not a list of names")
    return tuple(names)


# ----------------------------------------------------------------------------------------------------------- checking


def _content_of(reply: object, envelope: Message) -> RecordDict:
    """What a handler put into a proper reply to this very request. Raises _NotAllowed."""
    if type(reply) is not Message:
        raise _NotAllowed(f"the handler returned a {type(reply).__name__}, not a Message")
    if reply.has_error():
        raise _NotAllowed(f"the handler answered with an error: {_short(reply.error)}")
    for field, expected in envelope.metadata.__dict__.items():
        # The times that leave are the envelope's, whatever the handler's reply says.
        if field not in ("_created_at", "_ttl") and reply.metadata.__dict__.get(field) != expected:
            raise _NotAllowed(f"its metadata has {field[1:]} {_short(reply.metadata.__dict__.get(field))}")
    if not reply.has_content() or type(reply.content) is not RecordDict:
        raise _NotAllowed("the handler's reply has no RecordDict for content")
    return reply.content


def _checked(given: RecordDict, *, allowed: Allowed, weight: int) -> RecordDict:
    """The content, built anew from what was checked. Raises _NotAllowed."""
    if weight > allowed.bytes:
        raise _NotAllowed(f"it weighs {weight} bytes, at most {allowed.bytes} may leave")
    content = RecordDict()
    for name, record in given.items():
        if type(name) is not str:
            raise _NotAllowed(f"it has a record named by a {type(name).__name__}")
        if name == "site":
            content[name] = _checked_site(record, allowed)
        elif name == "update" and allowed.reply.update:
            content[name] = _checked_update(record, allowed.arrays)
        elif name in allowed.reply.metrics:
            content[name] = _checked_metrics(name, record, allowed)
        else:
            raise _NotAllowed(f"it has a record {_short(name)}")
    missing = {"site", *(["update"] if allowed.reply.update else [])} - set(content)
    if missing:
        raise _NotAllowed(f"it has no record {', '.join(sorted(missing))}")
    return content


def _checked_site(record: object, allowed: Allowed) -> ConfigRecord:
    """Exactly the site's name; in a reply to `query.join` the protocol and the request's class names as well."""
    site = ConfigRecord({"name": allowed.name})
    if allowed.message == JOIN:
        site["protocol"] = PROTOCOL
        site["classes"] = list(allowed.classes)
    given = _items(record, ConfigRecord, keys=site, of="record site")
    for key, value in given.items():
        if type(value) is not type(site[key]) or value != site[key]:
            raise _NotAllowed(f"record site has {key} {_short(value)}, not {site[key]!r}")
    return ConfigRecord({key: site[key] for key in given})


def _checked_update(record: object, slots: Mapping[str, Slot]) -> ArrayRecord:
    """Exactly the arrays of the request's weights, finite, and not a byte beside their values."""
    given = _items(record, ArrayRecord, keys=slots, of="record update")
    return ArrayRecord({name: _checked_array(name, array, slots[name]) for name, array in given.items()})


def _checked_array(name: str, array: object, slot: Slot) -> Array:
    if type(array) is not Array or type(array.data) is not bytes:
        raise _NotAllowed(f"array {name} is no Array of bytes")
    data = array.data
    if array.stype != NUMPY:
        raise _NotAllowed(f"array {name} has stype {_short(array.stype)}")
    if array.dtype != slot.dtype or tuple(array.shape) != slot.shape:
        given = f"{_short(array.dtype)} {_short(array.shape)}"
        raise _NotAllowed(f"array {name} is {given}, not {slot.dtype} {slot.shape}")
    # Numpy's header is Python source: it has room for comments, other types and pickles. There is one honest spelling.
    if not data.startswith(slot.header):
        raise _NotAllowed(f"array {name} has a header that is not that of {slot.dtype} {slot.shape} in C order")
    if len(data) != slot.bytes:
        raise _NotAllowed(f"array {name} has {len(data)} bytes of data, not {slot.bytes}")
    if not np.isfinite(np.frombuffer(data, dtype=slot.dtype, offset=len(slot.header))).all():
        raise _NotAllowed(f"array {name} is not finite")
    return Array(dtype=slot.dtype, shape=slot.shape, stype=NUMPY, data=data)


def _checked_metrics(name: str, record: object, allowed: Allowed) -> MetricRecord:
    """The listed numbers, all that must be there, over enough patients."""
    if allowed.share != "updates+sums":
        raise _NotAllowed(f"it has a record {name}, but this site shares updates only")
    numbers = allowed.reply.metrics[name]
    optional = {key for key, number in numbers.items() if number.optional}
    given = _items(record, MetricRecord, keys=numbers, optional=optional, of=f"record {name}")
    content = MetricRecord({key: _checked_value(value, numbers[key], f"{name}.{key}") for key, value in given.items()})
    if name in allowed.reply.patients:
        patients = content["patients"]
        assert isinstance(patients, int)  # wire.COUNT says so
        if patients < allowed.min_patients:
            raise _NotAllowed(f"record {name} is over {patients} patients, fewer than {allowed.min_patients}")
    return content


def _checked_value(value: object, number: Number, of: str) -> Any:
    """A plain int or float, or a list of them; what comes out is what was checked, whatever class went in."""
    if number.length is None:
        return _checked_number(value, number, of)
    if type(value) is not list or len(value) != number.length:
        raise _NotAllowed(f"{of} is {_short(value)}, not a list of {number.length}")
    return [_checked_number(item, number, of) for item in value]


def _checked_number(value: object, number: Number, of: str) -> int | float:
    plain: int | float
    if isinstance(value, int) and not isinstance(value, bool):
        plain = int(value)
    elif isinstance(value, float) and not number.whole:
        plain = float(value)  # numpy's float64 is a float too
    else:
        raise _NotAllowed(f"{of} is {_short(value)}, not a {'whole number' if number.whole else 'number'}")
    if not number.low <= plain <= number.high:  # the bounds are finite: NaN and Inf are outside
        raise _NotAllowed(f"{of} is {_short(plain)}, not from {number.low} to {number.high}")
    return plain


def _items(
    record: object, kind: type[Record], *, keys: Mapping[str, object], optional: Set[str] = frozenset(), of: str
) -> dict[str, Any]:
    """What is in a record of that kind with all of `keys`, but perhaps the optional ones, and no other."""
    if type(record) is not kind:
        raise _NotAllowed(f"{of} is a {type(record).__name__}")
    given: dict[str, Any] = dict(record.items())
    extra = [key for key in given if type(key) is not str or key not in keys]
    if extra:
        raise _NotAllowed(f"{of} has a key {_short(extra[0])}")
    missing = keys.keys() - given.keys() - optional
    if missing:
        raise _NotAllowed(f"{of} has no key {', '.join(sorted(missing))}")
    return given


# ------------------------------------------------------------------------------------------------- for the egress log


@dataclass(frozen=True)
class _Where:
    """Which request is answered, as far as it says so."""

    message: str
    cycle: int | None
    round: int | None

    @classmethod
    def of(cls, message: Message) -> _Where:
        request = message.content.get("request") if message.has_content() else None
        fields = request if isinstance(request, ConfigRecord) else {}
        cycle, round = (value if type(value := fields.get(key)) is int else None for key in ("cycle", "round"))
        return cls(message.metadata.message_type, cycle, round)

    def __str__(self) -> str:
        return f"{self.message} in cycle {self.cycle}, round {self.round}"


def _serialised(content: RecordDict) -> bytes:
    serialised: bytes = recorddict_to_proto(content).SerializeToString()
    return serialised


def _shapes(content: RecordDict) -> Shapes:
    """Record to key to what it is; no value."""
    return {name: {key: _kind(value) for key, value in record.items()} for name, record in content.items()}


def _kind(value: object) -> str:
    if isinstance(value, Array):
        size = math.prod(value.shape) * np.dtype(value.dtype).itemsize
        return f"{value.dtype}[{','.join(map(str, value.shape))}] {size} B"
    if isinstance(value, list):
        return f"{_kind(value[0])}[{len(value)}]" if value else "nothing"
    return "text" if isinstance(value, str) else "number"


def _bytes_in(value: object) -> int:
    """Bytes of all keys and values, 8 for a number; of anything that a handler may have put in."""
    if isinstance(value, Mapping):
        return sum(_bytes_in(key) + _bytes_in(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_bytes_in, value))
    if isinstance(value, Array):
        return sum(map(_bytes_in, (value.dtype, value.shape, value.stype, value.data)))
    if isinstance(value, str):
        return len(value.encode(errors="surrogatepass"))
    return len(value) if isinstance(value, bytes | bytearray | memoryview) else 8


def _short(value: object) -> str:
    """For the site's log: enough to find it, on one line, and never a megabyte."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text)} characters)"
