"""The exam: the same questions always, guesses that need no image, and a picture of the answers."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from simulation.sam_exam import PROMPTS_PER_SCENE, SCENES, dice, ellipses, examine, filled, questions
from simulation.sam_lessons import tight_boxes
from simulation.sam_picture import ROWS, picture
from strategies.sam_parts import SIZES, Parts


def test_questions_are_the_same_in_every_exam_and_ask_what_they_mean() -> None:
    (scenes, asked), (again, asked_again) = (questions(side=64, device="cpu") for _ in range(2))
    assert torch.equal(scenes.images, again.images)
    assert torch.equal(asked.masks, asked_again.masks)
    assert torch.equal(asked.points, asked_again.points)
    assert len(asked.masks) == SCENES * PROMPTS_PER_SCENE
    assert torch.equal(asked.boxes, tight_boxes(asked.masks))
    for mask, (x, y) in zip(asked.masks, asked.points[:, 0].long().tolist(), strict=True):
        assert mask[y, x] == 1
    assert asked.point_labels.unique(dim=0).tolist() == [[1, -1, -1]]


def test_objects_range_from_discs_to_what_an_ellipse_hardly_fits() -> None:
    _, asked = questions(side=128, device="cpu")
    found = dice(ellipses(asked.boxes, 128), asked.masks > 0)
    assert found.quantile(0.1) < 0.6
    assert found.quantile(0.9) > 0.9
    assert 0.6 < found.mean() < 0.85


def test_guesses_are_the_box_and_the_ellipse_that_touches_its_sides() -> None:
    boxes = torch.tensor([[3.0, 5.0, 20.0, 11.0], [0.0, 0.0, 32.0, 32.0]])
    for box, mask, whole in zip(boxes.int().tolist(), ellipses(boxes, 32), filled(boxes, 32), strict=True):
        left, top, right, bottom = box
        y, x = np.arange(32)[:, None] + 0.5, np.arange(32)[None] + 0.5
        across, along = (2 * x - left - right) / (right - left), (2 * y - top - bottom) / (bottom - top)
        assert np.array_equal(mask.numpy(), across**2 + along**2 <= 1)
        assert whole.sum() == (right - left) * (bottom - top)
        assert whole[top, left]


def test_dice_of_masks() -> None:
    truth = torch.tensor([[[1, 1, 0, 0]], [[1, 0, 0, 0]]]).bool()
    masks = torch.tensor([[[0, 1, 1, 0]], [[0, 0, 0, 0]]]).bool()
    assert dice(masks, truth).tolist() == [0.5, 0.0]


@pytest.fixture(scope="module")
def untrained() -> Parts:
    torch.manual_seed(0)
    return Parts(SIZES["small"])


def test_an_untrained_sam_is_marked_and_pictured(untrained: Parts) -> None:
    marks, answers = examine(untrained, side=SIZES["small"].input_px)
    assert 0 <= marks.clicked < marks.ellipse
    assert marks.boxed == pytest.approx(marks.ellipse, abs=0.1)  # to which it adds next to nothing
    assert marks.box < marks.ellipse < 1
    assert f"SAM with the box {marks.boxed:.3f}" in str(marks)
    image = Image.open(io.BytesIO(picture(answers)))
    assert image.format == "PNG"
    assert image.height > 2 * image.width
    assert ROWS <= SCENES
