"""Who takes part, and how the coordinator talks to them: one question to many sites, answers as they arrive.

A late, failing or refusing site never blocks the others: what it did becomes an event, and the step goes on without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from server.history import Event, event
from strategies import wire

Record = TypeVar("Record")

PULL_SECONDS = 0.2
"""Pause before asking the SuperLink again when nothing had arrived."""


Traffic: TypeAlias = dict[str, int]
"""`bytes_up` and `bytes_down`, of serialised content."""


class FederationFault(RuntimeError):
    """The run can't go on: too few sites are there. What was done so far is kept; `--resume` goes on."""


@dataclass(frozen=True)
class Answer(Generic[Record]):
    """One site's reply as a record, with the bytes that its message and reply took."""

    site: str
    record: Record
    bytes_down: int
    bytes_up: int

    @property
    def traffic(self) -> Traffic:
        return {"bytes_up": self.bytes_up, "bytes_down": self.bytes_down}


@dataclass
class Problems:
    """Sites that refused or did not answer in a step, and the bytes of all messages to them that came to nothing."""

    refused: dict[str, dict[str, str]] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    spent: dict[str, Traffic] = field(default_factory=dict)

    def spend(self, name: str, *, down: int, up: int) -> None:
        """Count a message to a site and its useless reply, if there was one."""
        before = self.spent.get(name, {"bytes_up": 0, "bytes_down": 0})
        self.spent[name] = {"bytes_up": before["bytes_up"] + up, "bytes_down": before["bytes_down"] + down}

    def events(self, step: str, *, cycle: int, round: int) -> list[Event]:
        """A `refused` and a `late` event where there is something to tell."""
        refused = {name: {**why, **self.spent.get(name, {})} for name, why in sorted(self.refused.items())}
        late = {name: self.spent.get(name, {}) for name in sorted(self.late)}
        told = {"refused": refused, "late": late}
        return [event(kind, cycle=cycle, round=round, step=step, sites=sites) for kind, sites in told.items() if sites]

    @property
    def remedy(self) -> str:
        """What to do about the refusals, for who runs the coordinator."""
        if self.refused and all(what["code"] == "storage" for what in self.refused.values()):
            return (
                "Their disks are full or not writable, so their logs (site.log) may hold nothing either: free some space, "
                "then go on with --resume"
            )
        broken = any(what["code"] == "invariant-broken" for what in self.refused.values())
        told = "The logs of those sites (site.log) hold the details under the reference; go on with --resume once they are mended"
        return told + (", and cleared where one has stopped (wardround site clear WORKSPACE)" if broken else "")


class Sites:
    """The joined sites. Names are what history and seeds know; node ids change with every start."""

    def __init__(self, grid: Grid, nodes: Mapping[str, int], *, timeout_s: float, run: str, settings: Mapping[str, Any]) -> None:
        self._grid, self._nodes, self._timeout_s = grid, dict(nodes), timeout_s
        self._run, self._settings = run, settings

    @property
    def names(self) -> list[str]:
        return sorted(self._nodes)

    def ask(
        self,
        kind: str,
        requests: Mapping[str, wire.Request],
        problems: Problems,
        *,
        unpack: Callable[[RecordDict], Record],
        weights: ArrayRecord | None = None,
        weights_for: Collection[str] | None = None,
    ) -> Iterator[Answer[Record]]:
        """Send each site its request and yield the answers as they arrive; the rest goes to `problems`.

        `weights` go to the sites of `weights_for`, by default to all.

        Answers are not kept here: who consumes them one by one holds one update in memory, however many sites there are.
        A reply that is not what it should be counts as a refusal; it must not end the run of the others.
        """
        shared = wire.size(RecordDict({"weights": weights})) if weights is not None else 0
        contents: dict[int, RecordDict] = {}
        names: dict[int, str] = {}
        down: dict[str, int] = {}
        for name, request in requests.items():
            content = wire.pack_request(_with(request, self._run, self._settings))
            down[name] = wire.size(content)
            if weights is not None and (weights_for is None or name in weights_for):
                content["weights"] = weights
                down[name] += shared
            contents[self._nodes[name]], names[self._nodes[name]] = content, name
        for node, reply in exchange(self._grid, contents, kind, timeout_s=self._timeout_s):
            name = names[node]
            if reply is None:
                problems.late.append(name)
                problems.spend(name, down=down[name], up=0)
                continue
            refusal = _refusal(reply)
            if refusal is None:
                try:
                    record = unpack(reply.content)
                except (KeyError, TypeError, ValueError):
                    refusal = {"code": "bad-request", "reference": "coordinator"}
            if refusal is not None:
                problems.refused[name] = refusal
                problems.spend(name, down=down[name], up=_size(reply))
                continue
            yield Answer(name, record, bytes_down=down[name], bytes_up=wire.size(reply.content))


