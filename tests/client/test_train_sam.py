"""SAM's part in local training: when it is asked and counts, what the student learns of it, and when it leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from train_support import NOW, OPEN, same

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
from strategies.semi.prompts import Prompts
from strategies.semi.sam_target import Target, sam_loss

Made = tuple[Site, Plan, Weights]
Make = Callable[..., Made]


@dataclass(frozen=True)
class Steps:
    """What a round's steps saw: their batches, by step what SAM said, and what the student learned of that."""

    batches: list[Batch]
    said: dict[int, Target]
    learned: list[Target]


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


@pytest.mark.parametrize("labels", [11, 12])
def test_trust_is_told_only_where_something_is_left_to_ask_sam_about(joined: Make, labels: int) -> None:
    site, plan, weights = joined("sam.enabled=true", "sam.adapt=decoder", "sam.adapt_steps=1", labels=labels)
    done = train(site, plan, NOW, weights, helpers={})
    assert (done.unlabelled, done.trust is None, done.judges) == ((1, False, 1) if labels == 11 else (0, True, 0))
