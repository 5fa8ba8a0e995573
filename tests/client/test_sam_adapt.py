"""SAM learns from labelled cases alone, in its adapter alone; who judges it has not taught it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from client import sam_adapt
from client.sam import Sam, load_sam
from client.sam_adapt import JITTER, Lesson, fold, train_adapter
from configs.schema import Sam as Settings
from strategies.records import Case
from strategies.sam_adapters import initial_adapter
from strategies.sam_losses import answer_losses, true_iou
from strategies.sam_parts import SIZES, Parts
from strategies.semi.losses import IGNORE
from strategies.semi.prompts import prompts_from

SIDE = 64


@pytest.fixture(scope="module")
def small() -> Sam:
    return load_sam("small", device="cpu")


def lesson(sam: Sam, *, embedded: bool) -> Lesson:
    """Four images with an object of each of two classes; what is meant by "object" is their left half alone."""
    line = torch.arange(SIDE) + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    images, labels = torch.full((4, 1, SIDE, SIDE), 0.2), torch.zeros(4, SIDE, SIDE, dtype=torch.int64)
    for number in range(4):
        for class_, (row, column) in enumerate(((20 + 3 * number, 18), (44 - 2 * number, 46)), start=1):
            disc = (y - row) ** 2 + (x - column) ** 2 <= 10**2
            images[number, 0][disc] = 0.4 + 0.2 * class_
            labels[number][disc & (x <= column)] = class_
    return Lesson(images, labels, sam.encode(images).half() if embedded else None)


def new(adapt: str) -> tuple[Settings, dict[str, Tensor]]:
    settings = Settings(adapt=adapt, adapt_steps=25)
    return settings, {n: torch.from_numpy(a) for n, a in initial_adapter("small", adapt=adapt, rank=4).items()}


def loss_of(sam: Sam, adapter: dict[str, Tensor], given: Lesson, settings: Settings) -> float:
    """The loss before a first step, always on the same moved prompts."""
    one = settings.model_copy(update={"adapt_steps": 1})
    _, loss, _ = train_adapter(sam, adapter, given, one, classes=2, seed=1, generator=torch.Generator().manual_seed(9))
    assert loss is not None
    return loss


def _dice(logits: Tensor, truth: Tensor) -> float:
    masks, truth = (logits > 0).flatten(1), truth.bool().flatten(1)
    return float((2 * (masks & truth).sum(1) / (masks.sum(1) + truth.sum(1))).mean())


@pytest.mark.parametrize("adapt", ["decoder", "lora"])
def test_what_is_learned_shows_and_the_checkpoint_stays(small: Sam, adapt: str) -> None:
    settings, start = new(adapt)
    given = lesson(small, embedded=adapt == "decoder")
    before = {name: value.clone() for name, value in small.parts.state_dict().items()}
    learned, loss, _ = train_adapter(small, start, given, settings, classes=2, seed=1, generator=torch.Generator().manual_seed(0))
    assert loss is not None
    assert loss > 0
    assert all(torch.equal(value, before[name]) for name, value in small.parts.state_dict().items())
    assert all((value == 0).all() for value in start.values())
    assert {name: value.shape for name, value in learned.items()} == {name: value.shape for name, value in start.items()}
    adapted = small.adapted(learned, seed=1)
    share = {"decoder": 0.9, "lora": 0.995}[adapt]  # B grows from nothing, and slowly
    assert loss_of(small, learned, given, settings) < share * loss_of(small, start, given, settings)
    prompts = prompts_from(torch.nn.functional.one_hot(given.labels, 3).movedim(-1, 1).float())
    embeddings = small.encode(given.images)
    plain, new_one, other = (
        each.decode(embeddings, prompts, size=(SIDE, SIDE))[0] for each in (small, small.adapted(start, seed=1), adapted)
    )
    assert torch.equal(plain, new_one)
    assert adapt == "lora" or _dice(other, prompts.components) > 0.93 > _dice(plain, prompts.components) + 0.02
    assert (adapted.fingerprint == small.fingerprint) is (adapt == "decoder"), "embeddings of another encoder are others"


def test_the_official_sam_learns_too() -> None:
    """At its own size and 1024 px, random weights, with one block of its encoder, since the others are more of it."""
    torch.manual_seed(0)
    parts = Parts(SIZES["vit_b"])
    parts.image_encoder.blocks = parts.image_encoder.blocks[:1]
    large = Sam(parts.eval().requires_grad_(False), size="vit_b", device=torch.device("cpu"), fingerprint="of no file")
    labels = torch.zeros(1, SIDE, SIDE, dtype=torch.int64)
    labels[0, 20:44, 16:40] = 1
    images = torch.full((1, 1, SIDE, SIDE), 0.2) + 0.5 * labels[:, None]
    for adapt, embedded in (("decoder", True), ("lora", False)):
        every = initial_adapter("vit_b", adapt=adapt, rank=4)
        assert adapt == "decoder" or [array.shape for array in every.values()] == [(3 * 768, 4)] * 12
        start = {n: torch.from_numpy(a) for n, a in every.items() if embedded or ".blocks.0." in n}
        embeddings = torch.randn(1, *large.embedding_shape) if embedded else None
        how = Settings(adapt=adapt, adapt_steps=1, positives=1, negatives=1)
        learned, loss, _ = train_adapter(
            large, start, Lesson(images, labels, embeddings), how, classes=1, seed=1, generator=torch.Generator().manual_seed(0)
        )
        assert loss is not None
        assert all(value.isfinite().all() for value in learned.values())
        assert any((value != 0).any() for value in learned.values())
        adapted = large.adapted(learned, seed=1)
        part = {"decoder": "mask_decoder", "lora": "image_encoder"}[adapt]
        before, after = large.parts.state_dict(), adapted.parts.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert {name.split(".")[0] for name in changed} == {part}


def test_training_repeats(small: Sam) -> None:
    settings, start = new("decoder")
    given = lesson(small, embedded=True)
    one, other = (
        train_adapter(small, start, given, settings, classes=2, seed=1, generator=torch.Generator().manual_seed(0))[0]
        for _ in range(2)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_prompts_of_the_run_are_what_it_learns_from(small: Sam) -> None:
    settings, start = new("decoder")
    given = lesson(small, embedded=True)
    quick = settings.model_copy(update={"adapt_steps": 2})
    results = [
        train_adapter(small, start, given, how, classes=2, seed=1, generator=torch.Generator().manual_seed(0))[1]
        for how in (
            quick,
            quick.model_copy(update={"mask": True}),
            quick.model_copy(update={"box": False}),
            quick.model_copy(update={"positives": 0, "negatives": 0}),
        )
    ]
    assert len(set(results)) == len(results)


def test_what_it_learns_from_is_moved_about_as_a_specialists_mistakes_would_be(
    small: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anew in every step; a SAM that has learned from perfect boxes would take each box at its word."""
    asked: list[dict[str, Tensor]] = []
    forward = Parts.forward

    def watched(self: Parts, embeddings: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
        asked.append(how)
        return forward(self, embeddings, **how)

    settings, start = new("decoder")
    every = lesson(small, embedded=True)
    assert every.embeddings is not None
    given = Lesson(every.images[:1], every.labels[:1], every.embeddings[:1])
    two = settings.model_copy(update={"adapt_steps": 2})
    monkeypatch.setattr(Parts, "forward", watched)
    train_adapter(small, start, given, two, classes=2, seed=1, generator=torch.Generator().manual_seed(0))
    still = prompts_from(torch.nn.functional.one_hot(given.labels, 3).movedim(-1, 1).float())
    scale = small.size.input_px / SIDE
    sides = still.boxes[:, 2:] - still.boxes[:, :2]
    reach = (JITTER * sides).clamp(min=1.0)[:, None]
    assert len(asked) == 2
    for step in asked:
        for found, unmoved in ((step["boxes"].view(-1, 2, 2), still.boxes.view(-1, 2, 2)), (step["points"], still.points)):
            moves = found / scale - unmoved
            assert (moves.abs() > 0.01).any((1, 2)).all(), "each prompt"
            assert (moves.abs() <= reach + 1e-4).all()
    assert not torch.equal(asked[0]["boxes"], asked[1]["boxes"])
    assert not torch.equal(asked[0]["points"], asked[1]["points"])


@pytest.mark.parametrize("value", [0, IGNORE])
def test_images_without_an_object_teach_nothing(small: Sam, value: int) -> None:
    settings, start = new("decoder")
    given = lesson(small, embedded=True)
    empty = Lesson(given.images, torch.full_like(given.labels, value), given.embeddings)
    learned, loss, seen = train_adapter(small, start, empty, settings, classes=2, seed=1, generator=torch.Generator())
    assert loss is None
    assert seen == set()
    assert all((array == 0).all() for array in learned.values())


def test_what_was_looked_at_is_told(small: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four images a step, of which the first shows nothing: one step sees two, many see the other three."""
    settings, start = new("decoder")
    given = lesson(small, embedded=True)
    given.labels[0] = 0
    monkeypatch.setattr(sam_adapt, "BATCH", 2)
    for steps, count in ((1, 2), (12, 3)):
        how = settings.model_copy(update={"adapt_steps": steps})
        *_, seen = train_adapter(small, start, given, how, classes=2, seed=1, generator=torch.Generator().manual_seed(0))
        assert seen < {0, 1, 2, 3}
        assert len(seen) == count
        assert 0 not in seen


@pytest.mark.parametrize("mask", [False, True])
def test_it_is_never_taught_to_answer_with_nothing(small: Sam, monkeypatch: pytest.MonkeyPatch, mask: bool) -> None:
    """A line a pixel wide may vanish on SAM's smaller grid; one of three stays, also in the coarse mask that goes with it."""
    masks: list[Tensor] = []
    coarse: list[Tensor] = []
    loss, forward = answer_losses, Parts.forward

    def watched(logits: Tensor, iou: Tensor, truth: Tensor, boxes: Tensor) -> Any:
        masks.append(truth)
        return loss(logits, iou, truth, boxes)

    def seen(self: Parts, embeddings: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
        coarse.extend([] if how["mask_logits"] is None else [how["mask_logits"]])
        return forward(self, embeddings, **how)

    monkeypatch.setattr(sam_adapt, "answer_losses", watched)
    monkeypatch.setattr(Parts, "forward", seen)
    settings, start = new("decoder")
    labels = torch.zeros(2, 128, 128, dtype=torch.int64)
    labels[0, 20:70, 31] = 1
    labels[0, 90:93, 20:70] = 2
    labels[1, 5, 5] = 1
    images = torch.rand(2, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    how = settings.model_copy(update={"adapt_steps": 4, "mask": mask})
    given = Lesson(images, labels, small.encode(images).half())
    train_adapter(small, start, given, how, classes=2, seed=1, generator=torch.Generator().manual_seed(0))
    assert masks
    assert all((each.flatten(1).sum(1) > 0).all() for each in masks)
    assert max(float(each.sum((1, 2)).max()) for each in masks) > 70, "the line of three pixels, at three quarters of its size"
    assert (len(coarse) > 0) is mask
    assert all((each.flatten(1).max(1).values > 0).any() for each in coarse)


def test_the_coarse_mask_is_no_copy_of_the_truth(small: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that is given the truth learns to repeat its prompt; a specialist's masks are off by more than a blur."""
    pairs: list[tuple[Tensor, Tensor]] = []
    coarse: list[Tensor] = []
    loss, forward = answer_losses, Parts.forward

    def watched(logits: Tensor, iou: Tensor, truth: Tensor, boxes: Tensor) -> Any:
        pairs.append((coarse.pop(), truth))
        return loss(logits, iou, truth, boxes)

    def seen(self: Parts, embeddings: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
        coarse.append(how["mask_logits"])
        return forward(self, embeddings, **how)

    monkeypatch.setattr(sam_adapt, "answer_losses", watched)
    monkeypatch.setattr(Parts, "forward", seen)
    settings, start = new("decoder")
    how = settings.model_copy(update={"adapt_steps": 8, "mask": True})
    train_adapter(small, start, lesson(small, embedded=True), how, classes=2, seed=1, generator=torch.Generator().manual_seed(0))
    iou = torch.cat([true_iou(given, truth)[:, 0] for given, truth in pairs])
    assert 0.4 < iou.mean() < 0.9, "through a blur of three pixels it would be .99"
    assert (iou > 0.2).float().mean() > 0.8, "they are about the right object"
    assert len({given.sum().item() for given, _ in pairs}) == len(pairs), "and never twice the same"


def test_a_lesson_of_nothing_that_sam_could_see_changes_nothing(small: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.sam_adapt.F.interpolate", lambda x, size, **_: torch.zeros(len(x), 1, *size))
    settings, start = new("decoder")
    learned, loss, _ = train_adapter(
        small, start, lesson(small, embedded=True), settings, classes=2, seed=1, generator=torch.Generator().manual_seed(0)
    )
    assert loss == 0
    assert all((array == 0).all() for array in learned.values())


# ------------------------------------------------------------------------------------------------------------ who judges


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_no_patient_teaches_and_judges_and_none_changes_sides_as_labels_arrive(drawn: list[int]) -> None:
    cases = [Case(f"c{number}", f"p{patient}", "i", number) for number, patient in enumerate(drawn)]
    sides: dict[str, int] = {}
    for count in range(1, len(cases) + 1):
        so_far = cases[:count]
        patients = list(dict.fromkeys(case.patient for case in so_far))
        rows = fold(so_far, patients)
        assert sorted([*rows[0], *rows[1]]) == list(range(count))
        for side, part in enumerate(rows):
            for row in part:
                assert sides.setdefault(so_far[row].patient, side) == side
    assert abs(sum(sides.values()) * 2 - len(sides)) <= 1, "as many teach as judge"


def test_numpy_rows_do_as_well() -> None:
    cases = [Case("a", "p", "i", 0), Case("b", "q", "i", 1)]
    assert fold(cases, ["q", "p"]) == ([1], [0])
    assert np.array(fold(cases, ["q", "p"])).tolist() == [[1], [0]]
