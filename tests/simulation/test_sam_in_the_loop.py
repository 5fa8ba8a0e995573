"""SAM in the loop: who teaches it does not judge it, and what of it learns travels with the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from tests_support import events, of_one_site
from torch import Tensor

from client.models import load_models
from client.sam import Sam, load_sam
from client.sam_teacher import SamTeacher
from client.site import Site
from client.store import Store
from configs.load import load
from simulation.run import simulate

Config = Callable[..., Path]
SITES = ["north", "south", "west"]


@pytest.mark.parametrize("validation", [True, False])
def test_who_teaches_sam_does_not_judge_it(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: bool
) -> None:
    """Validation patients judge, whom no network has trained on; without any, labelled patients take sides."""
    seen: dict[str, dict[str, set[str]]] = {name: {"taught": set(), "judged": set(), "labelled": set()} for name in SITES}
    meet, learn, ask = SamTeacher.meet, SamTeacher.learn, SamTeacher.ask
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

    def watched_learn(self: SamTeacher, labelled: Any, take: Any) -> Any:
        def watched(rows: Any) -> Any:
            cases, images, labels = take(rows)
            seen[self._site.name]["taught"] |= {case.patient for case in cases}
            return cases, images, labels

        return learn(self, labelled, watched)

    monkeypatch.setattr(SamTeacher, "meet", watched_meet)
    monkeypatch.setattr(SamTeacher, "ask", watched_ask)
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
        caches = list((folder / "sites" / name / "cache").glob("sam-adapted/*" if adapt == "lora" else "sam*/*"))
        assert len(caches) == 1, "embeddings of one encoder; those of an earlier cycle's are gone"


def test_trust_in_sam_is_told_by_class_where_enough_patients_stand_behind_it(tiny_config: Config, tmp_path: Path) -> None:
    for least in (1, 2):  # a site has one validation patient
        options = ("sam.enabled=true", f"privacy.min_patients={least}")
        folder = simulate(tiny_config(cycles=1), options, out=tmp_path / str(least))
        told = [site["sam_trust"] for event in events(folder) if event["event"] == "train" for site in event["sites"].values()]
        if least == 1:
            assert all(list(trust) == ["disc", "bar"] and all(0 <= value <= 1 for value in trust.values()) for trust in told)
        else:
            assert told == [None] * len(told)
        assert ("Trust in SAM by round" in (folder / "report.html").read_text()) == (least == 1)


@pytest.mark.parametrize(("restart", "expected"), [("continue", [0, 0, 0, 0, 1, 1, 1, 1]), ("initial", [0, 0, 1, 1, 0, 0, 1, 1])])
def test_sam_begins_after_its_share_of_the_steps(
    tiny_data: Path, tiny_config: Config, tmp_path: Path, restart: str, expected: list[int]
) -> None:
    """Of the run, or of each cycle that begins anew, as the site knows too."""
    config = tiny_config(root=str(of_one_site(tiny_data, tmp_path / "data")), rounds_per_cycle=4, cycles=2)
    options = ("sam.enabled=true", "sam.start=0.5", f"federation.restart={restart}")
    assert load(config, options).rounds_with_sam == sum(expected)
    folder = simulate(config, options, out=tmp_path / "run")
    told = [event["sites"]["north"] for event in events(folder) if event["event"] == "train"]
    assert [site["sam_trust"] is not None for site in told] == [bool(begun) for begun in expected]
    with Site(folder / "sites" / "north") as site:
        log = (site.workspace / "site.log").read_text()
        assert log.count("SAM is not asked before 50 % of the steps") == expected.count(0)
        models = load_models(site.workspace / "models" / "local.safetensors")
        assert models is not None
        total = 8 * 2 if restart == "continue" else 4 * 2
        assert (models.step, models.total_steps) == (total - 2, total)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many images each encoder was shown, by its fingerprint."""
    shown: Counter[str] = Counter()
    encode = Sam.encode

    def watched(self: Sam, images: Tensor) -> Tensor:
        shown[self.fingerprint] += len(images)
        return encode(self, images)

    monkeypatch.setattr(Sam, "encode", watched)
    return shown


def test_an_image_is_embedded_once_in_a_cycle_and_again_in_the_next_by_what_sam_has_learned(
    tiny_data: Path, tiny_config: Config, tmp_path: Path, embedded: Counter[str]
) -> None:
    """A trained encoder's embeddings are worth what they cost only if they last for a cycle, and only if they are renewed."""
    config = tiny_config(root=str(of_one_site(tiny_data, tmp_path / "data")), batch_unlabelled=5, per_cycle=0)
    options = ("sam.enabled=true", 'sam.adapt="lora"', "sam.adapt_steps=1", "sam.min_iou=0.0", "sam.min_agreement=0.0")
    folder = simulate(config, (*options, "sam.trust=false"), out=tmp_path / "run")
    trained = [event["sites"]["north"] for event in events(folder) if event["event"] == "train"]
    assert [site["unlabelled"] for site in trained] == [10, 10, 10, 10], "two steps of a round see all"
    assert list(embedded.values()) == [10, 10], "one encoder in each cycle"
    assert load_sam("small", device="cpu").fingerprint not in embedded


@pytest.mark.parametrize("restart", ["continue", "initial"])
def test_a_cycle_asks_the_encoder_that_has_learned_until_sams_start(
    tiny_data: Path, tiny_config: Config, tmp_path: Path, embedded: Counter[str], restart: str
) -> None:
    """Also where every cycle begins with an encoder that has learned nothing, as the only one does."""
    cycles = {"continue": 1, "initial": 2}[restart]
    root = str(of_one_site(tiny_data, tmp_path / "data"))
    config = tiny_config(root=root, batch_unlabelled=5, per_cycle=0, rounds_per_cycle=3, cycles=cycles)
    options = ("sam.enabled=true", 'sam.adapt="lora"', "sam.adapt_steps=1", "sam.min_iou=0.0", "sam.min_agreement=0.0")
    simulate(config, (*options, "sam.trust=false", "sam.start=0.3", f"federation.restart={restart}"), out=tmp_path / "run")
    assert list(embedded.values()) == [10] * cycles, "one encoder in each cycle, though it learns in the last round too"
    assert load_sam("small", device="cpu").fingerprint not in embedded
