"""A round with sites that send what their gates should have stopped: refused here too, and the others' round goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from tests_support import events

from configs.load import load
from server.checkpoint import Ledger, State
from server.history import History
from server.rounds import Federation, train
from server.sites import FederationFault, Sites
from simulation.inline import FIRST_NODE, InlineGrid
from strategies import wire
from strategies.records import SiteUpdate, Weights

NAMES = ("north", "south", "west")
WEIGHTS: Weights = {"conv": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), "bias": np.array([0.5], np.float32)}


def update_by(change: float, labelled: int) -> SiteUpdate:
    """An update that adds `change` to every weight; the receiver knows the name from the node."""
    return SiteUpdate("", {name: np.full_like(array, change) for name, array in WEIGHTS.items()}, labelled)


@pytest.fixture
def make_round(tmp_path: Path, tiny_config: Callable[..., Path]) -> Callable[..., Ledger]:
    """Runs round 1 of cycle 1 with sites that have no gate and send the updates given, in order of `NAMES`."""

    def run(*updates: SiteUpdate, aggregate: str = "mean", min_sites: int = 1) -> Ledger:
        app = ClientApp()

        @app.train()
        def answer(message: Message, context: Context) -> Message:
            return Message(wire.pack_update(updates[context.node_id - FIRST_NODE]), reply_to=message)

        grid = InlineGrid(app, [{}] * len(updates), run_config={})
        options = [f"federation.aggregate={aggregate}", f"federation.min_sites={min_sites}"]
        nodes = {name: FIRST_NODE + rank for rank, name in enumerate(NAMES[: len(updates)])}
        federation = Federation(
            run=load(tiny_config(), options),
            sites=Sites(grid, nodes, timeout_s=5.0, run="r", settings={}),
            initial=lambda: WEIGHTS,
            folder=tmp_path,
            progress=SimpleNamespace(step=lambda *_, **__: None),
        )
        ledger = Ledger(tmp_path / "checkpoint", History(tmp_path / "history.jsonl"), State(weights=WEIGHTS), run="r")
        ledger.once(lambda state: train(federation, state, cycle=1, round=1))
        return ledger

    return run


@pytest.mark.parametrize("aggregate", ["mean", "median", "trimmed_mean"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_refused_and_the_round_goes_on(
    make_round: Callable[..., Ledger], tmp_path: Path, aggregate: str, value: float
) -> None:
    poisoned = update_by(9.0, labelled=4)
    poisoned.update["conv"][1, 0] = value
    ledger = make_round(update_by(1.0, labelled=4), poisoned, update_by(3.0, labelled=4), aggregate=aggregate)
    for name, before in WEIGHTS.items():
        np.testing.assert_allclose(
            ledger.state.weights[name].astype(float), before.astype(float) + 2.0
        )  # the mean, and the median, of 1 and 3
    trained, refused = events(tmp_path)
    assert (trained["event"], set(trained["sites"])) == ("train", {"north", "west"})
    assert (refused["event"], refused["step"], refused["cycle"], refused["round"]) == ("refused", "train", 1, 1)
    why = refused["sites"].pop("south")
    assert not refused["sites"]
    assert (why["code"], why["reference"]) == ("not-finite", "coordinator")
    assert min(why["bytes_up"], why["bytes_down"]) > 0, "what came to nothing was sent all the same"
    assert set(ledger.state.labelled) == {"north", "west"}  # nor does the label count of a refused update


def test_where_too_few_finite_updates_are_left_the_run_stops_and_the_weights_stay(
    make_round: Callable[..., Ledger], tmp_path: Path
) -> None:
    with pytest.raises(FederationFault, match=r"1 of 2 sites answered, 2 are needed.*south: not-finite"):
        make_round(update_by(1.0, labelled=4), update_by(np.nan, labelled=4), min_sites=2)
    assert not (tmp_path / "history.jsonl").exists()
    assert not (tmp_path / "checkpoint").exists()


def test_loss_terms_that_a_site_withholds_are_null_and_all_of_them_where_it_tells_nothing(
    make_round: Callable[..., Ledger], tmp_path: Path
) -> None:
    told = [
        SiteUpdate("", update_by(1.0, 3).update, 3, losses={"supervised": 0.5, "total": 0.75, "sam": 0.25}),
        SiteUpdate("", update_by(1.0, 3).update, 3, losses={"consistency": 0.25}),
        SiteUpdate("", update_by(1.0, 3).update, None),
    ]
    make_round(*told)
    (trained,) = (event for event in events(tmp_path) if event["event"] == "train")
    assert [trained["sites"][name]["losses"] for name in NAMES] == [
        {"supervised": 0.5, "total": 0.75, "sam": 0.25},
        {"supervised": None, "total": None, "consistency": 0.25},
        None,
    ]
