"""The whole loop on a tiny federation: what it records, what leaves, and every choice of it by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Context, Message, RecordDict
from safetensors.numpy import load_file
from tests_support import events

import client.app as client_app
from client.egress import read as read_egress
from client.egress import verify
from client.models import load_models
from client.site import Site
from client.store import Store
from configs.faults import ConfigError
from server.sites import Sites
from simulation import run as simulation_run
from simulation.inline import InlineGrid
from simulation.run import simulate
from strategies import wire
from strategies.semi import FRAMEWORKS

Config = Callable[..., Path]
SITES = ["north", "south", "west"]


def test_the_record_counts_labels_and_bytes_as_they_were(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids: list[InlineGrid] = []

    class Counted(InlineGrid):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            grids.append(self)

    monkeypatch.setattr(simulation_run, "InlineGrid", Counted)
    folder = simulate(tiny_config(), out=tmp_path / "run")
    record = events(folder)
    assert [event["labels_total"] for event in record if event["event"] == "assess"] == [6, 9]
    for event in record:
        if event["event"] == "annotate":
            for site in event["sites"].values():
                assert site["labelled"] + site["unlabelled"] + site["outstanding"] + site["skipped"] == 12
    told = [site for event in record for site in event.get("sites", {}).values() if "bytes_up" in site]
    for key, serialised in (("bytes_up", grids[0].bytes_up), ("bytes_down", grids[0].bytes_down)):
        envelopes = serialised - sum(site[key] for site in told)
        assert 0 < envelopes < 300 * len(told), "what the record counts is what was serialised, but for the envelopes"
    for name in SITES:
        store = Store.at(folder / "sites" / name / "site.db")
        store.check_conserved()
        assert store.counts()["labelled"] == 3
        store.close()
        assert verify(folder / "sites" / name / "egress.jsonl") == []
    assert (folder / "report.html").stat().st_size > 10_000


def test_updates_alone_leave_when_a_site_shares_nothing_else(tiny_config: Config, tmp_path: Path) -> None:
    folder = simulate(tiny_config(), ['privacy.share="updates"'], out=tmp_path / "run")
    for name in SITES:
        for entry in read_egress(folder / "sites" / name / "egress.jsonl"):
            assert entry.sent
            assert set(entry.records) <= {"site", "update"}
    for event in events(folder):
        for site in event.get("sites", {}).values():
            numbers = {key: value for key, value in site.items() if key not in ("bytes_up", "bytes_down", "granted")}
            assert all(value is None for value in numbers.values()), (event["event"], site)
    assert events(folder)[-1]["event"] == "end"


OFFENCES = ["exception text", "extra record", "too few patients", "an image", "a mask in place of an array", "an oversized array"]


@pytest.mark.parametrize("how", OFFENCES)
def test_a_site_that_leaks_is_refused_and_the_round_goes_on(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    secret = "PATIENT-4711-/hospital/path"
    sent: list[bytes] = []
    grids_carry_out = InlineGrid._carry_out

    def carry_out(self: InlineGrid, message: Message) -> Message:
        reply = grids_carry_out(self, message)
        from flwr.common.serde import message_to_proto

        sent.append(message_to_proto(reply).SerializeToString())
        return reply

    honest: Callable[..., Any] = vars(client_app)["train"]

    def train(site: Site, *args: Any, **kwargs: Any) -> Any:
        if site.name == "south":
            raise RuntimeError(f"cannot read {secret}")
        return honest(site, *args, **kwargs)

    def pack(kind: str) -> Callable[..., RecordDict]:
        packer = getattr(wire, kind)

        def packed(record: Any) -> RecordDict:
            content: RecordDict = packer(record)
            if record.name == "south":
                arrays: Any = content.array_records.get("update", {})
                if how == "extra record":
                    content.config_records["site"]["note"] = secret
                elif how == "an image":
                    arrays["image"] = Array(np.frombuffer(secret.encode(), np.uint8))
                elif how == "a mask in place of an array":
                    arrays[next(iter(arrays))] = Array(np.frombuffer(secret.encode(), np.uint8))
                elif how == "an oversized array":
                    name, array = next(iter(arrays.items()))
                    arrays[name] = Array(np.append(array.numpy(), np.frombuffer(4 * secret.encode(), np.float32)))
                elif "test" in content.metric_records:
                    content.metric_records["test"]["patients"] = 0
            return content

        return packed

    monkeypatch.setattr(InlineGrid, "_carry_out", carry_out)
    step, code = "train", "reply-not-allowed"
    if how == "exception text":
        monkeypatch.setattr("client.app.train", train)
        code = "internal"
    elif how == "too few patients":
        step = "assess"
        monkeypatch.setattr(wire, "pack_assessment", pack("pack_assessment"))
    else:
        monkeypatch.setattr(wire, "pack_update", pack("pack_update"))
    folder = simulate(tiny_config(cycles=1), out=tmp_path / "run")
    refused = [event for event in events(folder) if event["event"] == "refused"]
    assert {event["step"] for event in refused} == {step}
    assert all(event["sites"]["south"]["code"] == code for event in refused)
    reference = refused[0]["sites"]["south"]["reference"]
    log = (folder / "sites" / "south" / "site.log").read_text()
    assert reference in log
    others = [event for event in events(folder) if event["event"] == step]
    assert all(set(event["sites"]) == {"north", "west"} for event in others)
    assert not any(secret.encode() in reply or b"4711" in reply for reply in sent)
    up = [site["bytes_up"] for event in events(folder) for site in event.get("sites", {}).values() if "bytes_up" in site]
    assert len(up) == len(sent), "every reply is counted, that of a refusal too"
    assert 0 < sum(len(reply) for reply in sent) - sum(up) < 300 * len(sent)
    assert secret not in (folder / "history.jsonl").read_text()


def test_restart_initial_trains_every_cycle_from_the_same_weights(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, bool, float]] = []
    honest = Sites.ask

    def ask(self: Any, kind: str, requests: Any, problems: Any, **kwargs: Any) -> Any:
        if kind == "train":
            request = next(iter(requests.values()))
            first = next(iter(kwargs["weights"].values())).numpy()
            seen.append((request.step, request.total_steps, request.fresh, float(np.abs(first).sum())))
        return honest(self, kind, requests, problems, **kwargs)

    monkeypatch.setattr(Sites, "ask", ask)
    simulate(tiny_config(), ['federation.restart="initial"'], out=tmp_path / "run")
    assert [s[:3] for s in seen] == [(0, 4, True), (2, 4, True), (0, 4, True), (2, 4, True)]
    assert seen[0][3] == seen[2][3] != seen[1][3]
    seen.clear()
    simulate(tiny_config(), out=tmp_path / "on")
    assert [s[:3] for s in seen] == [(0, 8, False), (2, 8, False), (4, 8, False), (6, 8, False)]


def test_a_run_without_grants_buys_no_labels(tiny_config: Config, tmp_path: Path) -> None:
    folder = simulate(tiny_config(per_cycle=0), out=tmp_path / "run")
    assert [event["labels_total"] for event in events(folder) if event["event"] == "assess"] == [6, 6]


@pytest.mark.parametrize("query", ["random", "random_fg", "coreset", "entropy+stochastic", "entropy+power"])
def test_every_query_runs_in_the_loop(tiny_config: Config, tmp_path: Path, query: str) -> None:
    model = {"random_fg": "local", "coreset": "both"}.get(query, "global")
    folder = simulate(
        tiny_config(rounds_per_cycle=1), [f'query.strategy="{query}"', f'query.model="{model}"'], out=tmp_path / "run"
    )
    assert events(folder)[-1]["labels_total"] == 9


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_framework_runs_in_the_loop(tiny_config: Config, tmp_path: Path, framework: str) -> None:
    folder = simulate(tiny_config(cycles=1, framework=framework), ["sam.enabled=true"], out=tmp_path / "run")
    trained = [event for event in events(folder) if event["event"] == "train"]
    assert [set(event["sites"]) for event in trained] == [set(SITES)] * 2
    for name in SITES:
        losses = trained[-1]["sites"][name]["losses"]
        assert {"supervised", "total"} <= set(losses) <= set(wire.LOSSES)
        assert ("consistency" in losses) == FRAMEWORKS[framework].uses_unlabelled
    assert not [event for event in events(folder) if event["event"] == "refused"]


def test_what_learns_beside_the_student_is_averaged_as_it_is(tiny_config: Config, tmp_path: Path) -> None:
    """A peer that stayed at its site would learn from that site's labels alone."""
    folder = simulate(tiny_config(cycles=1, rounds_per_cycle=1, framework="cross_pseudo"), out=tmp_path / "run")
    (kept,) = (folder / "checkpoint").glob("*.safetensors")
    prefix = "weights."
    averaged = {name.removeprefix(prefix): array for name, array in load_file(kept).items() if name.startswith(prefix)}
    trained = [load_models(folder / "sites" / name / "models" / "local.safetensors") for name in SITES]
    names = {name for name in averaged if name.startswith("peer.second.")}
    assert 2 * len(names) == len(averaged)
    for name in averaged:
        of_sites = np.stack([models.model[name].numpy() for models in trained if models is not None])
        assert len(of_sites) == len(SITES)
        np.testing.assert_allclose(averaged[name], of_sites.mean(axis=0), atol=1e-6)
        assert (of_sites.std(axis=0) > 0).any()
    assert not [name for name in load_file(folder / "weights" / "final.safetensors") if name in names], "it does not predict"


