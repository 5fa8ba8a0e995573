"""UniMatch with the weight of what unlabelled images teach held still, beside that which falls in the course of a run.

It is how the fall was chosen, so it is read on validation patients alone.
"""

from __future__ import annotations

from dataclasses import replace

import semi_runs
from results import Job, run_job
from semi_runs import FEW, job

from strategies.semi import FRAMEWORKS

STILL = (1.0, 4.0)
"""The paper's weight, and that which the fall begins with."""


def still(data: str, weight: float) -> Job:
    """UniMatch without SAM on two labelled slices a site, with `weight` from the first step to the last."""
    of = job(data, "unimatch", "no SAM", FEW)
    return replace(of, name=of.name.replace("-unimatch-", f"-unimatch_at_{weight:g}-"))


def stills() -> list[tuple[Job, float]]:
    return [(still(data, weight), weight) for data in semi_runs.SETS for weight in STILL]


def run_still(of: Job, weight: float) -> None:
    """Run a seeded job of `still`: what is otherwise the framework's own is changed in its table."""
    own = FRAMEWORKS["unimatch"]
    FRAMEWORKS["unimatch"] = replace(own, weight=weight, start=1.0)
    try:
        run_job(of, semi_runs.scale.page.stem)
    finally:
        FRAMEWORKS["unimatch"] = own
