"""What crosses between coordinator and sites in one set of named arrays: the specialist and whatever learns beside it.

    (no prefix)        the specialist, the student of a framework; what predicts
    peer.<name>.       a framework's second network, where it has one; learns with the student and teaches it
    sam.               what is trained of SAM (`strategies/sam_adapters.py`)

All of it is sent, averaged and kept alike. A peer that stayed at its site would know that site's labels alone, and with a
few of them it would teach the student what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")

ADAPTER = "sam."
PEER = "peer."


@dataclass(frozen=True)
class GlobalModel(Generic[Value]):
    """The parts. Names of `specialist` and of each peer are those of the network's state dict; `adapter` keeps its prefix."""

    specialist: dict[str, Value]
    peers: dict[str, dict[str, Value]] = field(default_factory=dict)
    adapter: dict[str, Value] = field(default_factory=dict)

    @property
    def arrays(self) -> dict[str, Value]:
        """As one set, which `parts_of` takes apart again."""
        peers = {f"{PEER}{peer}.{name}": value for peer, state in self.peers.items() for name, value in state.items()}
        return {**self.specialist, **peers, **self.adapter}


def parts_of(arrays: Mapping[str, Value]) -> GlobalModel[Value]:
    """The global model, or an update of it, taken apart."""
    found: GlobalModel[Value] = GlobalModel({})
    for name, value in arrays.items():
        if name.startswith(ADAPTER):
            found.adapter[name] = value
        elif name.startswith(PEER):
            peer, _, own = name.removeprefix(PEER).partition(".")
            found.peers.setdefault(peer, {})[own] = value
        else:
            found.specialist[name] = value
    return found
