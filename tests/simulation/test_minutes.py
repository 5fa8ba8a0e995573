"""Experts' minutes in a run's learning curve are those of the labels beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests_support import events

from client.store import Store
from server.report_data import learning_curve
from simulation.run import simulate

Config = Callable[..., Path]
SITES = ("north", "south", "west")


@pytest.mark.parametrize("delay", [0, 4])
def test_minutes_of_a_point_are_those_that_its_labels_cost(tiny_config: Config, tmp_path: Path, delay: int) -> None:
    """Some come in answer to the grant, some while a round is trained, and the last ones in the last round."""
    options = [f"experts.delay={delay}", "federation.deadline_polls=1", "budget.cold_start=4"]
    folder = simulate(tiny_config(local_steps=1), options, out=tmp_path / "run")
    trained = [event["sites"] for event in events(folder) if event["event"] == "train"]
    points = learning_curve(folder)
    for point, sites in zip(points, (trained[1], trained[3]), strict=True):
        spent = 0
        for name in SITES:
            store = Store.at(folder / "sites" / name / "site.db")
            spent += round(sum(minutes for _, minutes in store.costs()[: sites[name]["labels_trained"]]))
            store.close()
        assert point.labels == sum(site["labels_trained"] for site in sites.values())
        assert point.minutes == spent > 0


def test_minutes_and_balance_wait_for_labels_of_enough_patients(tiny_config: Config, tmp_path: Path) -> None:
    """Each label costs a minute, so minutes say of how many labels a site tells; two patients lie between two answers."""
    cost = ["cost.slice=1", "cost.image=0", "cost.contour=0", "cost.length_px=0"]
    options = [*cost, "privacy.min_patients=2", "query.model=switch", "federation.deadline_polls=1"]
    folder = simulate(tiny_config(cycles=4, rounds_per_cycle=1, local_steps=1), options, out=tmp_path / "run")
    record = events(folder)
    assert not [event for event in record if event["event"] == "refused"]
    lags = 0
    for name in SITES:
        store = Store.at(folder / "sites" / name / "site.db")
        patients = [case.split(".")[0] for case, _ in store.costs()]
        store.close()
        told = [event["sites"][name] for event in record if event["event"] in ("annotate", "train")]
        last, balance = 0, None
        for site in told:
            now = site["minutes"] or 0
            assert now <= site["labelled"]
            assert now == last or len(set(patients[last:now])) >= 2
            lags += now < site["labelled"]
            if site.get("balance") is not None:
                assert now > last or balance in (None, site["balance"])
                balance = site["balance"]
            last = now
        assert balance is not None
        assert last > 0
    assert lags, "some labels wait for those of another patient"


def test_a_site_without_a_label_does_not_hide_what_the_others_spent(tiny_config: Config, tmp_path: Path) -> None:
    config, options = tiny_config(cycles=1, rounds_per_cycle=1, local_steps=1), ["federation.deadline_polls=1"]
    folder = simulate(config, options, out=tmp_path / "run", prepare_only=True)
    (folder / "sites" / "south" / "schedule.json").write_text('{"delay": {}, "absent_cycles": [0, 1]}')
    simulate(config, options, out=folder, resume=True)
    (point,) = learning_curve(folder)
    assert point.labels == 4
    assert point.minutes is not None
    assert point.minutes > 0
