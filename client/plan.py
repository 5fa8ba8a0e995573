"""The run's settings as a site receives them in a request, checked on arrival."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from client.faults import SiteFault
from configs.schema import Cost, Network, Preprocess, Query, Sam, Settings, Train
from strategies.networks import build_network
from strategies.query.strategy import Strategy
from strategies.records import Weights


class Plan(Settings):
    """What a site needs to know of the run."""

    seed: int
    classes: list[str]
    preprocess: Preprocess
    network: Network
    train: Train
    sam: Sam
    query: Query
    cost: Cost = Cost()
    needs_one_sam: bool = False
    coordinated: bool = False
    """Whether budgets follow kinds of cases that sites find together; otherwise nobody has a reason to ask for them."""
    adaptive: bool = False
    """Whether budgets follow quantiles of scores; otherwise nobody has a reason to be told any."""
    cycles: int = 0
    """Of the run: after the last one there is no grant, and what only a grant needs is not told."""

    def tells_quantiles(self, cycle: int) -> bool:
        """Whether the grant that follows a cycle's assessment goes by quantiles of scores."""
        return self.adaptive and cycle < self.cycles

    def switches(self, strategy: Strategy) -> bool:
        """Whether it depends on a switch which model a strategy asks: not where it asks none, or says itself which."""
        return self.query.model == "switch" and strategy.needs_model and not strategy.models

    def tells_balance(self, strategy: Strategy, cycle: int) -> bool:
        """Whether what is annotated after a cycle bears on a switch whose scores a grant follows."""
        return self.switches(strategy) and cycle + 1 < self.cycles

    @classmethod
    def read(cls, settings: Mapping[str, Any] | None) -> Plan:
        """Raises SiteFault when the coordinator sent settings that this version does not understand."""
        try:
            return cls.model_validate(settings or {})
        except ValidationError as error:
            raise SiteFault("bad-request", f"the coordinator's settings are not understood: {error}") from error


def network_for(plan: Plan) -> nn.Module:
    """The run's network, on the CPU, with initial weights that follow from the run's seed."""
    network: nn.Module = build_network(
        plan.network.name,
        in_channels=plan.preprocess.in_channels,
        classes=len(plan.classes),
        norm=plan.network.norm,
        dropout=plan.network.dropout,
        seed=plan.seed,
        head=plan.network.head,
    )
    return network


def network_with(plan: Plan, weights: Weights | Mapping[str, Tensor]) -> nn.Module:
    """The run's network, on the CPU, with copies of the given weights; none are drawn that would be overwritten.

    Raises:
        SiteFault: names or shapes are not the network's.
    """
    with torch.device("meta"):
        network = network_for(plan)
    state = {name: torch.as_tensor(value).clone() for name, value in weights.items()}
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise SiteFault("bad-request", f"the weights that came do not fit {type(network).__name__}: {error}") from error
    return network
