"""Local training: unlabelled cases' labels can't matter, a repeated round is the same round, SAM's term has a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client.faults import SiteFault
from client.plan import Plan
from client.sam import Sam
from client.sam_teacher import SamTeacher
from client.site import Site
from client.train import When, _Draw, _weighted, train
from strategies.global_model import parts_of
from strategies.networks import mean_probabilities
from strategies.records import Weights
from strategies.semi import FRAMEWORKS
from strategies.semi.batch import Batch
from strategies.semi.mean_teacher import update_teacher
from strategies.semi.prompts import Prompts
from strategies.semi.sam_target import Target, sam_loss

NOW = When(cycle=1, round=1, step=0, total_steps=8)
Made = tuple[Site, Plan, Weights]
Make = Callable[..., Made]


@dataclass(frozen=True)
class Steps:
    """What a round's steps saw: their batches, by step what SAM said, and what the student learned of that."""

    batches: list[Batch]
    said: dict[int, Target]
    learned: list[Target]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


OPEN = ("sam.enabled=true", "sam.min_iou=0.0", "sam.min_agreement=0.0", "sam.trust=false")
"""SAM with an open gate: all that it says counts fully."""

SAMS = [
    ("sam.enabled=false",),
    OPEN,
    (*OPEN, "sam.mask=true", "sam.min_stability=0.1"),
    (*OPEN[:3], "sam.trust=true"),
    (*OPEN, "sam.adapt=decoder", "sam.adapt_steps=2"),
    (*OPEN, "sam.beside=true", "preprocess.neighbours=1"),
]


@pytest.mark.parametrize(
    ("framework", "sam"), [("mean_teacher", sam) for sam in SAMS] + [(f, OPEN) for f in FRAMEWORKS if f != "mean_teacher"]
)
def test_labels_of_unlabelled_cases_cannot_reach_loss_or_gradients(joined: Make, framework: str, sam: tuple[str, ...]) -> None:
    """The leak test: noise in place of every hidden label that was not bought leaves the round bit-identical."""
    site, plan, weights = joined(f'train.framework="{framework}"', *sam, "train.local_steps=3")
    before = train(site, plan, NOW, weights, helpers={})
    rng = np.random.default_rng(1)
    for path in (site.workspace / "hidden").glob("*.npz"):
        with np.load(path) as file:
            shape = file["mask"].shape
        np.savez(path, mask=rng.integers(0, 3, shape).astype(np.uint8))
    after = train(site, plan, NOW, weights, helpers={})
    assert same(before.model, after.model)
    assert before.helpers.keys() == after.helpers.keys()
    assert all(same(before.helpers[name], after.helpers[name]) for name in before.helpers)
    assert before.losses == after.losses


def test_a_label_that_was_bought_does_matter(joined: Make) -> None:
    """The counterpart, without which the leak test could not fail."""
    site, plan, weights = joined()
    before = train(site, plan, NOW, weights, helpers={})
    more, _, _ = joined("experts.boundary_px=6.0", name="other")
    after = train(more, plan, NOW, weights, helpers={})
    assert not same(before.model, after.model)


def test_rounds_repeat_and_differ_from_each_other(joined: Make) -> None:
    site, plan, weights = joined()
    first = train(site, plan, NOW, weights, helpers={})
    again = train(site, plan, NOW, weights, helpers={})
    other = train(site, plan, When(1, 2, 2, 8), weights, helpers={})
    assert same(first.model, again.model)
    assert not same(first.model, other.model)


