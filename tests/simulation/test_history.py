"""The record of a real run holds what is promised: every event, every field where it applies, and sums that add up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests_support import TINY, events

import client.app as client_app
from client.site import Site
from simulation.run import simulate

Config = Callable[..., Path]
SITES = {"north", "south", "west"}

TRAFFIC = {"bytes_up", "bytes_down"}
OF_SITES: dict[str, set[str]] = {
    "join": {"cases", "labelled", "unlabelled", *TRAFFIC},
    "grant": {"granted"},
    "annotate": {"granted", "received", "labelled", "unlabelled", "seconds", *TRAFFIC},
    "train": {"losses", "labelled", "labels_trained", "unlabelled", "seconds", *TRAFFIC},
    "assess": {"dice", "dice_by_class", "unlabelled", "seconds", *TRAFFIC},
    "refused": {"code", "reference"},
    "late": set(),
    "resume": set(),
}
"""Event to what it tells of each site."""

OF_ALL: dict[str, set[str]] = {
    "annotate": {"labels_total"},
    "train": {"labels_total"},
    "assess": {"dice_mean", "dice_worst", "dice_mean_test", "labels_total"},
    "end": {"dice_mean", "dice_worst", "dice_mean_test", "labels_total"},
}
"""Event to what it tells of all sites together."""


@pytest.fixture(scope="module")
def record(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """A run of two cycles in which nothing is withheld, south fails in one round, and the run stops once and goes on."""
    root = tmp_path_factory.mktemp("history")
    config = root / "tiny.toml"
    config.write_text(TINY.format(root=tiny_data))
    honest: Callable[..., Any] = vars(client_app)["train"]
    calls: list[str] = []

    def train(site: Site, *args: Any, **kwargs: Any) -> Any:
        calls.append(site.name)
        if calls.count("south") == 1 and site.name == "south":
            raise FloatingPointError("NaN in a loss")
        if len(calls) == 8:
            raise KeyboardInterrupt
        return honest(site, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_app, "train", train)
        with pytest.raises(SystemExit):
            simulate(config, out=root / "run")
        return events(simulate(config, out=root / "run", resume=True))


def of_kind(record: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in record if event["event"] == kind]


def test_every_event_says_what_it_is_and_when(record: list[dict[str, Any]]) -> None:
    assert {event["event"] for event in record} == {"start", "end", *OF_SITES} - {"late"}
    for event in record:
        assert event["schema"] == 1
        assert type(event["cycle"]) is type(event["round"]) is int
        assert event["time"]
    cycle = ["train", "train", "assess"]
    assert [event["event"] for event in record if event["event"] not in ("refused", "resume")] == [
        *("start", "join", "grant", "annotate"),
        *(*cycle, "grant", "annotate"),
        *(*cycle, "end"),
    ]
    when = [(event["cycle"], event["round"]) for event in of_kind(record, "train")]
    assert when == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert [(event["cycle"], event["round"]) for event in of_kind(record, "assess")] == [(1, 0), (2, 0)]
    assert [event["cycle"] for event in of_kind(record, "annotate")] == [0, 1]


def test_every_event_holds_its_fields_and_nothing_is_null_that_no_site_withholds(record: list[dict[str, Any]]) -> None:
    for event in record:
        kind = event["event"]
        if kind in OF_SITES:
            assert event["sites"], kind
        for name, told in event.get("sites", {}).items():
            assert name in SITES
            assert OF_SITES[kind] <= {key for key, value in told.items() if value is not None}, (kind, name)
        assert OF_ALL.get(kind, set()) <= {key for key, value in event.items() if value is not None}, kind


def test_a_refusal_has_its_code_and_the_site_is_not_in_the_round(record: list[dict[str, Any]]) -> None:
    (refused,) = of_kind(record, "refused")
    assert (refused["step"], refused["cycle"], refused["round"]) == ("train", 1, 1)
    assert {name: why["code"] for name, why in refused["sites"].items()} == {"south": "not-finite"}
    taking_part = [set(event["sites"]) for event in of_kind(record, "train")]
    assert taking_part == [SITES - {"south"}, SITES, SITES, SITES]


def test_sums_over_sites_are_those_of_the_sites(record: list[dict[str, Any]]) -> None:
    for event in of_kind(record, "assess"):
        dice = [site["dice"] for site in event["sites"].values()]
        assert event["dice_mean"] == pytest.approx(sum(dice) / 3)
        assert event["dice_worst"] == min(dice)
        assert event["dice_mean_test"] == pytest.approx(sum(site["dice_test"] for site in event["sites"].values()) / 3)
        for site in event["sites"].values():
            assert len(site["dice_by_class"]) == 2
            assert site["dice"] == pytest.approx(sum(site["dice_by_class"]) / 2)
    received = 0
    for granted, annotated in zip(of_kind(record, "grant"), of_kind(record, "annotate"), strict=True):
        for name, site in annotated["sites"].items():
            assert site["granted"] == site["received"] == granted["sites"][name]["granted"]
            received += site["received"]
        assert annotated["labels_total"] == received == sum(site["labelled"] for site in annotated["sites"].values())
    for event in of_kind(record, "train"):
        for site in event["sites"].values():
            assert site["labels_trained"] == site["labelled"]
            assert {"total", "supervised", "consistency"} <= set(site["losses"])
    last = of_kind(record, "assess")[-1]
    assert {key: record[-1][key] for key in OF_ALL["end"]} == {key: last[key] for key in OF_ALL["end"]}
