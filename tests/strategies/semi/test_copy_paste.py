"""BCP: which pixel comes from where, whose label it has and what it weighs; components; the first phase."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from strategies.networks import build_network
from strategies.semi import copy_paste, losses
from strategies.semi.augment import draw_intensity, draw_warp
from strategies.semi.batch import Batch, Outcome, Time
from strategies.semi.copy_paste import PRETRAINING, largest_components, mixed_labelled, pseudo_labels, rectangles
from strategies.semi.losses import IGNORE
from strategies.semi.mean_teacher import make_teacher
from strategies.semi.mixing import draw_partners

SIDE = 12
LATER, FIRST = Time(0.5, 1.0), Time(0.0, 0.0067)


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Recorder(nn.Module):
    """A pixelwise network of four classes that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, 1.0, -2.0, 0.7]))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        return images[:, :1] * self.weight.view(1, -1, 1, 1)


def run(batch: Batch, student: nn.Module, teacher: nn.Module, time: Time = LATER) -> Outcome:
    return copy_paste.terms(batch, student, {"teacher": teacher}, time=time, generator=generator())


def constant(values: list[float]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE).clone()


@pytest.mark.parametrize(("labelled", "unlabelled"), [(2, 2), (1, 3), (3, 1), (2, 3)])
def test_every_pixel_comes_from_where_the_rectangle_says(labelled: int, unlabelled: int) -> None:
    """Labelled images are 0.1, 0.2, …; unlabelled ones 0.6, 0.7, …: a grey value names its image."""
    ours, theirs = [0.1 * (n + 1) for n in range(labelled)], [0.6 + 0.1 * n for n in range(unlabelled)]
    labels = torch.stack([torch.full((SIDE, SIDE), n % 4) for n in range(labelled)])
    batch, student = Batch(constant(ours), labels, constant(theirs)), Recorder()
    run(batch, student, make_teacher(Recorder()))
    (shown,) = student.seen
    count = max(labelled, unlabelled)
    assert len(shown) == 2 * count
    inside = rectangles(count, batch.images, generator=generator())
    for pair in range(count):
        a, b, box = shown[pair, 0], shown[count + pair, 0], inside[pair]
        labelled_grey, unlabelled_grey = ours[pair % labelled], theirs[pair % unlabelled]
        rows, columns = torch.where(box)
        assert [int(places.max() - places.min()) + 1 for places in (rows, columns)] == [8, 8]
        assert box.sum() == 64
        assert torch.allclose(a[box], torch.tensor(labelled_grey))
        assert torch.allclose(a[~box], torch.tensor(unlabelled_grey))
        assert torch.allclose(b[box], torch.tensor(unlabelled_grey))
        assert torch.allclose(b[~box], torch.tensor(labelled_grey))
    assert {round(float(v), 1) for v in shown.unique()} == {round(v, 1) for v in ours + theirs}, "every image is in"


def test_each_part_has_its_own_labels_and_the_unlabelled_part_weighs_half() -> None:
    drawn = generator(1)
    unlabelled = torch.rand(2, 1, 16, 16, generator=drawn)
    batch = Batch(
        images=torch.rand(2, 1, 16, 16, generator=drawn),
        labels=torch.randint(0, 4, (2, 16, 16), generator=drawn),
        unlabelled=unlabelled,
        warp=draw_warp(2, size=(16, 16), generator=drawn),
        intensity=draw_intensity(unlabelled.shape, generator=drawn),
    )
    batch.labels[0, :4] = IGNORE
    student, teacher = (
        build_network("unet_tiny", in_channels=1, classes=3, norm="instance", dropout=0.0, seed=seed) for seed in (0, 1)
    )
    outcome, view = run(batch, student, make_teacher(teacher)), batch.student_view()
    assert view is not None
    inside = rectangles(2, view, generator=generator())
    guessed = pseudo_labels(teacher(unlabelled).softmax(1), batch)
    expected = {"supervised": torch.zeros(()), "consistency": torch.zeros(())}
    together = torch.empty(2, 4, 16, 16)
    for n in range(2):
        box = inside[n]
        for image, ours in (
            (torch.where(box, batch.images[n], view[n]), box),
            (torch.where(box, view[n], batch.images[n]), ~box),
        ):
            logits = student(image.unsqueeze(0))
            true = torch.where(ours, batch.labels[n], IGNORE).unsqueeze(0)
            guess = torch.where(ours, IGNORE, guessed[n]).unsqueeze(0)
            expected["supervised"] = expected["supervised"] + losses.supervised(logits, true) / 4
            expected["consistency"] = expected["consistency"] + 0.5 * losses.supervised(logits, guess) / 4
            together[n][:, ~ours] = logits[0][:, ~ours].detach()
    for term, value in expected.items():
        torch.testing.assert_close(outcome.losses[term], value, rtol=1e-4, atol=1e-5)
    assert outcome.logits_unlabelled is not None
    torch.testing.assert_close(outcome.logits_unlabelled.detach(), together, rtol=1e-4, atol=1e-4)


