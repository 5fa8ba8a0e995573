"""A round's losses leave where enough patients were drawn for them, and by nothing that came to the site later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from client.annotate.worklist import collect
from client.app import train_round
from client.plan import Plan
from client.site import Site
from client.train import When, _Draw, train
from strategies.records import Choice, SiteUpdate, Weights
from strategies.wire import TRAIN, Request, pack_weights, unpack_update

pytestmark = pytest.mark.usefixtures("flower_runtime")

Made = tuple[Site, Plan, Weights]
SUPERVISED = ("train.framework=supervised", "sam.enabled=false")


def told(site: Site, plan: Plan, weights: Weights) -> SiteUpdate:
    """The site's reply to a round."""
    request = Request(cycle=1, round=1, tick=2, total_steps=8, run="r")
    message = Message(RecordDict({"weights": pack_weights(weights)}), dst_node_id=1, message_type=TRAIN)
    return unpack_update(train_round(site, plan, request, message))


def test_a_round_that_is_told_again_tells_no_more_than_before(joined: Callable[..., Made]) -> None:
    """The label of a second patient comes in between: it was no part of the round."""
    site, plan, weights = joined("privacy.min_patients=2", *SUPERVISED, labels=1)
    assert told(site, plan, weights).losses == {}
    (labelled,) = site.store.cases("labelled")
    other = next(case for case in site.store.cases("unlabelled") if case.patient != labelled.patient)
    site.store.request("r", 1, cases=1, choices=[Choice(other.id, 0.0, "why")], tick=2)
    collect(site, plan, run="r", cycle=1, tick=2)
    assert len({case.patient for case in site.store.cases("labelled")}) == 2
    again = told(site, plan, weights)
    assert (again.losses, again.losses_patients) == ({}, None)


@pytest.mark.parametrize(("batch", "tells"), [(1, False), (10, True)])
def test_losses_of_few_that_were_drawn_stay(joined: Callable[..., Made], batch: int, tells: bool) -> None:
    """There are labels of enough patients, and a step looks at one or at all."""
    site, plan, weights = joined(
        "privacy.min_patients=3", *SUPERVISED, "train.local_steps=1", f"train.batch_labelled={batch}", labels=10
    )
    patients = len({case.patient for case in site.store.cases("labelled")})
    assert patients >= 3
    reply = told(site, plan, weights)
    assert reply.losses.keys() == ({"supervised", "total"} if tells else set())
    assert reply.losses_patients == (patients if tells else None)


@pytest.mark.parametrize("framework", ["mean_teacher", "cross_pseudo"])
def test_patients_behind_a_loss_are_those_of_the_batches(
    joined: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    """SAM is asked in every second step of three, so about the images of two batches."""
    site, plan, weights = joined(
        *(f"train.framework={framework}", "train.local_steps=3", "train.batch_labelled=1", "train.batch_unlabelled=1"),
        *("sam.enabled=true", "sam.trust=false", "sam.min_iou=0", "sam.every=2", "sam.adapt=decoder", "sam.adapt_steps=1"),
        "train.proximal_mu=0.1",
        labels=3,
    )
    known: list[set[str]] = []
    others: list[set[str]] = []
    batches = _Draw.batches

    def watched(self: _Draw, unlabelled: Any) -> Iterator[Any]:
        for drawn in batches(self, unlabelled):
            known.append({case.patient for case in drawn[1]})
            others.append({case.patient for case in drawn[2]})
            yield drawn

    monkeypatch.setattr(_Draw, "batches", watched)
    done = train(site, plan, When(1, 1, 6, 8), weights, helpers={})
    counted = {name: count for name, count in done.patients.items() if name != "adapter"}
    labelled = len(set.union(*known))
    assert counted == {
        **dict.fromkeys(("supervised", "proximal", "total"), labelled),
        "consistency": len(set.union(*others)),
        "sam": len(others[0] | others[2]),
    }
    assert done.patients.keys() == done.losses.keys()
    shown = {case.patient for case in site.store.cases("labelled") if site.store.label(case.id).any()}
    assert done.patients["adapter"] == len(shown) > 0, "one step looks at all three labels, where they show a structure"