def test_the_teacher_is_a_moving_average_of_the_global_model(joined: Make) -> None:
    """From round to round; what the site's own student does to it within a round is not kept."""
    site, plan, weights = joined()
    before = {name: torch.full_like(torch.from_numpy(value), 3.0) for name, value in weights.items()}
    after = train(site, plan, When(1, 2, 50, 100), weights, helpers={"teacher": before}, since=48)
    kept = (48 / 49) * (49 / 50)  # by two steps of α = t/(t + 1)
    for name, value in after.helpers["teacher"].items():
        torch.testing.assert_close(value, 3.0 * kept + (1 - kept) * torch.from_numpy(weights[name]))
    away = train(site, plan, When(1, 9, 16, 100), weights, helpers={"teacher": before}, since=0)
    new = train(site, plan, When(1, 1, 0, 100), weights, helpers={})
    for done in (away, new):  # a teacher as old as the run is the initial model, of which nothing is left
        assert all(torch.equal(value, torch.from_numpy(weights[name])) for name, value in done.helpers["teacher"].items())


def test_within_a_round_the_teacher_follows_the_student(joined: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def watched(teacher: nn.Module, student: nn.Module, step: int) -> None:
        steps.append(step)
        update_teacher(teacher, student, step)

    monkeypatch.setattr("client.train.update_teacher", watched)
    site, plan, weights = joined()
    train(site, plan, When(1, 2, 50, 100), weights, helpers={})
    assert steps == [50, 51]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_sam_takes_part_in_every_framework_and_its_term_has_a_gradient(
    joined: Make, monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    site, plan, weights = joined(*OPEN, "sam.weight=5.0", f'train.framework="{framework}"')
    with_sam = train(site, plan, NOW, weights, helpers={})
    assert with_sam.losses["sam"] > 0
    without = plan.model_copy(update={"sam": plan.sam.model_copy(update={"enabled": False})})
    plain = train(site, without, NOW, weights, helpers={})
    assert "sam" not in plain.losses
    monkeypatch.setattr("client.train.sam_loss", lambda *given: sam_loss(*given).detach())
    mute = train(site, plan, NOW, weights, helpers={})  # the same images and draws: only the gradient is missing
    assert mute.losses["sam"] > 0
    assert not same(with_sam.model, mute.model)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """SAM says of each image that its left half is of class 1 and its right half of class 2, the surer the further down."""
    seen = Steps([], {}, [])
    batches = _Draw.batches

    def drawn(self: _Draw, unlabelled: Any) -> Iterator[tuple[Batch, Any, Any]]:
        for batch, known, cases in batches(self, unlabelled):
            seen.batches.append(batch)
            yield batch, known, cases

    def target(self: SamTeacher, cases: Any, images: torch.Tensor, probs: torch.Tensor) -> Target:
        side = images.shape[-1]
        classes = (1 + (torch.arange(side) >= side // 2).long()).expand(len(images), side, side)
        weight = torch.linspace(0, 1, side)[:, None].expand(len(images), side, side)
        seen.said[len(seen.batches) - 1] = Target(classes, weight)
        return seen.said[len(seen.batches) - 1]

    def loss(logits: torch.Tensor, target: Target) -> torch.Tensor:
        seen.learned.append(target)
        return sam_loss(logits, target)

    monkeypatch.setattr(_Draw, "batches", drawn)
    monkeypatch.setattr(SamTeacher, "target", target)
    monkeypatch.setattr("client.train.sam_loss", loss)
    return seen


def test_the_student_learns_what_sam_says_in_the_frame_that_it_sees_the_image_in(joined: Make, steps: Steps) -> None:
    """SAM is asked about the image as it lies; the student sees it turned, moved and mirrored."""
    site, plan, weights = joined(*OPEN, "train.local_steps=2")
    train(site, plan, NOW, weights, helpers={})
    assert len(steps.learned) == 2
    for index, learned in enumerate(steps.learned):
        said, warp = steps.said[index], steps.batches[index].warp
        assert warp is not None
        expected = said.warped(warp)
        assert torch.equal(learned.classes, expected.classes)
        assert torch.equal(learned.weight, expected.weight)
        assert not torch.equal(learned.classes, said.classes)


def test_without_augmentation_the_student_learns_what_sam_says_as_it_lies(joined: Make, steps: Steps) -> None:
    site, plan, weights = joined(*OPEN, "train.local_steps=1", "train.augment=false")
    train(site, plan, NOW, weights, helpers={})
    assert torch.equal(steps.learned[0].classes, steps.said[0].classes)
    assert torch.equal(steps.learned[0].weight, steps.said[0].weight)


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3])])
def test_sam_is_asked_at_every_nth_step_only(joined: Make, steps: Steps, every: int, expected: list[int]) -> None:
    site, plan, weights = joined(*OPEN, "train.local_steps=5", f"sam.every={every}")
    train(site, plan, NOW, weights, helpers={})
    assert list(steps.said) == expected
    assert len(steps.learned) == len(expected)