def exchange(
    grid: Grid, contents: Mapping[int, RecordDict], kind: str, *, timeout_s: float
) -> Iterator[tuple[int, Message | None]]:
    """Push a message to each node and yield (node, reply) as replies come; (node, None) for those late at the end.

    Late is who has not replied `timeout_s` after the last reply of anybody: sites that are worked off one by one, as in
    one process, don't run out of time because there are many.
    """
    nodes = list(contents)
    ids = grid.push_messages([Message(content, node, kind) for node, content in contents.items()])
    waiting = {message_id: node for message_id, node in zip(ids, nodes, strict=True) if message_id}
    lost = [node for node in nodes if node not in waiting.values()]
    deadline = time.monotonic() + timeout_s
    while waiting:
        came = False
        for reply in grid.pull_messages(list(waiting)):
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                came = True
                yield node, reply
        now = time.monotonic()
        if came:
            deadline = now + timeout_s
        elif now > deadline:
            break
        else:
            time.sleep(PULL_SECONDS)
    for node in [*lost, *waiting.values()]:
        yield node, None


def _size(reply: Message) -> int:
    """Bytes of a reply's content; 0 where Flower itself failed and there is none."""
    return wire.size(reply.content) if reply.has_content() else 0


def _refusal(reply: Message) -> dict[str, str] | None:
    if reply.has_error():  # Flower's own failure: its text may hold anything, so only its number goes on record
        return {"code": "internal", "reference": f"flower-{reply.error.code}"}
    refused = wire.unpack_refused(reply.content)
    if refused is None:
        return None
    code = refused.code if refused.code in wire.CODES else "internal"
    return {"code": code, "reference": refused.reference[:32]}


def join(
    grid: Grid,
    *,
    run: str,
    settings: Mapping[str, Any],
    classes: list[str],
    expected: int,
    timeout_s: float,
    wait_s: float,
    waiting: Callable[[int], None],
) -> tuple[Sites, dict[str, dict[str, Any]], Problems]:
    """Wait for the nodes, ask who they are, and refuse who doesn't fit.

    Returns the sites, what each told of its pool with its traffic, and the problems.

    Raises:
        FederationFault: nobody came, two sites gave one name, or they would train different SAMs.
    """
    deadline = time.monotonic() + wait_s
    nodes = sorted(grid.get_node_ids())
    while len(nodes) < expected and time.monotonic() < deadline:
        waiting(len(nodes))
        time.sleep(PULL_SECONDS)
        nodes = sorted(grid.get_node_ids())
    content = wire.pack_request(_with(wire.Request(), run, settings))
    down = wire.size(content)
    problems = Problems()
    joined: dict[str, int] = {}
    pools: dict[str, dict[str, Any]] = {}
    sams: dict[str, list[str]] = {}
    for node, reply in exchange(grid, dict.fromkeys(nodes, content), wire.JOIN, timeout_s=timeout_s):
        if reply is None:
            problems.late.append(f"node-{node}")
            problems.spend(f"node-{node}", down=down, up=0)
            continue
        name, refusal = f"node-{node}", _refusal(reply)
        if refusal is not None:
            said = wire.unpack_refused(reply.content) if reply.has_content() else None
            name = said.name if said and said.name else name
        else:
            try:
                answer = wire.unpack_joined(reply.content)
            except (KeyError, TypeError, ValueError):
                refusal = {"code": "bad-request", "reference": "coordinator"}
            else:
                name = answer.name
                if answer.protocol != wire.PROTOCOL:
                    refusal = {"code": "protocol-mismatch", "reference": ""}
                elif list(answer.classes) != classes:
                    refusal = {"code": "classes-mismatch", "reference": ""}
        if refusal is not None:
            problems.refused[name] = refusal
            problems.spend(name, down=down, up=_size(reply))
            continue
        if answer.name in joined:
            raise FederationFault(f'two nodes say they are site "{answer.name}": give each site.toml a name of its own')
        joined[answer.name] = node
        sams.setdefault(answer.sam, []).append(answer.name)
        pools[answer.name] = {
            "cases": answer.cases,
            "labelled": answer.labelled,
            "unlabelled": answer.unlabelled,
            "bytes_up": wire.size(reply.content),
            "bytes_down": down,
        }
    if len(sams) > 1:
        raise FederationFault(
            "the sites hold different SAMs, and what they learn of one is nothing to another, so it can't be put together: "
            + "; ".join(f"{', '.join(sorted(names))}: {sam}" for sam, names in sorted(sams.items(), key=lambda of: -len(of[1])))
            + ". Give sam_checkpoint in each site.toml the same file, or run without what needs it "
            + '(sam.adapt = "none", and another budget.rule than "coordinated")'
        )
    sites = Sites(grid, joined, timeout_s=timeout_s, run=run, settings=settings)
    return sites, dict(sorted(pools.items())), problems


def _with(request: wire.Request, run: str, settings: Mapping[str, Any]) -> wire.Request:
    return wire.Request(**{**vars(request), "run": run, "settings": settings})
