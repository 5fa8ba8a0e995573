"""Flower's Grid in one process: the same ServerApp and ClientApp, deterministic, without Ray, ready at once.

Every message and reply is really serialised to Flower's wire format and parsed again, as between machines, so that
nothing is shared by accident and the bytes that would travel are counted. A message is carried out when its reply is
pulled, one at a time: only one site's data is in memory.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

RUN_ID = 1
SERVER_NODE = 1
FIRST_NODE = 2
CLIENT_APP_FAILED = 2


class InlineGrid(Grid):
    """Runs a ClientApp once per node, in order, in this process.

    Args:
        app: the ClientApp of all nodes.
        node_configs: one per node; node ids follow their order.
        run_config: what the nodes' `context.run_config` holds.

    Attributes:
        bytes_down, bytes_up: serialised size of all messages and replies so far.
    """

    def __init__(self, app: ClientApp, node_configs: Iterable[Mapping[str, str | int]], *, run_config: Mapping[str, str]) -> None:
        self._app = app
        self._contexts = {
            FIRST_NODE + rank: Context(
                run_id=RUN_ID,
                node_id=FIRST_NODE + rank,
                node_config=dict(config),
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for rank, config in enumerate(node_configs)
        }
        self._waiting: dict[str, Message] = {}
        self._sent = 0
        self._sweeps = False
        self.bytes_down = 0
        self.bytes_up = 0
        # Flower sets these when it starts an app; Message() needs them. This is the only place that does.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN_ID, 1, SERVER_NODE

    @contextmanager
    def swept(self) -> Iterator[None]:
        """While this lasts, what a site leaves behind is freed as soon as its reply is out.

        Flower's records and MONAI's networks refer to themselves, so that Python frees them only when it looks for such
        rings: rarely, and too late where fifty sites take turns in one process. Looking takes milliseconds once the half
        million objects of the libraries are set aside.
        """
        self._sweeps = True
        gc.freeze()
        try:
            yield
        finally:
            gc.unfreeze()
            self._sweeps = False

    def set_run(self, run: Run) -> None:
        """There is one run only."""

    @property
    def run(self) -> Run:
        return Run.create_empty(RUN_ID)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; contents stay shared until they are carried out."""
        ids = []
        for message in messages:
            self._sent += 1
            ids.append(f"message-{self._sent:08d}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Carry out the first of the given messages that still waits and return its reply; call again for the next."""
        for message_id in message_ids:
            if message_id in self._waiting:
                return [self._carry_out(self._waiting.pop(message_id))]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        ids = list(self.push_messages(messages))
        return [reply for message_id in ids for reply in self.pull_messages([message_id])]

    def _carry_out(self, message: Message) -> Message:
        wire = message_to_proto(message).SerializeToString()
        self.bytes_down += len(wire)
        arrived = message_from_proto(ProtoMessage.FromString(wire))
        del wire
        context = self._contexts[message.metadata.dst_node_id]
        try:
            reply = self._app(arrived, context)
        except Exception as error:  # as Flower does: the type and text of an exception would travel
            reply = Message(Error(code=CLIENT_APP_FAILED, reason=f"{type(error).__name__}: {error}"), reply_to=arrived)
        del arrived
        back = message_to_proto(reply).SerializeToString()
        del reply
        if self._sweeps:
            gc.collect()
        self.bytes_up += len(back)
        return message_from_proto(ProtoMessage.FromString(back))
