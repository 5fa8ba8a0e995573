"""What `[sam]` says is what SAM is asked, and which of its answers count, and how much, is what its target says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from client.plan import Plan, network_with
from client.sam import Sam, load_sam
from client.sam_adapt import Lesson
from client.sam_teacher import SamTeacher, Take
from client.site import Site, Slices
from strategies.records import Case, Weights
from strategies.sam_adapters import initial_adapter
from strategies.semi.losses import IGNORE
from strategies.semi.prompts import Prompts

Made = tuple[Site, Plan, Weights]
Make = Callable[..., Made]

SIDE = 32
OPEN = ("sam.enabled=true", "sam.min_iou=0.0", "sam.min_agreement=0.0", "sam.trust=false")
"""SAM with an open gate: all that it says counts fully."""


@dataclass
class Answers:
    """What SAM was asked, and what it answers: the component that it was asked about, or as told."""

    prompts: list[Prompts] = field(default_factory=list)
    how: list[dict[str, Any]] = field(default_factory=list)
    masks: Callable[[Prompts], Tensor] = lambda prompts: prompts.components
    iou: Callable[[Prompts], Tensor] = lambda prompts: torch.ones(len(prompts))


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """A SAM that embeds nothing and answers as a test wants it."""
    told = Answers()

    def decode(self: Sam, embeddings: Tensor, prompts: Prompts, **how: Any) -> tuple[Tensor, Tensor]:
        told.prompts.append(prompts)
        told.how.append(how)
        return torch.where(told.masks(prompts), 0.25, -0.25), told.iou(prompts)  # of logits, not probabilities

    monkeypatch.setattr(Sam, "encode", lambda self, images: torch.zeros(len(images), *self.embedding_shape))
    monkeypatch.setattr(Sam, "decode", decode)
    return told


def square(top: int, left: int, bottom: int, right: int) -> Tensor:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


FIRST, SECOND = square(4, 4, 14, 14), square(16, 16, 28, 28)
"""Where the specialist sees an object of each class."""


def prediction(*, of: int = 1, sure: float = 0.96) -> Tensor:
    """Probabilities (B, 3, H, W) of a specialist that sees both objects in each of `of` images."""
    classes = (FIRST.long() + 2 * SECOND.long()).expand(of, SIDE, SIDE)
    one_hot = torch.nn.functional.one_hot(classes, 3).movedim(-1, 1).float()
    return one_hot * (sure - (1 - sure) / 2) + (1 - sure) / 2


def teacher(made: Made, *, adapter: Mapping[str, Tensor] | None = None, specialists: Sequence[nn.Module] = ()) -> SamTeacher:
    site, plan, _ = made
    slices = Slices(site, plan.preprocess)
    return SamTeacher(site, plan, (1, 1), adapter=adapter or {}, cycle_adapter=None, slices=slices, specialists=list(specialists))


def in_the_middle(made: Made, count: int = 1) -> tuple[list[Case], Tensor]:
    """Unlabelled cases with a slice before and behind them, and what the network sees of them."""
    site, plan, _ = made
    cases = [case for case in site.store.cases("unlabelled") if case.index in (1, 2)][:count]
    return cases, Slices(site, plan.preprocess).take(cases)


def labelled(made: Made) -> tuple[list[Case], Take]:
    """The labelled cases, and what takes rows of them."""
    site, plan, _ = made
    cases, slices = site.store.cases("labelled"), Slices(site, plan.preprocess)

    def take(rows: Any) -> tuple[list[Case], Tensor, Tensor]:
        chosen = [cases[row] for row in rows]
        return chosen, slices.take(chosen), slices.labels(chosen)

    return cases, take


def changed(made: Made, **settings: Any) -> Made:
    site, plan, weights = made
    return site, plan.model_copy(update={"sam": plan.sam.model_copy(update=settings)}), weights


# ----------------------------------------------------------------------------------------------------- what it is asked


def test_sam_is_asked_with_the_box_unless_told_otherwise(joined: Make, answers: Answers) -> None:
    made = joined(*OPEN, labels=0)
    for box in (True, False):
        teacher(changed(made, box=box)).target(*in_the_middle(made), prediction())
        assert answers.how[-1]["box"] is box


@pytest.mark.parametrize(("positives", "negatives"), [(1, 2), (3, 0), (0, 1), (0, 0)])
def test_sam_is_asked_with_as_many_clicks_inside_and_outside_as_told(
    joined: Make, answers: Answers, positives: int, negatives: int
) -> None:
    made = joined(*OPEN, f"sam.positives={positives}", f"sam.negatives={negatives}", labels=0)
    teacher(made).target(*in_the_middle(made), prediction())
    (asked,) = answers.prompts
    assert asked.point_labels.tolist() == 2 * [[1] * positives + [0] * negatives]
    for component, points in zip(asked.components, asked.points.long(), strict=True):
        hit = [bool(component[y, x]) for x, y in points.tolist()]
        assert hit == [True] * positives + [False] * negatives


def test_sam_is_asked_with_the_prediction_itself_where_told(joined: Make, answers: Answers) -> None:
    made = joined(*OPEN, labels=0)
    teacher(made).target(*in_the_middle(made), prediction())
    assert answers.how[0]["mask_logits"] is None
    teacher(changed(made, mask=True)).target(*in_the_middle(made), prediction())
    assert torch.equal(answers.how[1]["mask_logits"] > 0, answers.prompts[1].components)
    teacher(changed(made, mask=True, min_stability=0.5)).target(*in_the_middle(made), prediction())
    assert torch.equal(answers.how[2]["mask_logits"] > 0, answers.prompts[2].components), "moved prompts have one as well"


def test_prompts_come_from_a_slice_and_both_beside_it_where_told(
    joined: Make, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is seen in one slice alone is rather a mistake, and what both neighbours see was rather missed."""
    made = joined(*OPEN, "sam.mask=true", labels=0)
    cases, images = in_the_middle(made)
    shown = Slices(made[0], made[1].preprocess)

    def of_class_1(at_first: float, at_second: float) -> Tensor:
        chance = at_first * FIRST + at_second * SECOND
        return torch.stack([1 - chance, chance, torch.zeros_like(chance)])

    own = of_class_1(0.6, 0.4)[None]
    around = {step: shown.take(shown.beside(cases, step)).numpy().tobytes() for step in (-1, 1)}
    seen = {around[-1]: of_class_1(0.0, 1.0), around[1]: of_class_1(0.0, 0.6)}
    assert len(seen) == 2

    def specialist(networks: Any, images: Tensor) -> Tensor:
        return torch.stack([seen[image[None].numpy().tobytes()] for image in images])

    monkeypatch.setattr("client.sam_teacher.mean_probabilities", specialist)
    teacher(made).target(cases, images, own)
    assert torch.equal(answers.prompts[0].components, FIRST[None])
    teacher(changed(made, beside=True)).target(cases, images, own)
    assert torch.equal(answers.prompts[1].components, SECOND[None])
    chance = answers.how[1]["mask_logits"].sigmoid()[0][SECOND]
    assert torch.allclose(chance, torch.tensor(0.5 * 0.4 + 0.25 * 1.0 + 0.25 * 0.6), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_sam_looks_at_the_middle_slice_of_those_that_the_network_sees(
    joined: Make, answers: Answers, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    embedded: list[Tensor] = []

    def encode(self: Sam, images: Tensor) -> Tensor:
        embedded.append(images)
        return torch.zeros(len(images), *self.embedding_shape)

    monkeypatch.setattr(Sam, "encode", encode)
    made = joined(*OPEN, "preprocess.neighbours=1", f"preprocess.channels={channels}", labels=0)
    cases, images = in_the_middle(made, count=2)
    assert images.shape[1] == 3 * channels
    teacher(made).target(cases, images, prediction(of=2))
    (seen,) = embedded
    flat = Slices(made[0], made[1].preprocess.model_copy(update={"neighbours": 0}))
    assert torch.equal(seen, flat.take(cases))
    assert not torch.equal(seen, flat.take(flat.beside(cases, -1)))


@pytest.mark.parametrize("adapt", ["decoder", "lora"])
def test_the_sam_that_is_asked_is_the_one_that_has_learned(joined: Make, monkeypatch: pytest.MonkeyPatch, adapt: str) -> None:
    said: list[Tensor] = []
    asked: list[Prompts] = []
    decode = Sam.decode

    def watched(self: Sam, embeddings: Tensor, prompts: Prompts, **how: Any) -> tuple[Tensor, Tensor]:
        logits, iou = decode(self, embeddings, prompts, **how)
        said.append(logits)
        asked.append(prompts)
        return logits, iou

    made = joined(*OPEN, f"sam.adapt={adapt}", labels=0)
    cases, images = in_the_middle(made)
    new = {n: torch.from_numpy(a) for n, a in initial_adapter("small", adapt=adapt, rank=4).items()}
    draws = torch.Generator().manual_seed(0)
    learned = {name: 0.1 * torch.randn(value.shape, generator=draws) for name, value in new.items()}
    monkeypatch.setattr(Sam, "decode", watched)
    for adapter in (new, learned):
        teacher(made, adapter=adapter).target(cases, images, prediction())
    assert not torch.allclose(said[0], said[1], atol=0.1)
    adapted = load_sam("small", device="cpu").adapted(learned, seed=made[1].seed)
    expected, _ = decode(adapted, adapted.encode(images).half(), asked[1], size=(SIDE, SIDE))
    assert torch.allclose(said[1], expected, atol=1e-4)


def test_what_is_said_of_an_image_depends_on_that_image_alone(joined: Make) -> None:
    """Neither embedding nor prompts of another image of the batch."""
    made = joined(*OPEN, labels=0)
    cases, images = in_the_middle(made, 2)
    probs = torch.cat([prediction(), prediction().flip(2)])
    together = teacher(made).target(cases, images, probs)
    for n in range(2):
        alone = teacher(made).target(cases[n : n + 1], images[n : n + 1], probs[n : n + 1])
        assert torch.equal(together.classes[n], alone.classes[0])
        assert torch.allclose(together.weight[n], alone.weight[0])
    others = teacher(made).target(cases, images.flip(0), probs)
    assert all(not torch.equal(one, other) for one, other in zip(together.classes, others.classes, strict=True))


def test_how_prompts_are_moved_to_see_whether_sam_is_stable_depends_on_the_image_alone(joined: Make) -> None:
    made = joined(*OPEN, "sam.min_stability=0.5", labels=0)
    cases, images = in_the_middle(made, 2)
    probs = torch.cat([prediction(), prediction()])
    together = teacher(made).ask(cases, images, probs)
    assert together.moved is not None
    for n in range(2):
        alone = teacher(made).ask(cases[n : n + 1], images[n : n + 1], probs[n : n + 1])
        assert alone.moved is not None
        assert torch.equal(together.moved[together.prompts.image_index == n], alone.moved)
    once_more = teacher(made)
    first, second = (once_more.ask(cases, images, probs).moved for _ in range(2))
    assert first is not None
    assert second is not None
    assert not torch.equal(first, second), "moved another way each time"


def test_what_it_learns_from_is_each_image_with_its_own_embedding(joined: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    lessons: list[Lesson] = []

    def watched(
        sam: Sam, adapter: dict[str, Tensor], lesson: Lesson, *_: Any, **__: Any
    ) -> tuple[dict[str, Tensor], None, set[int]]:
        lessons.append(lesson)
        return adapter, None, set()

    monkeypatch.setattr("client.sam_teacher.train_adapter", watched)
    made = joined(*OPEN, "sam.adapt=decoder", labels=4)
    site, plan, _ = made
    slices = Slices(site, plan.preprocess)
    cases, take = labelled(made)
    start = {n: torch.from_numpy(a) for n, a in initial_adapter("small", adapt="decoder", rank=4).items()}
    taught = teacher(made, adapter=start)
    taught.learn(cases, take)
    (lesson,) = lessons
    assert lesson.embeddings is not None
    assert len(lesson.images) == len(cases) == 4
    assert torch.allclose(lesson.embeddings.float(), load_sam("small", device="cpu").encode(lesson.images), atol=2e-2)
    by_image = {image.numpy().tobytes(): labels for image, labels in zip(slices.take(cases), slices.labels(cases), strict=True)}
    assert all(
        torch.equal(labels.long(), by_image[image.numpy().tobytes()].long())
        for image, labels in zip(lesson.images, lesson.labels, strict=True)
    )


@pytest.mark.parametrize("adapt", ["decoder", "lora"])
def test_learning_goes_on_from_the_checkpoint_with_what_was_learned_added_once(
    joined: Make, monkeypatch: pytest.MonkeyPatch, adapt: str
) -> None:
    begun: list[Sam] = []

    def watched(sam: Sam, adapter: dict[str, Tensor], *_: Any, seed: int, **__: Any) -> tuple[dict[str, Tensor], None, set[int]]:
        begun.append(sam.adapted(adapter, seed=seed))
        return adapter, None, set()

    monkeypatch.setattr("client.sam_teacher.train_adapter", watched)
    made = joined(*OPEN, f"sam.adapt={adapt}", labels=4)
    new = {n: torch.from_numpy(a) for n, a in initial_adapter("small", adapt=adapt, rank=4).items()}
    draws = torch.Generator().manual_seed(0)
    learned = {name: 0.1 * torch.randn(value.shape, generator=draws) for name, value in new.items()}
    cases, take = labelled(made)
    taught = teacher(made, adapter=learned)
    taught.learn(cases, take)
    (start,) = begun
    expected = load_sam("small", device="cpu").adapted(learned, seed=made[1].seed).parts.state_dict()
    for name, value in start.parts.state_dict().items():
        assert torch.equal(value, expected[name]), name


# ------------------------------------------------------------------------------------------------------- what of it counts


def _doubted(prompts: Prompts) -> Tensor:
    return torch.where(prompts.class_index == 2, 0.6, 0.9)


def _half(prompts: Prompts) -> Tensor:
    """Of class 2 a mask whose Dice with the component is 2/3."""
    other = prompts.components & ~square(0, 22, SIDE, SIDE)
    return torch.where((prompts.class_index == 2)[:, None, None], other, prompts.components)


def _shaky(prompts: Prompts) -> Tensor:
    """Moved prompts come behind those they were moved from; of class 2 half of the mask follows."""
    moved = torch.arange(len(prompts)) >= len(prompts) // 2
    return torch.where(moved[:, None, None], _half(prompts), prompts.components)


@pytest.mark.parametrize(
    ("question", "answer", "strict", "lax"),
    [
        ("min_iou", {"iou": _doubted}, 0.7, 0.5),
        ("min_agreement", {"masks": _half}, 0.7, 0.6),
        ("min_stability", {"masks": _shaky}, 0.6, 0.4),
    ],
)
def test_each_of_the_gates_questions_is_asked_alone_and_what_fails_leaves_no_trace(
    joined: Make, answers: Answers, question: str, answer: Mapping[str, Any], strict: float, lax: float
) -> None:
    for name, value in answer.items():
        setattr(answers, name, value)
    made = joined(*OPEN, labels=0)
    for least, counted in ((0.0, {0, 1, 2, IGNORE}), (lax, {0, 1, 2, IGNORE}), (strict, {0, 1, IGNORE})):
        target = teacher(changed(made, **{question: least})).target(*in_the_middle(made), prediction())
        assert set(target.classes.unique().tolist()) == counted, least
        assert (target.classes[0][FIRST] == 1).all()


def test_a_mask_is_judged_by_the_iou_of_its_own_prompt_and_not_of_the_moved_one(joined: Make, answers: Answers) -> None:
    made = changed(joined(*OPEN, labels=0), min_iou=0.5, min_stability=0.5)
    cases, images = in_the_middle(made)
    for rated in ([0.9, 0.1], [0.1, 0.9]):
        given = torch.tensor(rated).repeat_interleave(2)  # two prompts, and the same ones moved
        answers.iou = Mock(return_value=given)
        assert teacher(made).ask(cases, images, prediction()).kept.tolist() == (given[:2] > 0.5).tolist()


def test_what_sam_says_counts_by_the_trust_in_the_class_and_is_not_asked_without(joined: Make, answers: Answers) -> None:
    made = joined(*OPEN, labels=0)
    sam = teacher(made)
    sam.trust = torch.tensor([0.0, 0.25, 0.5])
    target = sam.target(*in_the_middle(made), prediction())
    assert (target.weight[0][FIRST] == 0.25).all()
    assert (target.weight[0][SECOND] == 0.5).all()
    sam.trust = torch.tensor([0.0, 0.0, 0.5])
    target = sam.target(*in_the_middle(made), prediction())
    assert set(target.classes.unique().tolist()) == {0, 2, IGNORE}
    assert answers.prompts[-1].class_index.tolist() == [2]


@pytest.mark.parametrize("adapt", ["decoder", "lora"])
@pytest.mark.parametrize("helps", ["learned", "own", "both"])
def test_what_sam_has_learned_is_asked_only_where_it_adds_as_much_as_the_checkpoint(
    joined: Make, answers: Answers, monkeypatch: pytest.MonkeyPatch, adapt: str, helps: str
) -> None:
    """From a few labels it may learn to repeat the specialist."""
    site, plan, weights = joined("sam.enabled=true", "sam.min_iou=0.0", "sam.min_agreement=0.0", f"sam.adapt={adapt}", labels=0)
    truths = Slices(site, plan.preprocess).truths(site.store.cases("validation"))
    base, asked, decode = load_sam("small", device="cpu"), list[str](), Sam.decode

    def watched(self: Sam, embeddings: Tensor, prompts: Prompts, **how: Any) -> tuple[Tensor, Tensor]:
        asked.append("own" if self is base else "learned")
        right = helps in (asked[-1], "both")
        answers.masks = lambda prompts: (
            truths[prompts.image_index] == prompts.class_index[:, None, None] if right else prompts.components
        )
        return decode(self, embeddings, prompts, **how)

    monkeypatch.setattr(Sam, "decode", watched)
    monkeypatch.setattr("client.sam_teacher.mean_probabilities", lambda networks, images: prediction(of=len(images)))
    start = {n: torch.from_numpy(a) for n, a in initial_adapter("small", adapt=adapt, rank=4).items()}
    sam = teacher((site, plan, weights), adapter={name: value + 0.01 for name, value in start.items()})
    sam.meet([], lambda rows: pytest.fail("validation patients judge"))
    assert set(asked) == {"own", "learned"}
    assert sam.is_trusted
    asked.clear()
    sam.target(*in_the_middle((site, plan, weights)), prediction())
    assert asked == ["own" if helps == "own" else "learned"]
    asked.clear()
    teacher((site, plan, weights), adapter=start).meet([], lambda rows: pytest.fail("validation patients judge"))
    assert len(asked) == 1, "which has learned nothing yet is the checkpoint's"


@pytest.mark.parametrize(("least", "trusted"), [(0.0, True), (0.7, False)])
def test_masks_that_do_not_pass_the_gate_earn_no_trust(
    joined: Make, answers: Answers, monkeypatch: pytest.MonkeyPatch, least: float, trusted: bool
) -> None:
    """However right they are: on an unlabelled image they would not count either."""
    site, plan, weights = joined("sam.enabled=true", f"sam.min_iou={least}", "sam.min_agreement=0.0", labels=0)
    held_out = site.store.cases("validation")
    truths = Slices(site, plan.preprocess).truths(held_out)
    answers.masks = lambda prompts: truths[prompts.image_index] == prompts.class_index[:, None, None]
    answers.iou = lambda prompts: torch.full((len(prompts),), 0.6)
    monkeypatch.setattr("client.sam_teacher.mean_probabilities", lambda networks, images: prediction(of=len(images)))
    sam = teacher((site, plan, weights))
    sam.meet([], lambda rows: pytest.fail("validation patients judge"))
    assert sam.is_trusted is trusted
    assert bool((sam.trust[1:] > 0.3).all()) is trusted


def test_a_specialist_that_knows_its_labels_by_heart_does_not_silence_a_sam_that_knows_new_patients_better(
    joined: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On labelled cases nobody can add anything to this specialist; on others it finds little, and SAM everything."""
    site, plan, weights = joined("sam.enabled=true", "sam.min_agreement=0.0", labels=4)
    slices = Slices(site, plan.preprocess)
    labelled = site.store.cases("labelled")
    truths = {c.id: t for c, t in zip(labelled, slices.labels(labelled), strict=True)}
    held_out = site.store.cases("validation")
    truths |= {c.id: t for c, t in zip(held_out, slices.truths(held_out), strict=True)}
    by_heart = {slices.take([c]).numpy().tobytes(): truths[c.id].long() for c in labelled}

    def specialist(networks: Any, images: Tensor) -> Tensor:
        """Class probabilities: those of the label it knows, else a square in the middle of each class's half."""
        guess = torch.zeros(images.shape[-2:], dtype=torch.int64)
        guess[12:18, 8:14], guess[12:18, 20:26] = 1, 2
        known = torch.stack([by_heart.get(image[None].numpy().tobytes(), guess) for image in images])
        return torch.nn.functional.one_hot(known, 3).movedim(-1, 1).float()

    ask = SamTeacher.ask

    def knowing(self: SamTeacher, cases: Any, images: Any, probs: Any) -> Any:
        asked = ask(self, cases, images, probs)
        real = torch.stack([truths[case.id] for case in cases])[asked.prompts.image_index]
        right = real == asked.prompts.class_index[:, None, None]
        return replace(asked, masks=right, kept=torch.ones_like(asked.kept))

    monkeypatch.setattr("client.sam_teacher.mean_probabilities", specialist)
    monkeypatch.setattr(SamTeacher, "ask", knowing)
    network = network_with(plan, weights)
    sam = SamTeacher(site, plan, (1, 1), adapter={}, cycle_adapter=None, slices=slices, specialists=[network])
    rows = torch.stack([truths[c.id] for c in labelled]).long()
    sam.meet(labelled, lambda some: ([labelled[n] for n in some], slices.take([labelled[n] for n in some]), rows[list(some)]))
    assert (sam.trust[1:] > 0.5).all()