def test_at_first_labelled_images_alone_are_mixed_and_the_answer_is_on_whole_images() -> None:
    labels = torch.stack([torch.full((SIDE, SIDE), n) for n in range(3)])
    batch, student = Batch(constant([0.1, 0.2, 0.3]), labels, constant([0.6, 0.7])), Recorder()
    for progress in (0.0, PRETRAINING - 1e-6):
        student.seen.clear()
        outcome = run(batch, student, make_teacher(Recorder()), Time(progress, 1.0))
        assert set(outcome.losses) == {"supervised"}
        (shown,) = student.seen
        assert torch.equal(shown[3:], constant([0.6, 0.7]))
        assert {round(float(value), 1) for value in shown[:3].unique()} == {0.1, 0.2, 0.3}
    assert "consistency" in run(batch, student, make_teacher(Recorder()), Time(PRETRAINING, 1.0)).losses


def test_labels_go_with_the_pixels_among_labelled_images() -> None:
    labels = torch.stack([torch.full((SIDE, SIDE), n) for n in range(3)])
    images, mixed = mixed_labelled(Batch(constant([0.0, 0.1, 0.2]), labels), generator=generator())
    torch.testing.assert_close(images[:, 0], mixed / 10)
    drawn = generator()
    inside = rectangles(3, images, generator=drawn)
    partner = draw_partners(3, generator=drawn)
    for n in range(3):
        assert (mixed[n][inside[n]] == partner[n]).all()
        assert (mixed[n][~inside[n]] == n).all()
    alone = Batch(constant([0.3]), labels[:1])
    assert torch.equal(mixed_labelled(alone, generator=generator())[0], alone.images)


def test_only_the_largest_component_of_each_class_is_believed_and_the_others_are_ignored() -> None:
    rows = [
        "1110002",
        "1100020",  # touches the 2 above at its corner: one component
        "0000000",
        "1000333",
        "0030000",  # touches no other 3: ignored
        "2000000",
    ]
    labels = torch.tensor([[int(value) for value in row] for row in rows])
    empty = torch.zeros_like(labels)
    found = largest_components(torch.stack([labels, empty, labels.flip(1)]))
    expected = labels.clone()
    expected[3, 0] = expected[4, 2] = expected[5, 0] = IGNORE
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], empty)
    assert torch.equal(found[2], expected.flip(1))
    assert labels.max() == 3, "what came in is left alone"


def test_pseudo_labels_hold_the_largest_component_alone() -> None:
    probs = torch.zeros(1, 2, 32, 32)
    probs[:, 0] = 0.4
    probs[:, 1, 4:16, 4:16] = probs[:, 1, 24:28, 24:28] = 0.6
    batch = Batch(torch.rand(1, 1, 32, 32), torch.zeros(1, 32, 32, dtype=torch.int64), torch.rand(1, 1, 32, 32))
    (labels,) = pseudo_labels(probs, batch)
    assert (labels[4:16, 4:16] == 1).all()
    assert (labels[24:28, 24:28] == IGNORE).all()
    assert int((labels != 0).sum()) == 12 * 12 + 4 * 4


def test_pseudo_labels_are_warped_and_what_the_warp_brings_in_is_ignored() -> None:
    drawn = generator(2)
    warp = draw_warp(4, size=(32, 32), generator=drawn)
    images = torch.rand(4, 1, 32, 32, generator=drawn)
    batch = Batch(images[:1], torch.zeros(1, 32, 32, dtype=torch.int64), images, warp)
    probs = torch.zeros(4, 3, 32, 32)
    probs[:, 0], probs[:, 2, 8:20, 10:26] = 0.4, 0.6
    labels = pseudo_labels(probs, batch)
    assert ((labels == IGNORE) == ~warp.valid).all()
    assert not warp.valid.all()
    block = warp.labels(probs.argmax(1))
    assert torch.equal(labels[warp.valid], block[warp.valid])
    assert set(labels.unique().tolist()) == {0, 2, IGNORE}


def test_the_teacher_guesses_from_the_original_images_without_noise() -> None:
    teacher, images = make_teacher(Recorder()), torch.rand(2, 1, SIDE, SIDE, generator=generator())
    batch = Batch(images[:1], torch.zeros(1, SIDE, SIDE, dtype=torch.int64), images)
    for time in (FIRST, LATER):
        outcome = run(batch, Recorder(), teacher, time)
        assert outcome.teacher_probs is not None
        torch.testing.assert_close(outcome.teacher_probs, teacher(images).softmax(1))
    assert isinstance(teacher, Recorder)
    assert all(torch.equal(seen, images) for seen in teacher.seen)
