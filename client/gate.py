"""The gate: the one way out of a site. A Flower client mod around every handler.

Before the handler runs, the gate writes down what a reply to this request may hold (`client/allowed.py`): the records
and numbers of `strategies.wire.replies`, the request's class names, the names, dtypes and shapes of the weights that
came with it. Afterwards it compares. What fits is *built anew* from the values that were checked, in an envelope that
was made before the handler ran; so nothing leaves that the gate has not looked at: no attribute, cached chunk or
metadata field of the handler's own. What does not fit stays, all of it: the coordinator gets one code of
`strategies.wire.CODES` and a random reference. So it is with every exception, whose text Flower would otherwise send.
What it was, with traceback, file name and offending key, stands in the site's log under that reference.

Every reply, sent or refused, is in the site's egress log before it leaves.

What the gate can't do: an update that fits is numbers, and a handler that hides something in those numbers gets it out.
That is bounded by privacy budgets, not by a list.
"""

from __future__ import annotations

import logging
import math
import secrets
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from flwr.app import Array, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.common.serde import recorddict_to_proto

from client.allowed import Allowed, NotAllowed, checked, content_of
from client.egress import EgressLog, Shapes, Withheld
from client.faults import SiteFault, code_of
from strategies.records import Refused
from strategies.wire import pack_refused

LOG = logging.getLogger("wardround")
"""Where a failure goes that happens before the site, and with it the site's own log, is known."""


@dataclass(frozen=True)
class Policy:
    """What a site lets out, and where it writes that down.

    Attributes:
        name: the site's name, the only text of its own that leaves.
        share: `updates` (no number but the update) or `updates+sums`.
        min_patients: a metric over fewer patients is refused.
        egress: one line for every reply.
        log: the site's own log; it gets what the coordinator does not.
        sam: names the site's SAM; asked only where a reply does.
    """

    name: str
    share: str
    min_patients: int
    egress: EgressLog
    log: logging.Logger
    sam: Callable[[], str]

    def __post_init__(self) -> None:
        if self.share not in ("updates", "updates+sums"):
            raise ValueError(f'share is {self.share!r}: it is "updates" or "updates+sums"')
        if self.min_patients < 1:
            raise ValueError(f"min_patients is {self.min_patients}: a metric is over 1 patient at least")


PolicyOf: TypeAlias = Callable[[Context], Policy]


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
        allowed = Allowed.by(message, name=policy.name, share=policy.share, min_patients=policy.min_patients, sam=policy.sam)
        reply = call_next(message, context)
        given = content_of(reply, envelope)
        withheld = Withheld(records=len(given), bytes=_bytes_in(given))
        content = checked(given, allowed=allowed, weight=withheld.bytes)
        record(sent=True, content=_serialised(content), records=_shapes(content))
        return content
    except (KeyboardInterrupt, SystemExit):
        raise
    except NotAllowed as offence:
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
