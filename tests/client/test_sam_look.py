"""What a hospital sees of SAM is what training is told by it, and nobody's truth but that of validation patients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from client.faults import SiteFault
from client.models import LocalModels, load_models, save_models
from client.plan import Plan
from client.sam import Sam
from client.sam_look import Looks, _specialists, look_at
from client.sam_picture import draw, told
from client.sam_teacher import SamTeacher
from client.site import Site, Slices
from client.store import Store
from client.train import When, train
from client.upright import Turn
from strategies.global_model import parts_of
from strategies.metrics import dice_by_class
from strategies.records import Weights
from strategies.semi.losses import IGNORE
from strategies.semi.prompts import Prompts

Made = tuple[Site, Plan, Weights]
Make = Callable[..., Made]


@pytest.fixture
def trained(joined: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Site]:
    """A site after a round, whose specialist sees a square of each class, and whose SAM answers what it was asked about."""

    def make(*overrides: str, rating: float = 1.0, moved: int = 0) -> Site:
        site, plan, weights = joined("sam.enabled=true", *overrides)
        model = {name: torch.as_tensor(value) for name, value in weights.items()}
        teacher = {name: value.clone() for name, value in model.items()}
        settings = plan.model_dump(mode="json")
        path = site.workspace / "models" / "local.safetensors"
        save_models(path, LocalModels("r", 2, 3, 0, model, {"teacher": teacher}, settings=settings))

        def decode(self: Sam, embeddings: Tensor, prompts: Prompts, **how: Any) -> tuple[Tensor, Tensor]:
            masks = prompts.components.roll(moved, dims=2)
            return torch.where(masks, 4.0, -4.0), torch.full((len(prompts),), rating)

        monkeypatch.setattr(Sam, "encode", lambda self, images: torch.zeros(len(images), *self.embedding_shape))
        monkeypatch.setattr(Sam, "decode", decode)
        monkeypatch.setattr("client.sam_look.mean_probabilities", lambda networks, images: squares(len(images)))
        monkeypatch.setattr("client.sam_teacher.mean_probabilities", lambda networks, images: squares(len(images)))
        return site

    return make


def squares(count: int) -> Tensor:
    """(count, 3, 32, 32): sure of a square of each class."""
    classes = torch.zeros(count, 32, 32, dtype=torch.int64)
    classes[:, 4:14, 4:14], classes[:, 18:28, 18:28] = 1, 2
    return torch.nn.functional.one_hot(classes, 3).movedim(-1, 1).float()


def all_doubts(looks: Looks) -> set[str]:
    return {doubt for look in looks.slices for answer in look.answers for doubt in answer.doubts}


def test_validation_slices_are_shown_with_their_truth(trained: Callable[..., Site]) -> None:
    site = trained()
    looks = look_at(site, count=3)
    assert (looks.cycle, looks.round, len(looks.slices)) == (2, 3, 3)
    for look in looks.slices:
        assert look.truth is not None
        assert (look.truth > 0).any()
        assert look.dice is not None
        np.testing.assert_allclose(*look.dice)  # SAM said what the specialist did
        assert [answer.class_ for answer in look.answers] == [1, 2]


def test_a_site_without_validation_patients_shows_unlabelled_slices_and_no_truth(
    trained: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = trained()
    cases = Store.cases
    monkeypatch.setattr(Store, "cases", lambda self, *states: [] if states == ("validation",) else cases(self, *states))
    looks = look_at(site, count=2)
    assert len(looks.slices) == 2
    assert all(look.truth is None and look.dice is None for look in looks.slices)
    assert len(told(looks)) == 2


@pytest.mark.parametrize(
    ("options", "rating", "moved", "doubt"),
    [
        (("sam.min_iou=0.8",), 0.7, 0, "predicted IoU 0.70 < 0.8"),
        (("sam.min_iou=0.8",), 0.7999, 0, "predicted IoU 0.7999 < 0.8"),
        (("sam.min_iou=0.0",), -0.1, 0, None),
        (("sam.min_agreement=0.9",), 1.0, 3, "agreement 0.70 < 0.9"),
        (("sam.min_agreement=0.6",), 1.0, 3, None),
    ],
)
def test_what_is_not_believed_says_why_and_the_gate_agrees(
    trained: Callable[..., Site],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    rating: float,
    moved: int,
    doubt: str | None,
) -> None:
    kept: list[bool] = []
    ask = SamTeacher.ask

    def watched(self: SamTeacher, *about: Any) -> Any:
        asked = ask(self, *about)
        kept[:] = asked.kept.tolist()
        return asked

    monkeypatch.setattr(SamTeacher, "ask", watched)
    looks = look_at(trained(*options, rating=rating, moved=moved), count=2)
    believed = [not answer.doubts for look in looks.slices for answer in look.answers]
    assert believed == kept
    assert all_doubts(looks) == (set() if doubt is None else {doubt})


@pytest.mark.parametrize("trust", [True, False])
def test_what_is_taught_follows_trust(trained: Callable[..., Site], trust: bool) -> None:
    """A SAM that repeats the specialist adds nothing, so it is not trusted; where nobody asks about trust it teaches."""
    (shown,) = (looks := look_at(trained(f"sam.trust={str(trust).lower()}"), count=1)).slices
    assert set(looks.trust.values()) == {float(not trust)}
    assert set(np.unique(shown.target)) == ({IGNORE} if trust else {0, 1, 2, IGNORE})


def test_where_nothing_was_unlabelled_nobody_is_told_that_sam_counts(trained: Callable[..., Site]) -> None:
    site = trained("sam.trust=false")
    assert told(look_at(site, count=1))[-1].startswith("It counts here by its trust: disc 1.00")
    path = site.workspace / "models" / "local.safetensors"
    models = load_models(path)
    assert models is not None
    save_models(path, replace(models, reply={"unlabelled": 0}))
    (*_, last) = told(look_at(site, count=1))
    assert last.startswith("Nothing was unlabelled in that round, so SAM was not asked; its trust would be")


def test_before_its_start_nobody_is_told_that_sam_counts(trained: Callable[..., Site]) -> None:
    site = trained("sam.start=0.125")
    path = site.workspace / "models" / "local.safetensors"
    models = load_models(path)
    assert models is not None
    save_models(path, replace(models, step=1, total_steps=16))
    (*_, last) = told(look_at(site, count=1))
    assert last.startswith(
        "That round was in the first 12.5 % of training (sam.start), in which SAM is not asked; its trust would be"
    )
    save_models(path, replace(models, step=2, total_steps=16))
    (*_, last) = told(look_at(site, count=1))
    assert last.startswith("It counts here by its trust")


def test_marks_lie_where_sam_was_asked_however_the_slice_is_turned(trained: Callable[..., Site]) -> None:
    """The tiny volumes are stored x by y and mirrored: their slices are turned to be looked at."""
    site = trained("sam.positives=2", "sam.negatives=2", moved=1)
    (shown,) = look_at(site, count=1).slices
    stored = squares(1).argmax(1)[0].numpy()
    assert not np.array_equal(shown.prediction, stored)
    assert {tuple(np.unique(shown.prediction))} == {(0, 1, 2)}
    for answer in shown.answers:
        rows, columns = np.nonzero(shown.prediction == answer.class_)
        assert answer.box == (columns.min() - 2, rows.min() - 2, columns.max() + 3, rows.max() + 3)
        assert answer.inside.tolist().count(True) == 2
        on = [shown.prediction[int(y), int(x)] == answer.class_ for x, y in answer.clicks]
        assert on == answer.inside.tolist()
        assert (answer.mask & (shown.prediction == answer.class_)).sum() == 90  # of a 10 × 10 square moved by one


def test_image_truth_and_dice_are_of_the_slice_that_is_shown(trained: Callable[..., Site]) -> None:
    """SAM answers a square moved by seven: Dice with its masks is that of the moved squares."""
    site = trained("sam.min_agreement=0.0", moved=7)
    plan = Plan.read(load_settings(site))
    slices = Slices(site, plan.preprocess)
    held_out = site.store.cases("validation")
    images, truths = slices.take(held_out)[:, 0].numpy(), slices.truths(held_out).numpy()
    (shown,) = look_at(site, count=1).slices
    turns = [Turn(*flags) for flags in product((False, True), repeat=3)]
    found = [
        (turn, row) for turn in turns for row in range(len(held_out)) if np.array_equal(turn.plane(images[row]), shown.image)
    ]
    ((turn, row),) = found
    np.testing.assert_array_equal(turn.plane(truths[row]), shown.truth)
    stored = squares(1).argmax(1)[0].numpy()
    assert shown.dice is not None
    assert not np.allclose(*shown.dice)
    np.testing.assert_allclose(shown.dice[0], dice_by_class(stored, truths[row], classes=2))
    np.testing.assert_allclose(shown.dice[1], dice_by_class(np.roll(stored, 7, axis=1), truths[row], classes=2), atol=1e-6)


def load_settings(site: Site) -> Any:
    models = load_models(site.workspace / "models" / "local.safetensors")
    assert models is not None
    return models.settings


@pytest.mark.parametrize(("framework", "asking"), [("supervised", 1), ("mean_teacher", 1), ("cross_pseudo", 2)])
def test_those_ask_who_ask_in_training_and_trust_is_the_rounds_own(joined: Make, framework: str, asking: int) -> None:
    site, plan, weights = joined("sam.enabled=true", f"train.framework={framework}")
    done = train(site, plan, When(1, 1, 0, 4), weights, helpers={})
    reply = {"trust": [0.25, 0.5]}
    models = LocalModels("r", 1, 1, 0, done.model, done.helpers, reply, plan.model_dump(mode="json"))
    save_models(site.workspace / "models" / "local.safetensors", models)
    asked = _specialists(site, plan, models)
    assert len(asked) == asking
    own = done.helpers["teacher"] if framework == "mean_teacher" else parts_of(done.model).specialist
    assert all(torch.equal(value, own[name]) for name, value in asked[0].state_dict().items())
    before = (site.workspace / "site.log").read_text()
    assert look_at(site, count=1).trust == pytest.approx(dict(zip(plan.classes, (0.25, 0.5), strict=True)))
    assert (site.workspace / "site.log").read_text() == before


def test_a_site_that_has_not_trained_says_when_to_look_again(joined: Make) -> None:
    site, _, _ = joined()
    with pytest.raises(SiteFault, match="after its next round"):
        look_at(site, count=1)


def test_the_picture_has_a_row_for_each_slice(trained: Callable[..., Site], tmp_path: Any) -> None:
    site = trained()
    heights = []
    for count in (1, 3):
        path = tmp_path / f"{count}.png"
        path.write_bytes(draw(look_at(site, count=count)))
        heights.append(Image.open(path).height)
    assert heights[1] > 2 * heights[0]
