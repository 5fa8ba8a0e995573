"""The in-process Grid: nothing is shared between the two sides, one message at a time, every byte counted."""

from __future__ import annotations

import gc
import weakref

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto

from simulation.inline import InlineGrid


def echo_app(seen: list[int]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen.append(context.node_id)
        array = message.content.array_records["weights"]["w"].numpy()
        return Message(RecordDict({"up": ArrayRecord({"w": Array(array * 2)})}), reply_to=message)

    @app.query("boom")
    def boom(message: Message, context: Context) -> Message:
        raise ValueError("the text travels, as in Flower")

    return app


def grid_of(seen: list[int], nodes: int = 3) -> InlineGrid:
    return InlineGrid(echo_app(seen), [{"partition-id": rank} for rank in range(nodes)], run_config={})


def message(node: int, values: np.ndarray, kind: str = "train") -> Message:
    return Message(RecordDict({"weights": ArrayRecord({"w": Array(values)})}), node, kind)


def test_a_message_is_carried_out_when_its_reply_is_pulled() -> None:
    seen: list[int] = []
    grid = grid_of(seen)
    nodes = list(grid.get_node_ids())
    ids = list(grid.push_messages([message(node, np.ones(3, np.float32)) for node in nodes]))
    assert seen == []
    assert len(list(grid.pull_messages(ids))) == 1
    assert seen == nodes[:1]
    rest = [reply for _ in range(5) for reply in grid.pull_messages(ids)]
    assert seen == nodes
    assert [reply.metadata.src_node_id for reply in rest] == nodes[1:]


def test_arrays_are_copied_by_the_wire() -> None:
    grid = grid_of([])
    values = np.arange(4, dtype=np.float32)
    node = next(iter(grid.get_node_ids()))
    (reply,) = grid.send_and_receive([message(node, values)])
    np.testing.assert_array_equal(reply.content.array_records["up"]["w"].numpy(), values * 2)
    np.testing.assert_array_equal(values, np.arange(4, dtype=np.float32))


def test_bytes_are_those_of_the_serialised_messages() -> None:
    grid = grid_of([])
    node = next(iter(grid.get_node_ids()))
    sent = message(node, np.zeros(1000, np.float32))
    (reply,) = grid.send_and_receive([sent])
    assert grid.bytes_down == len(message_to_proto(sent).SerializeToString()) > 4000
    assert grid.bytes_up == len(message_to_proto(reply).SerializeToString()) > 4000


def test_an_exception_travels_as_flower_would_send_it() -> None:
    grid = grid_of([])
    node = next(iter(grid.get_node_ids()))
    (reply,) = grid.send_and_receive([Message(RecordDict({"c": ConfigRecord({})}), node, "query.boom")])
    assert reply.has_error()
    assert "the text travels" in str(reply.error.reason)


class Ring:
    """Refers to itself, as Flower's records and MONAI's networks do."""

    def __init__(self) -> None:
        self.itself = self


def test_what_a_site_leaves_behind_is_gone_with_its_reply() -> None:
    left: list[weakref.ref[Ring]] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        left.append(weakref.ref(Ring()))
        return Message(RecordDict(), reply_to=message)

    grid = InlineGrid(app, [{"partition-id": 0}], run_config={})
    gc.disable()  # or it might be gone by chance
    try:
        with grid.swept():
            grid.send_and_receive([message(2, np.ones(3, np.float32))])
            assert left[0]() is None
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable()
