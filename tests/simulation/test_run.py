"""The whole loop on a tiny federation: private, never blocked by one site, careful with folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from safetensors.numpy import load_file
from tests_support import events, timeless

import client.app as client_app
import server.rounds as server_rounds
from client.egress import read as read_egress
from client.egress import verify
from client.sam_teacher import SamTeacher
from client.site import Site
from client.store import Store
from configs.faults import ConfigError
from configs.files import FolderInUse, StorageFault, locked
from server.sites import FederationFault, Sites
from simulation import run as simulation_run
from simulation.inline import InlineGrid
from simulation.run import RunFolderError, simulate
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


@pytest.mark.parametrize("how", ["exception text", "extra record", "too few patients"])
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
                if how == "extra record":
                    content.config_records["site"]["note"] = secret
                elif "test" in content.metric_records:
                    content.metric_records["test"]["patients"] = 0
            return content

        return packed

    monkeypatch.setattr(InlineGrid, "_carry_out", carry_out)
    step, code = "train", "reply-not-allowed"
    if how == "exception text":
        monkeypatch.setattr("client.app.train", train)
        code = "internal"
    elif how == "extra record":
        monkeypatch.setattr(wire, "pack_update", pack("pack_update"))
    else:
        step = "assess"
        monkeypatch.setattr(wire, "pack_assessment", pack("pack_assessment"))
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
    assert secret not in (folder / "history.jsonl").read_text()


def test_a_late_site_does_not_block_the_others(tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        """Time passes only while somebody waits."""

        now = 0.0

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            self.now += 1000.0

    class Deaf(InlineGrid):
        """North joins, then its replies get lost."""

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            ids = list(message_ids)
            lost = [i for i in ids if i in self._waiting and self._waiting[i].metadata.dst_node_id == 2]
            lost = [i for i in lost if self._waiting[i].metadata.message_type == "train"]
            return super().pull_messages([i for i in ids if i not in lost])

    monkeypatch.setattr(simulation_run, "InlineGrid", Deaf)
    monkeypatch.setattr("server.sites.time", Clock())
    folder = simulate(tiny_config(cycles=1), out=tmp_path / "run")
    late = [event for event in events(folder) if event["event"] == "late"]
    assert [(event["step"], list(event["sites"])) for event in late] == [("train", ["north"])] * 2
    trained = [event for event in events(folder) if event["event"] == "train"]
    assert all(set(event["sites"]) == {"south", "west"} for event in trained)
    assert events(folder)[-1]["event"] == "end"


@pytest.mark.parametrize("validation", [True, False])
def test_who_teaches_sam_does_not_judge_it(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: bool
) -> None:
    """Validation patients judge, whom no network has trained on; without any, labelled patients take sides."""
    seen: dict[str, dict[str, set[str]]] = {name: {"taught": set(), "judged": set(), "labelled": set()} for name in SITES}
    meet, learn, ask = SamTeacher.meet, SamTeacher.learn, SamTeacher._ask
    meeting: list[str] = []

    def watched_meet(self: SamTeacher, labelled: Any, take: Any) -> None:
        seen[self._site.name]["labelled"] |= {case.patient for case in labelled}
        meeting.append(self._site.name)
        meet(self, labelled, take)
        meeting.pop()

    def watched_ask(self: SamTeacher, cases: Any, images: Any, probs: Any) -> Any:
        for name in meeting:
            seen[name]["judged"] |= {case.patient for case in cases}
        return ask(self, cases, images, probs)

    def watched_learn(self: SamTeacher, take: Any) -> Any:
        def watched(rows: Any) -> Any:
            cases, images, labels = take(rows)
            seen[self._site.name]["taught"] |= {case.patient for case in cases}
            return cases, images, labels

        return learn(self, watched)

    monkeypatch.setattr(SamTeacher, "meet", watched_meet)
    monkeypatch.setattr(SamTeacher, "_ask", watched_ask)
    monkeypatch.setattr(SamTeacher, "learn", watched_learn)
    options = ("sam.enabled=true", 'sam.adapt="decoder"', "sam.adapt_steps=1", "budget.cold_start=6")
    folder = simulate(tiny_config(cycles=2), options, out=tmp_path / "run", prepare_only=True)
    for name in () if validation else SITES:
        table = folder / "sites" / name / "images.csv"
        table.write_text("".join(line for line in table.read_text().splitlines(True) if ",validation," not in line))
    simulate(tiny_config(cycles=2), options, out=tmp_path / "run", resume=True)
    for name, roles in seen.items():
        store = Store.at(folder / "sites" / name / "site.db")
        held_out = {case.patient for case in store.cases("validation")}
        store.close()
        assert roles["judged"], name
        assert not roles["taught"] & roles["judged"], name
        if validation:
            assert roles["judged"] <= held_out
            assert roles["taught"] == roles["labelled"], "nobody is kept from teaching"
        else:
            assert not held_out
            assert roles["taught"] | roles["judged"] == roles["labelled"]


def test_an_adapter_is_trained_also_where_every_case_is_labelled(tiny_config: Config, tmp_path: Path) -> None:
    """Else a site without unlabelled cases would send that nothing changed, and pull the others' SAM back to its start."""
    options = ("sam.enabled=true", 'sam.adapt="decoder"', "sam.adapt_steps=1", "budget.cold_start=1000", "budget.per_cycle=0")
    folder = simulate(tiny_config(cycles=1), options, out=tmp_path / "run")
    trained = [event for event in events(folder) if event["event"] == "train"]
    assert all(site["unlabelled"] == 0 for event in trained for site in event["sites"].values())
    assert all(site["losses"]["adapter"] > 0 for event in trained for site in event["sites"].values())


