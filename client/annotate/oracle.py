"""A simulated expert: hidden labels, read only for cases that were requested, given after a scheduled delay.

Every reading is counted at the site that is open for a message, and `none_read_in_vain` compares the count, as the message is
answered, with the labels that came: a strategy that peeked would look better than it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from client.annotate.proposal import Proposals
from client.faults import SiteFault
from client.plan import Plan
from client.site import Site
from client.store import Request
from strategies.records import Case


@contextmanager
def none_read_in_vain(site: Site) -> Iterator[None]:
    """Around the answer to a message: each hidden label that is read meanwhile comes in as a label, and each that comes was read.

    By message, not over the run: a site that was killed between reading a label and taking it in reads it again. Says nothing
    where people annotate.

    Raises:
        SiteFault: a label was read, and not taken in, or the other way round; names the case.
    """
    before, read_before = {case.id for case in site.store.cases("labelled")}, len(site.hidden_reads)
    yield
    if site.settings.annotator != Oracle.name:
        return
    read = site.hidden_reads[read_before:]
    came = {case.id for case in site.store.cases("labelled")} - before
    if sorted(read) != sorted(came):
        odd = sorted({case for case in {*read, *came} if read.count(case) != (case in came)})[0]
        raise SiteFault(
            "invariant-broken",
            f"{len(read)} hidden labels were read, and {len(came)} labels came; case {odd} was read {read.count(odd)} times",
        )


class Oracle:
    """Reads `hidden/` of the workspace, which nothing else reads, and has the site count every reading. Answers when
    `schedule.json` beside it says."""

    name = "oracle"

    def __init__(self, site: Site, plan: Plan, *, run: str) -> None:
        self._site = site
        self._proposals = Proposals(site, plan, run=run) if plan.cost.proposals else None
        path = site.workspace / "schedule.json"
        try:
            schedule = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise SiteFault("bad-data", f"cannot read {path}, which says when the simulated expert answers: {error}") from error
        self._delay: dict[str, int] = schedule["delay"]
        self._absent: set[int] = set(schedule["absent_cycles"])

    def publish(self, requests: Sequence[Request]) -> None:
        """The oracle is asked directly; where experts begin with proposals, they are made now, by the model of the day."""
        if self._proposals is not None:
            for request in requests:
                if not request.proposed:
                    self._proposals.of(request)

    def answers(self, requests: Sequence[Request], *, cycle: int, tick: int) -> list[tuple[Request, NDArray[np.uint8] | str]]:
        """Labels of the requests whose delay, in ticks, is over; none in a cycle in which the expert is away."""
        if cycle in self._absent:
            return []
        due = [r for r in requests if tick >= r.tick + self._delay.get(r.case.id, 0)]
        return [(request, self.read(request.case)) for request in due]

    def read(self, case: Case) -> NDArray[np.uint8]:
        """The hidden label of a case, (rows, columns) uint8.

        Raises:
            SiteFault: nobody requested it.
        """
        if not self._site.store.is_requested(case.id):
            raise SiteFault("invariant-broken", f"the hidden label of case {case.id} was read without a request")
        self._site.hidden_reads.append(case.id)
        path = self._site.workspace / "hidden" / f"{case.image}.npz"
        try:
            with np.load(path) as file:
                mask: NDArray[np.uint8] = file["mask"][case.index]
        except (OSError, KeyError, ValueError, IndexError) as error:
            raise SiteFault("bad-data", f"cannot read the hidden label {path} of case {case.id}: {error}") from error
        return mask
