"""The table of frameworks: what every one of them must do, and what a batch cannot hold."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from strategies.networks import build_network
from strategies.semi import FRAMEWORKS, Batch, Framework, Outcome, Time
from strategies.semi.augment import draw_intensity, draw_warp
from strategies.semi.mean_teacher import make_teacher


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def make_batch(*, unlabelled: bool) -> Batch:
    drawn = generator()
    images, labels = torch.rand(2, 1, 32, 32, generator=drawn), torch.randint(0, 3, (2, 32, 32), generator=drawn)
    if not unlabelled:
        return Batch(images, labels)
    pool = torch.rand(3, 1, 32, 32, generator=drawn)
    warp = draw_warp(3, size=(32, 32), generator=drawn)
    return Batch(images, labels, pool, warp, draw_intensity(pool.shape, generator=drawn))


def run(framework: Framework, batch: Batch, student: nn.Module) -> Outcome:
    helpers = {name: make_teacher(student) for name in framework.helpers}
    return framework.terms(batch, student, helpers, time=Time(progress=0.5, ramp=0.5), generator=generator())


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("unlabelled", [True, False])
def test_every_framework_learns_with_and_without_unlabelled_images(name: str, unlabelled: bool) -> None:
    framework = FRAMEWORKS[name]
    student = build_network("unet_tiny", in_channels=1, classes=2, norm="instance", dropout=0.0, seed=0)
    outcome = run(framework, make_batch(unlabelled=unlabelled), student)
    assert "supervised" in outcome.losses
    assert set(outcome.losses) <= {"supervised", "consistency"}
    assert ("consistency" in outcome.losses) == (framework.uses_unlabelled and unlabelled)
    for loss in outcome.losses.values():
        assert loss.shape == ()
        assert loss.isfinite()
    torch.autograd.backward(torch.stack(list(outcome.losses.values())).sum())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in student.parameters())


@pytest.mark.parametrize("name", [name for name, framework in FRAMEWORKS.items() if not framework.uses_unlabelled])
def test_a_framework_that_uses_no_unlabelled_images_does_not_look_at_them(name: str) -> None:
    student = build_network("unet_tiny", in_channels=1, classes=2, norm="instance", dropout=0.0, seed=0)
    batch = make_batch(unlabelled=True)
    assert batch.unlabelled is not None
    broken = dataclasses.replace(batch, unlabelled=torch.full_like(batch.unlabelled, float("nan")))
    first, second = (run(FRAMEWORKS[name], b, student).losses for b in (batch, broken))
    assert torch.equal(first["supervised"], second["supervised"])


def test_a_batch_has_no_room_for_labels_of_unlabelled_images() -> None:
    """The leak of the published code cannot be written: as many labels as labelled images, and no other field."""
    batch = make_batch(unlabelled=True)
    assert {field.name for field in dataclasses.fields(Batch)} == {
        "images",
        "labels",
        "unlabelled",
        "warp",
        "intensity",
    }
    with pytest.raises(ValueError, match="one for each labelled image"):
        dataclasses.replace(batch, labels=torch.zeros(5, 32, 32, dtype=torch.int64))


def test_a_batch_that_does_not_fit_is_refused() -> None:
    batch = make_batch(unlabelled=True)
    with pytest.raises(ValueError, match="at least one image"):
        Batch(images=torch.zeros(0, 1, 32, 32), labels=torch.zeros(0, 32, 32, dtype=torch.int64))
    with pytest.raises(ValueError, match="int64"):
        dataclasses.replace(batch, labels=batch.labels.to(torch.uint8))
    with pytest.raises(ValueError, match="unlabelled must be"):
        dataclasses.replace(batch, unlabelled=torch.zeros(3, 2, 32, 32))
    with pytest.raises(ValueError, match="there are none"):
        dataclasses.replace(batch, unlabelled=None)


def test_the_student_s_view_is_warped_then_changed_in_intensity() -> None:
    batch = make_batch(unlabelled=True)
    assert batch.unlabelled is not None
    assert batch.warp is not None
    assert batch.intensity is not None
    view = batch.student_view()
    assert view is not None
    assert torch.equal(view, batch.intensity.images(batch.warp.images(batch.unlabelled)))
    plain = dataclasses.replace(batch, warp=None, intensity=None)
    assert plain.student_view() is plain.unlabelled
    assert make_batch(unlabelled=False).student_view() is None
