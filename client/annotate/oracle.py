"""A simulated expert: hidden labels, read only for cases that were requested, given after a scheduled delay."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from client.annotate.proposal import propose
from client.faults import SiteFault
from client.plan import Plan
from client.site import Site
from client.store import Request
from strategies.records import Case


class Oracle:
    """Reads `hidden/` of the workspace, which nothing else reads, and counts every reading."""

    name = "oracle"

    def __init__(self, site: Site, plan: Plan) -> None:
        self._site, self._plan = site, plan
        self.reads = 0
        path = site.workspace / "hidden" / "schedule.json"
        try:
            schedule = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise SiteFault("bad-data", f"cannot read {path}, which says when the simulated expert answers: {error}") from error
        self._delay: dict[str, int] = schedule["delay"]
        self._absent: set[int] = set(schedule["absent_cycles"])

    def publish(self, requests: Sequence[Request]) -> None:
        """The oracle is asked directly; where experts begin with proposals, they are made now, by the model of the day."""
        for request in requests if self._plan.cost.proposals else ():
            propose(self._site, self._plan, request)

    def answers(self, requests: Sequence[Request], *, cycle: int, tick: int) -> list[tuple[Request, NDArray[np.uint8] | str]]:
        """Labels of the requests whose delay, in ticks, is over; none in a cycle in which the expert is away."""
        if cycle in self._absent:
            return []
        due = [r for r in requests if tick >= r.tick + self._delay.get(r.case.id, 0)]
        return [(request, self.read(request.case)) for request in due]

    def read(self, case: Case) -> NDArray[np.uint8]:
        """The hidden label of a case, (rows, columns) uint8.

        Raises:
            SiteFault: nobody requested it. A strategy that peeks would look better than it is.
        """
        if not self._site.store.is_requested(case.id):
            raise SiteFault("invariant-broken", f"the hidden label of case {case.id} was read without a request")
        self.reads += 1
        path = self._site.workspace / "hidden" / f"{case.image}.npz"
        try:
            with np.load(path) as file:
                mask: NDArray[np.uint8] = file["mask"][case.index]
        except (OSError, KeyError, ValueError, IndexError) as error:
            raise SiteFault("bad-data", f"cannot read the hidden label {path} of case {case.id}: {error}") from error
        return mask