@pytest.mark.parametrize("framework", ["mean_teacher", "unimatch"])
def test_sams_term_counts_fully_until_the_ramp_down_at_the_end_of_the_run(joined: Make, framework: str) -> None:
    """Also where the framework's own term has no ramp. Late in a run the specialist knows better than SAM."""
    _, plan, _ = joined(f'train.framework="{framework}"', "sam.enabled=true", "sam.weight=3.0", labels=0)
    terms = {"supervised": torch.tensor(10.0), "sam": torch.tensor(1.0)}
    for step, expected in {0: 1.0, 4: 1.0, 5: math.exp(-5 / 16), 6: math.exp(-5 / 4), 8: math.exp(-5)}.items():
        found = _weighted(terms, FRAMEWORKS[framework], plan, step, 8)  # the ramp takes half of the 8 steps
        assert float(found) == pytest.approx(10 + 3 * expected), step


@pytest.mark.parametrize(("when", "expected"), [(NOW, 1.0), (When(cycle=2, round=2, step=6, total_steps=8), math.exp(-5 / 4))])
def test_sams_ramp_counts_the_steps_since_the_start_of_the_run(joined: Make, steps: Steps, when: When, expected: float) -> None:
    """A ramp that began again in each round would never come down."""
    site, plan, weights = joined(*OPEN, 'train.framework="supervised"', "sam.weight=3.0", "train.local_steps=1")
    losses = train(site, plan, when, weights, helpers={}).losses
    assert losses["sam"] > 0.1
    assert losses["total"] == pytest.approx(losses["supervised"] + 3 * expected * losses["sam"], rel=1e-5)


@pytest.mark.parametrize("framework", ["mean_teacher", "unimatch"])
def test_sam_has_no_part_before_its_start(joined: Make, framework: str) -> None:
    """The rounds that begin earlier are bit-identical to those without it, whatever it has to say; and it is not judged."""
    site, plan, weights = joined(*OPEN[:3], f'train.framework="{framework}"', "sam.start=0.5")
    believing = plan.model_copy(update={"sam": plan.sam.model_copy(update={"trust": False})})
    off = plan.model_copy(update={"sam": plan.sam.model_copy(update={"enabled": False})})
    for step, begun in ((0, False), (2, False), (3, False), (4, True), (6, True)):
        when = When(cycle=1, round=1, step=step, total_steps=8)
        with_sam, plain = (train(site, which, when, weights, helpers={}) for which in (believing, off))
        assert ("sam" in with_sam.losses) == begun, step
        assert same(with_sam.model, plain.model) == (not begun), step
        assert (train(site, plan, when, weights, helpers={}).trust is not None) == begun, step


def test_sam_learns_also_before_its_start(joined: Make) -> None:
    site, plan, weights = joined(*OPEN, "sam.start=0.5", "sam.adapt=decoder", "sam.adapt_steps=1")
    trained = train(site, plan, NOW, weights, helpers={})
    assert trained.losses["adapter"] > 0
    assert "sam" not in trained.losses
    assert (trained.trust, trained.judges) == (None, 0)
    off = plan.model_copy(update={"sam": plan.sam.model_copy(update={"enabled": False})})
    plain = train(site, off, NOW, parts_of(weights).specialist, helpers={})
    assert same(plain.model, trained.model), "the specialist goes on as without it"


