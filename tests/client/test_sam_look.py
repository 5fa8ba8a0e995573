"""What a hospital sees of SAM is what training is told by it, and nobody's truth but that of validation patients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from client.faults import SiteFault
from client.models import LocalModels, save_models
from client.plan import Plan
from client.sam import Sam
from client.sam_look import Looks, look_at
from client.sam_picture import draw, told
from client.sam_teacher import SamTeacher
from client.site import Site
from client.store import Store
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
        settings = plan.model_dump(mode="json")
        path = site.workspace / "models" / "local.safetensors"
        save_models(path, LocalModels("r", 2, 3, 0, model, settings=settings))

        def decode(self: Sam, embeddings: Tensor, prompts: Prompts, **how: Any) -> tuple[Tensor, Tensor]:
            masks = prompts.components.roll(moved, dims=2)
            return torch.where(masks, 4.0, -4.0), torch.full((len(prompts),), rating)

        monkeypatch.setattr(Sam, "encode", lambda self, images: torch.zeros(len(images), *self.embedding_shape))
        monkeypatch.setattr(Sam, "decode", decode)
        monkeypatch.setattr("client.sam_look.predict", lambda network, slices, cases, device: squares(len(cases)))
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