@pytest.mark.parametrize(("restart", "fresh"), [("initial", True), ("continue", False)])
def test_a_teacher_starts_anew_where_the_cycles_do(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: str, fresh: bool
) -> None:
    given: list[bool] = []
    honest: Callable[..., Any] = vars(client_app)["train"]

    def train(site: Site, *args: Any, helpers: Any, since: int) -> Any:
        given.extend([bool(helpers)] if site.name == "south" else [])
        return honest(site, *args, helpers=helpers, since=since)

    monkeypatch.setattr("client.app.train", train)
    config = tiny_config(local_steps=1)
    simulate(config, [f'federation.restart="{restart}"'], out=tmp_path / "run")
    assert given == [False, True, not fresh, True]
    simulate(config, [f'federation.restart="{restart}"'], out=tmp_path / "run", fresh=True)
    assert not given[4], "another run"


def test_bald_with_dropout_and_proximal_and_clipping_run(tiny_config: Config, tmp_path: Path) -> None:
    options = ['query.strategy="bald"', "query.passes=3", "network.dropout=0.2", "train.proximal_mu=0.1"]
    options += ["train.max_update_norm=0.5", 'federation.server_optimiser="momentum"', 'budget.rule="proportional"']
    folder = simulate(tiny_config(rounds_per_cycle=1), options, out=tmp_path / "run")
    assert events(folder)[-1]["event"] == "end"


def test_an_unknown_engine_is_named(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="inline, cluster"):
        simulate(tiny_config(), engine="ray", out=tmp_path / "run")


def test_the_context_of_a_node_names_its_workspace(tmp_path: Path) -> None:
    from client.faults import SiteFault

    context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})
    with pytest.raises(SiteFault, match="node-config"):
        client_app.policy_of(context)


def test_history_is_json_without_nan(tiny_config: Config, tmp_path: Path) -> None:
    folder = simulate(tiny_config(cycles=1), out=tmp_path / "run")
    for line in (folder / "history.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in the history"))