@pytest.mark.parametrize("start", [0.0, 0.5, 0.75, 0.875])
def test_sams_term_is_whole_when_it_begins(joined: Make, start: float) -> None:
    """A late start must not fall into the ramp down, or it would be a switch that turns SAM off unsaid."""
    _, plan, _ = joined("sam.enabled=true", "sam.weight=3.0", f"sam.start={start}", labels=0)
    terms = {"supervised": torch.tensor(10.0), "sam": torch.tensor(1.0)}
    found = _weighted(terms, FRAMEWORKS["unimatch"], plan, int(8 * start), 8)
    assert float(found) == pytest.approx(10 + 3)
    assert float(_weighted(terms, FRAMEWORKS["unimatch"], plan, 8, 8)) == pytest.approx(10 + 3 * math.exp(-5))


def test_a_sam_that_adds_nothing_to_patients_of_a_known_mask_leaves_the_round_as_it_is_without(
    joined: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers the box itself; the trained specialist knows better."""

    def box_itself(self: Sam, embeddings: torch.Tensor, prompts: Prompts, **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
        place = torch.arange(how["size"][0]) + 0.5
        left, top, right, bottom = prompts.boxes.unbind(1)
        columns = (place >= left[:, None]) & (place <= right[:, None])
        rows = (place >= top[:, None]) & (place <= bottom[:, None])
        return torch.where(rows[:, :, None] & columns[:, None, :], 4.0, -4.0), torch.ones(len(prompts))

    monkeypatch.setattr(Sam, "decode", box_itself)
    options = ("train.local_steps=60", "sam.min_agreement=0.0")
    site, plan, weights = joined("sam.enabled=true", *options, labels=6)
    trained = train(site, plan, NOW, weights, helpers={})
    then = {name: value.numpy() for name, value in trained.model.items()}
    later = When(1, 2, 60, 120)
    with_sam = train(site, plan, later, then, helpers=trained.helpers)
    off = plan.model_copy(update={"sam": plan.sam.model_copy(update={"enabled": False})})
    plain = train(site, off, later, then, helpers=trained.helpers)
    assert "sam" not in with_sam.losses
    assert same(with_sam.model, plain.model)
    believing = plan.model_copy(update={"sam": plan.sam.model_copy(update={"trust": False})})
    harmed = train(site, believing, later, then, helpers=trained.helpers)
    assert not same(harmed.model, plain.model), "without trust it would have counted"


# ----------------------------------------------------------------------------------------------------------- frameworks


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_round_of_every_framework_repeats_and_goes_on_from_its_helpers(joined: Make, framework: str, dropout: float) -> None:
    """What a killed round needs: the same weights and helpers give the same round, whatever ran before it."""
    site, plan, weights = joined(f'train.framework="{framework}"', f"network.dropout={dropout}")
    first = train(site, plan, NOW, weights, helpers={})
    averages = {name for name, kind in FRAMEWORKS[framework].helpers.items() if kind == "average"}
    assert set(first.helpers) == averages
    kept = {name: {key: value.clone() for key, value in state.items()} for name, state in first.helpers.items()}
    later, then = When(1, 2, 2, 8), {name: value.numpy() for name, value in first.model.items()}
    second, again = (train(site, plan, later, then, helpers=first.helpers) for _ in range(2))
    assert same(second.model, again.model)
    assert second.losses == again.losses
    for name, state in first.helpers.items():
        assert same(second.helpers[name], again.helpers[name])
        assert same(state, kept[name]), "the helpers that were given are left alone"
        assert not same(second.helpers[name], state)


def test_a_peer_begins_elsewhere_than_the_student(joined: Make) -> None:
    cross = 'train.framework="cross_pseudo"'
    weights, again, reseeded = (
        parts_of(joined(cross, f"seed={seed}", name=name, labels=0)[2]) for seed, name in ((1, "a"), (1, "b"), (2, "c"))
    )
    assert set(weights.peers) == {"second"}
    peer = weights.peers["second"]
    assert all(np.array_equal(again.peers["second"][name], value) for name, value in peer.items())
    for others in (weights.specialist, reseeded.peers["second"]):
        assert any(not np.array_equal(others[name], value) for name, value in peer.items())


def test_a_peer_goes_on_from_the_mean_of_all_sites_and_is_held_back_to_it(joined: Make) -> None:
    """One that stays at its site knows that site's labels alone, and teaches the student what is wrong."""
    moved = {}
    for mu in (0.0, 1000.0):
        site, plan, weights = joined('train.framework="cross_pseudo"', f"train.proximal_mu={mu}", name=f"mu{mu}")
        elsewhere = {name: np.add(value, 0.01) if name.startswith("peer.") else value for name, value in weights.items()}
        done, other = (train(site, plan, NOW, start, helpers={}) for start in (weights, elsewhere))
        assert done.helpers == {}, "nothing of it stays"
        names = [name for name in weights if name.startswith("peer.")]
        assert not same({name: done.model[name] for name in names}, other.model)
        moved[mu] = sum(float((done.model[name] - torch.from_numpy(weights[name])).square().sum()) for name in names)
    assert 0 < moved[1000.0] < moved[0.0]


def test_weights_without_the_peer_are_refused(joined: Make) -> None:
    site, plan, weights = joined('train.framework="cross_pseudo"')
    with pytest.raises(SiteFault, match="do not fit"):
        train(site, plan, NOW, parts_of(weights).specialist, helpers={})


@pytest.mark.parametrize("framework", list(FRAMEWORKS))
def test_sam_is_judged_by_the_predictions_of_those_it_is_asked_by(
    joined: Make, monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    """The framework's best guess and what is compared with SAM come from the same networks."""
    apart: list[float] = []
    target = SamTeacher.target

    def watched(self: SamTeacher, cases: Any, images: torch.Tensor, probs: torch.Tensor) -> Any:
        with torch.no_grad():
            judged = mean_probabilities(self._specialists, images)
        apart.append(float((probs - judged).abs().max()))
        return target(self, cases, images, probs)

    monkeypatch.setattr(SamTeacher, "target", watched)
    monkeypatch.setattr("strategies.semi.mean_teacher.NOISE_STD", 0.0)  # of the teacher's passes
    site, plan, weights = joined(*OPEN, f'train.framework="{framework}"')
    train(site, plan, NOW, weights, helpers={})
    assert len(apart) == plan.train.local_steps
    assert max(apart) < 1e-5


@pytest.mark.parametrize(
    ("framework", "step", "expected"),
    [
        ("mean_teacher", 0, math.exp(-5)),
        ("mean_teacher", 4, 1.0),
        ("unimatch", 0, 4.0),
        ("unimatch", 4, 2.5),
        ("unimatch", 8, 1.0),
        ("unimatch", 9, 1.0),
        ("copy_paste", 0, 1.0),
        ("copy_paste", 8, 1.0),
    ],
)
def test_the_consistency_term_follows_the_ramp_or_the_line_of_its_framework(
    joined: Make, framework: str, step: int, expected: float
) -> None:
    _, plan, _ = joined(f'train.framework="{framework}"', "train.consistency_weight=3.0", labels=0)
    terms = {"supervised": torch.tensor(10.0), "consistency": torch.tensor(1.0)}
    found = _weighted(terms, FRAMEWORKS[framework], plan, step, 8)  # the ramp takes half of the 8 steps
    assert float(found) == pytest.approx(10 + 3 * FRAMEWORKS[framework].weight * expected)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_unless_told_otherwise_the_consistency_term_weighs_what_is_the_frameworks_own(joined: Make, framework: str) -> None:
    _, plan, _ = joined(f'train.framework="{framework}"', labels=0)
    terms = {"supervised": torch.tensor(10.0), "consistency": torch.tensor(1.0)}
    assert float(_weighted(terms, FRAMEWORKS[framework], plan, 8, 8)) == pytest.approx(10 + FRAMEWORKS[framework].weight)


@pytest.mark.parametrize(("when", "expected"), [(NOW, 4.0), (When(cycle=2, round=2, step=6, total_steps=8), 1.75)])
def test_unimatchs_weight_falls_over_the_run_and_does_not_begin_again_in_a_round(
    joined: Make, monkeypatch: pytest.MonkeyPatch, when: When, expected: float
) -> None:
    monkeypatch.setattr("strategies.semi.unimatch.THRESHOLD", 0.0)  # an untrained network is sure of nothing
    site, plan, weights = joined('train.framework="unimatch"', "train.local_steps=1")
    losses = train(site, plan, when, weights, helpers={}).losses
    assert losses["consistency"] > 0.1
    assert losses["total"] == pytest.approx(losses["supervised"] + expected * losses["consistency"], rel=1e-5)


def test_copy_paste_mixes_labelled_images_alone_in_the_first_fifth_of_the_run(joined: Make) -> None:
    site, plan, weights = joined('train.framework="copy_paste"')
    assert set(train(site, plan, When(1, 1, 0, 100), weights, helpers={}).losses) == {"supervised", "total"}
    assert set(train(site, plan, When(1, 9, 20, 100), weights, helpers={}).losses) == {"supervised", "consistency", "total"}


def test_supervised_uses_no_unlabelled_image(joined: Make) -> None:
    site, plan, weights = joined('train.framework="supervised"')
    done = train(site, plan, NOW, weights, helpers={})
    assert set(done.losses) == {"supervised", "total"}
    assert done.helpers == {}


def test_the_proximal_term_holds_the_weights_back(joined: Make) -> None:
    moved = {}
    for mu in (0.0, 1000.0):
        site, plan, weights = joined(f"train.proximal_mu={mu}", 'train.framework="supervised"', name=f"mu{mu}")
        done = train(site, plan, NOW, weights, helpers={})
        moved[mu] = sum(float((done.model[name] - torch.from_numpy(value)).square().sum()) for name, value in weights.items())
    assert moved[1000.0] < moved[0.0]


def test_weights_that_diverge_are_told_not_sent(joined: Make) -> None:
    site, plan, weights = joined('train.framework="supervised"')
    name = next(iter(weights))
    weights[name] = np.full_like(weights[name], np.nan)
    with pytest.raises(FloatingPointError, match=r"loss became nan in cycle 1, round 1.*Lower train\.learning_rate \(0\.001\)"):
        train(site, plan, NOW, weights, helpers={})


def test_weights_that_diverge_are_told_as_such_also_where_sam_would_be_asked(joined: Make) -> None:
    site, plan, weights = joined(*OPEN)
    name = next(iter(weights))
    weights[name] = np.full_like(weights[name], np.nan)
    with pytest.raises(FloatingPointError, match=r"NaN or Inf in cycle 1, round 1.*Lower train\.learning_rate \(0\.001\)"):
        train(site, plan, NOW, weights, helpers={})


@pytest.mark.parametrize("labels", [11, 12])
def test_trust_is_told_only_where_something_is_left_to_ask_sam_about(joined: Make, labels: int) -> None:
    site, plan, weights = joined("sam.enabled=true", "sam.adapt=decoder", "sam.adapt_steps=1", labels=labels)
    done = train(site, plan, NOW, weights, helpers={})
    assert (done.unlabelled, done.trust is None, done.judges) == ((1, False, 1) if labels == 11 else (0, True, 0))


def test_weights_of_another_network_are_refused(joined: Make) -> None:
    site, plan, weights = joined()
    weights.popitem()
    with pytest.raises(SiteFault, match="do not fit"):
        train(site, plan, NOW, weights, helpers={})


def test_training_learns(joined: Make) -> None:
    site, plan, weights = joined("train.local_steps=30", 'train.framework="supervised"', labels=6)
    first = train(site, plan, NOW, weights, helpers={})
    then = {name: value.numpy() for name, value in first.model.items()}
    second = train(site, plan, When(1, 2, 30, 60), then, helpers={})
    assert second.losses["supervised"] < 0.8 * first.losses["supervised"]