@pytest.mark.parametrize("adapt", ["decoder", "lora"])
def test_sam_learns_with_the_federation(tiny_config: Config, tmp_path: Path, adapt: str) -> None:
    options = ("sam.enabled=true", f'sam.adapt="{adapt}"', "sam.adapt_steps=2", "sam.min_iou=0.0", "sam.min_agreement=0.0")
    folder = simulate(tiny_config(cycles=2), options, out=tmp_path / "run")
    trained = [event for event in events(folder) if event["event"] == "train"]
    assert all(site["losses"]["adapter"] > 0 for event in trained for site in event["sites"].values())
    adapter = load_file(folder / "weights" / "final_sam.safetensors")
    assert adapter
    assert all(name.startswith("sam.") for name in adapter)
    moved = [bool((array != 0).any()) for array in adapter.values()]
    assert sum(moved) > 0.8 * len(moved), "all but what gets no gradient: a bias that a softmax cancels"
    network = load_file(folder / "weights" / "final.safetensors")
    assert not any(name.startswith("sam.") for name in network)
    for name in SITES:
        caches = list((folder / "sites" / name / "cache").glob("sam*/*"))
        assert len(caches) == 1, "embeddings of one encoder; those of an earlier cycle's are gone"


def test_a_site_that_missed_its_request_gets_it_again_once_it_answers(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away at the cold start, a site has nothing to train on; its grant is not lost, and it takes part a round later."""
    honest: Callable[..., Any] = vars(client_app)["carry_out"]
    away = {"south": 1}

    def carry_out(site: Site, *args: Any, **kwargs: Any) -> Any:
        if away.pop(site.name, 0):
            raise RuntimeError("the database is being moved")
        return honest(site, *args, **kwargs)

    monkeypatch.setattr("client.app.carry_out", carry_out)
    folder = simulate(tiny_config(cycles=1, rounds_per_cycle=3), ["federation.deadline_polls=1"], out=tmp_path / "run")
    trained = [sorted(event["sites"]) for event in events(folder) if event["event"] == "train"]
    assert trained == [list(SITES)] * 3, "it is asked again before the first round, and trains with the others"
    later = [event for event in events(folder) if event["event"] == "annotate" and event["round"] == 1]
    assert [(event["cycle"], sorted(event["sites"])) for event in later] == [(0, ["south"])]
    assert later[0]["sites"]["south"]["received"] == 2, "the cold start's grant, no more and no less"
    assert [event["labels_total"] for event in events(folder) if event["event"] == "assess"] == [6]


def test_a_run_that_stops_while_a_site_catches_up_goes_on_to_the_same_history(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest: Callable[..., Any] = vars(client_app)["carry_out"]

    def run(name: str, *, stop: bool) -> Path:
        away = {"south": 1}

        def carry_out(site: Site, *args: Any, **kwargs: Any) -> Any:
            if away.pop(site.name, 0):
                raise RuntimeError("the database is being moved")
            return honest(site, *args, **kwargs)

        def stopping(*args: Any, **kwargs: Any) -> Any:
            catch_up(*args, **kwargs)
            raise FederationFault("killed")

        config = tiny_config(cycles=1)
        with monkeypatch.context() as patch:
            patch.setattr("client.app.carry_out", carry_out)
            if stop:
                catch_up = server_rounds._catch_up
                patch.setattr(server_rounds, "_catch_up", stopping)
                with pytest.raises(FederationFault, match="killed"):
                    simulate(config, ["federation.deadline_polls=1"], out=tmp_path / name)
            else:
                return simulate(config, ["federation.deadline_polls=1"], out=tmp_path / name)
        return simulate(config, ["federation.deadline_polls=1"], out=tmp_path / name, resume=True)

    whole, stopped = run("whole", stop=False), run("stopped", stop=True)
    histories = []
    for history in (timeless(whole), timeless(stopped)):
        (refused,) = [event for event in history if event["event"] == "refused"]
        refused["sites"]["south"].pop("reference")  # a random number
        histories.append(history)
    assert histories[0] == histories[1]


def test_with_too_few_sites_the_run_stops_with_the_reasons(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(site: Site, *args: Any, **kwargs: Any) -> Any:
        raise FloatingPointError("NaN in an image of patient 12")

    monkeypatch.setattr("client.app.train", train)
    with pytest.raises(FederationFault, match=r"0 of 3 sites.*north: not-finite \([0-9a-f]{8}\).*--resume") as caught:
        simulate(tiny_config(cycles=1), out=tmp_path / "run")
    assert "patient 12" not in str(caught.value)
    monkeypatch.undo()
    simulate(tiny_config(cycles=1), out=tmp_path / "run", resume=True)
    assert events(tmp_path / "run")[-1]["event"] == "end"


def test_late_experts_carry_over(tiny_config: Config, tmp_path: Path) -> None:
    quick = simulate(tiny_config(), out=tmp_path / "quick")
    slow = simulate(tiny_config(), ["experts.delay=2", "federation.deadline_polls=1"], out=tmp_path / "slow")
    last = [event for event in events(slow) if event["event"] == "train"][-1]
    first = next(event for event in events(slow) if event["event"] == "annotate")
    assert sum(site["outstanding"] for site in first["sites"].values()) > 0, "some labels were late"
    assert sum(site["received"] + site["outstanding"] for site in first["sites"].values()) == 6
    assert last["labels_total"] == [event for event in events(quick) if event["event"] == "train"][-1]["labels_total"]


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


@pytest.mark.parametrize(("restart", "fresh"), [("initial", True), ("continue", False)])
def test_a_peer_starts_anew_where_the_cycles_do(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: str, fresh: bool
) -> None:
    given: list[bool] = []
    honest: Callable[..., Any] = vars(client_app)["train"]

    def train(site: Site, *args: Any, helpers: Any) -> Any:
        given.extend([bool(helpers)] if site.name == "south" else [])
        return honest(site, *args, helpers=helpers)

    monkeypatch.setattr("client.app.train", train)
    config = tiny_config(framework="cross_pseudo", local_steps=1)
    simulate(config, [f'federation.restart="{restart}"'], out=tmp_path / "run")
    assert given == [False, True, not fresh, True]
    simulate(config, [f'federation.restart="{restart}"'], out=tmp_path / "run", fresh=True)
    assert not given[4], "another run"


def test_bald_with_dropout_and_proximal_and_clipping_run(tiny_config: Config, tmp_path: Path) -> None:
    options = ['query.strategy="bald"', "query.passes=3", "network.dropout=0.2", "train.proximal_mu=0.1"]
    options += ["train.max_update_norm=0.5", 'federation.server_optimiser="momentum"', 'budget.rule="proportional"']
    folder = simulate(tiny_config(rounds_per_cycle=1), options, out=tmp_path / "run")
    assert events(folder)[-1]["event"] == "end"


# ------------------------------------------------------------------------------------------------------- the run folder


def test_a_folder_that_holds_this_run_is_not_overwritten(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(cycles=1)
    simulate(config, out=tmp_path / "run", prepare_only=True)
    with pytest.raises(RunFolderError, match=r"--resume.*--fresh.*--out"):
        simulate(config, out=tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"another configuration \(train.local_steps\)"):
        simulate(config, ["train.local_steps=3"], out=tmp_path / "run", resume=True)
    simulate(config, ["train.local_steps=3"], out=tmp_path / "run", fresh=True, prepare_only=True)


def test_a_folder_with_other_things_is_never_deleted(tiny_config: Config, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.txt").write_text("miaow")
    with pytest.raises(RunFolderError, match="holds no run"):
        simulate(tiny_config(), out=tmp_path / "photos", fresh=True)
    assert (tmp_path / "photos" / "cat.txt").exists()


def test_there_is_nothing_to_resume(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nothing to resume"):
        simulate(tiny_config(), out=tmp_path / "run", resume=True)


def test_a_folder_in_use_is_left_alone(tiny_config: Config, tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(FolderInUse, match=r"/run is in use by another .*choose another folder"):
        simulate(tiny_config(), out=tmp_path / "run")


def test_a_full_disk_stops_the_run_and_it_goes_on_afterwards(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    honest, calls = os.replace, []

    def full(source: str, target: str | Path) -> None:
        calls.append(target)
        if "weights-000004" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageFault, match=r"disk is full.*--resume"):
        simulate(tiny_config(), out=tmp_path / "run")
    monkeypatch.undo()
    simulate(tiny_config(), out=tmp_path / "run", resume=True)
    simulate(tiny_config(), out=tmp_path / "whole")
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")


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
