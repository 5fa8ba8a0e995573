"""No query looks at a hidden label: what a site asks for is the same whatever the labels are that nobody asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from client.app import annotate, assess, train_round
from client.plan import Plan
from client.site import Site
from strategies.query import STRATEGIES
from strategies.records import Weights
from strategies.wire import ANNOTATE, ASSESS, TRAIN, Request, pack_weights

Make = Callable[..., tuple[Site, Plan, Weights]]
Asked = list[tuple[str, float, str]]

NEEDS = {
    "dropout": ("network.dropout=0.2", "query.passes=2"),
    "evidential head": ('network.head="evidential"',),
    "local model": (),
    "training alone": (),
    "embeddings": (),
    "model": (),
}


NAMES = [
    *sorted(STRATEGIES.keys() - {"random", "least_confidence", "margin", "vote_entropy"}),
    "entropy+balanced",
    "entropy+switch",
]
"""One of each kind: the others look at what `entropy` and `bald` look at."""


def with_noise(site: Site, copy: Path) -> Site:
    """A copy of the site in which labels are noise, but for those that were asked for."""
    shutil.copytree(site.workspace, copy)
    asked = {case.id for case in site.store.cases("labelled", "requested")}
    rng = np.random.default_rng(9)
    for image in site.store.images("pool"):
        with np.load(copy / "hidden" / f"{image.id}.npz") as file:
            kept = dict(file)
        for case in site.store.cases():
            if case.image == image.id and case.id not in asked:
                kept["mask"][case.index] = rng.integers(0, 3, kept["mask"][case.index].shape)
        np.savez(copy / "hidden" / f"{image.id}.npz", **kept)
    return Site(copy)


def asks_for(site: Site, plan: Plan, weights: Weights, *, cases: int) -> Asked:
    """Train a round, score the pool and carry a grant out, as the messages of a cycle do; experts take their time."""
    schedule = {"delay": {case.id: 99 for case in site.store.cases("unlabelled")}, "absent_cycles": []}
    (site.workspace / "schedule.json").write_text(json.dumps(schedule))
    last = plan.train.rounds_per_cycle
    request = Request(cycle=1, round=last, tick=2, total_steps=8, grant=cases, mean_balance=0.5, run="r")
    for handler, kind in ((train_round, TRAIN), (assess, ASSESS), (annotate, ANNOTATE)):
        content = RecordDict({"weights": pack_weights(weights)})
        handler(site, plan, request, Message(content, dst_node_id=1, message_type=kind))
    return [(one.case.id, one.score, one.reason) for one in site.store.open_requests()]


@pytest.mark.usefixtures("flower_runtime")
@pytest.mark.parametrize("name", NAMES)
def test_labels_that_nobody_asked_for_change_no_request(joined: Make, tmp_path: Path, name: str) -> None:
    strategy = name.removesuffix("+switch")
    needs = [item for need in STRATEGIES[name.split("+")[0]].needs for item in NEEDS[need]]
    model = ["query.model=switch"] if name.endswith("+switch") else []
    site, plan, weights = joined(f"query.strategy={strategy}", "train.local_steps=1", *needs, *model)
    other = with_noise(site, tmp_path / "noise")
    asked = asks_for(site, plan, weights, cases=4)
    assert len(asked) == 4
    assert asked == asks_for(other, plan, weights, cases=4)
