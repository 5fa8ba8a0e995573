"""What may leave a site in answer to one request, and building a reply anew from what was checked against it.

`Allowed` is made from the request before a handler runs: the records and numbers of `strategies.wire.replies`, the
request's class names, the names, dtypes and shapes of the weights that came with it. `content_of` and `checked` then
compare a reply with it and give back values of their own making, so that no attribute, cached chunk or metadata field
of a handler's comes along. Nothing here knows a log, a file or a site; the gate does.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.lib import format as npy

from client.faults import SiteFault
from strategies.wire import ASSESS, JOIN, PROTOCOL, Number, Reply, replies

SLACK_BYTES = 65536
"""What a reply may weigh beside its arrays and class names: names, headers and a few dozen numbers."""

NUMPY = "numpy.ndarray"
"""Flower's name for an array in numpy's file format, the one serialisation that may leave."""

Record = TypeVar("Record", ArrayRecord, MetricRecord, ConfigRecord)


class NotAllowed(Exception):
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
    sam: Callable[[], str]
    message: str
    classes: tuple[str, ...]
    reply: Reply
    arrays: Mapping[str, Slot]

    @classmethod
    def by(cls, message: Message, *, name: str, share: str, min_patients: int, sam: Callable[[], str]) -> Allowed:
        """What a site of this name and with these settings may answer to `message`.

        Raises:
            SiteFault: the request is none that a reply could be checked against.
        """
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
            arrays = {key: Slot.like(array) for key, array in weights.items()}
        return cls(name, share, min_patients, sam, kind, classes, reply, arrays)

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


def content_of(reply: object, envelope: Message) -> RecordDict:
    """What a handler put into a proper reply to this very request. Raises NotAllowed."""
    if type(reply) is not Message:
        raise NotAllowed(f"the handler returned a {type(reply).__name__}, not a Message")
    if reply.has_error():
        raise NotAllowed(f"the handler answered with an error: {short(reply.error)}")
    for field, expected in envelope.metadata.__dict__.items():
        # The times that leave are the envelope's, whatever the handler's reply says.
        if field not in ("_created_at", "_ttl") and reply.metadata.__dict__.get(field) != expected:
            raise NotAllowed(f"its metadata has {field[1:]} {short(reply.metadata.__dict__.get(field))}")
    if not reply.has_content() or type(reply.content) is not RecordDict:
        raise NotAllowed("the handler's reply has no RecordDict for content")
    return reply.content


def checked(given: RecordDict, *, allowed: Allowed, weight: int) -> RecordDict:
    """The content, built anew from what was checked. Raises NotAllowed."""
    if weight > allowed.bytes:
        raise NotAllowed(f"it weighs {weight} bytes, at most {allowed.bytes} may leave")
    content = RecordDict()
    for name, record in given.items():
        if type(name) is not str:
            raise NotAllowed(f"it has a record named by a {type(name).__name__}")
        if name == "site":
            content[name] = _checked_site(record, allowed)
        elif name == "update" and allowed.reply.update:
            if allowed.reply.sums and allowed.share != "updates+sums":
                raise NotAllowed("it has sums over cases, but this site shares updates only")
            content[name] = _checked_update(record, allowed.arrays)
        elif name in allowed.reply.metrics:
            content[name] = _checked_metrics(name, record, allowed)
        else:
            raise NotAllowed(f"it has a record {short(name)}")
    behind = allowed.reply.patients if allowed.reply.sums else ()  # sums without the number of their patients can't be judged
    missing = {"site", *(["update"] if allowed.reply.update else []), *behind} - set(content)
    if missing:
        raise NotAllowed(f"it has no record {', '.join(sorted(missing))}")
    if any(content.metric_records[name]["patients"] == 0 for name in behind):
        for name, array in content.array_records["update"].items():
            if array.numpy().any():
                raise NotAllowed(f"array {name} is not all 0, but no patients are behind it")
    return content


def _checked_site(record: object, allowed: Allowed) -> ConfigRecord:
    """Exactly the site's name; in a reply to `query.join` the protocol, the request's class names and the site's SAM as well."""
    site = ConfigRecord({"name": allowed.name})
    if allowed.message == JOIN:
        site["protocol"] = PROTOCOL
        site["classes"] = list(allowed.classes)
        site["sam"] = ""
    given = _items(record, ConfigRecord, keys=site, of="record site")
    if given.get("sam"):  # asked late: a large file is read for it
        site["sam"] = allowed.sam()
    for key, value in given.items():
        if type(value) is not type(site[key]) or value != site[key]:
            raise NotAllowed(f"record site has {key} {short(value)}, not {site[key]!r}")
    return ConfigRecord({key: site[key] for key in given})


def _checked_update(record: object, slots: Mapping[str, Slot]) -> ArrayRecord:
    """Exactly the arrays of the request's weights, finite, and not a byte beside their values."""
    given = _items(record, ArrayRecord, keys=slots, of="record update")
    return ArrayRecord({name: _checked_array(name, array, slots[name]) for name, array in given.items()})


def _checked_array(name: str, array: object, slot: Slot) -> Array:
    if type(array) is not Array or type(array.data) is not bytes:
        raise NotAllowed(f"array {name} is no Array of bytes")
    data = array.data
    if array.stype != NUMPY:
        raise NotAllowed(f"array {name} has stype {short(array.stype)}")
    if array.dtype != slot.dtype or tuple(array.shape) != slot.shape:
        given = f"{short(array.dtype)} {short(array.shape)}"
        raise NotAllowed(f"array {name} is {given}, not {slot.dtype} {slot.shape}")
    # Numpy's header is Python source: it has room for comments, other types and pickles. There is one honest spelling.
    if not data.startswith(slot.header):
        raise NotAllowed(f"array {name} has a header that is not that of {slot.dtype} {slot.shape} in C order")
    if len(data) != slot.bytes:
        raise NotAllowed(f"array {name} has {len(data)} bytes of data, not {slot.bytes}")
    if not np.isfinite(np.frombuffer(data, dtype=slot.dtype, offset=len(slot.header))).all():
        raise NotAllowed(f"array {name} is not finite")
    return Array(dtype=slot.dtype, shape=slot.shape, stype=NUMPY, data=data)


def _checked_metrics(name: str, record: object, allowed: Allowed) -> MetricRecord:
    """The listed numbers, all that must be there, over enough patients."""
    if allowed.share != "updates+sums":
        raise NotAllowed(f"it has a record {name}, but this site shares updates only")
    numbers = allowed.reply.metrics[name]
    optional = {key for key, number in numbers.items() if number.optional}
    given = _items(record, MetricRecord, keys=numbers, optional=optional, of=f"record {name}")
    content = MetricRecord({key: _checked_value(value, numbers[key], f"{name}.{key}") for key, value in given.items()})
    if name in allowed.reply.patients:
        patients = content["patients"]
        assert isinstance(patients, int)  # wire.COUNT says so
        zeros = allowed.reply.sums and patients == 0  # sums of nobody, which is looked at once the arrays are there
        if patients < allowed.min_patients and not zeros:
            raise NotAllowed(f"record {name} is over {patients} patients, fewer than {allowed.min_patients}")
    return content


def _checked_value(value: object, number: Number, of: str) -> Any:
    """A plain int or float, or a list of them; what comes out is what was checked, whatever class went in."""
    if number.length is None:
        return _checked_number(value, number, of)
    if type(value) is not list or len(value) != number.length:
        raise NotAllowed(f"{of} is {short(value)}, not a list of {number.length}")
    return [_checked_number(item, number, of) for item in value]


def _checked_number(value: object, number: Number, of: str) -> int | float:
    plain: int | float
    if isinstance(value, int) and not isinstance(value, bool):
        plain = int(value)
    elif isinstance(value, float) and not number.whole:
        plain = float(value)  # numpy's float64 is a float too
    else:
        raise NotAllowed(f"{of} is {short(value)}, not a {'whole number' if number.whole else 'number'}")
    if not number.low <= plain <= number.high:  # the bounds are finite: NaN and Inf are outside
        raise NotAllowed(f"{of} is {short(plain)}, not from {number.low} to {number.high}")
    if number.digits is not None and plain != float(f"{plain:.{number.digits}g}"):
        raise NotAllowed(f"{of} is {short(plain)}, which has more than {number.digits} significant digits")
    return plain


def _items(
    record: object, kind: type[Record], *, keys: Mapping[str, object], optional: Set[str] = frozenset(), of: str
) -> dict[str, Any]:
    """What is in a record of that kind with all of `keys`, but perhaps the optional ones, and no other."""
    if type(record) is not kind:
        raise NotAllowed(f"{of} is a {type(record).__name__}")
    given: dict[str, Any] = dict(record.items())
    extra = [key for key in given if type(key) is not str or key not in keys]
    if extra:
        raise NotAllowed(f"{of} has a key {short(extra[0])}")
    missing = keys.keys() - given.keys() - optional
    if missing:
        raise NotAllowed(f"{of} has no key {', '.join(sorted(missing))}")
    return given


def short(value: object) -> str:
    """For the site's log: enough to find it, on one line, and never a megabyte."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text)} characters)"
