"""SAM's target holds what the gate let through and nothing else; its loss has a gradient that helps."""

import inspect

import pytest
import torch
from torch import Tensor

from strategies.semi.losses import IGNORE
from strategies.semi.prompts import Prompts, prompts_from
from strategies.semi.sam_target import agreement, sam_loss, target_from


def square(top: int, left: int, bottom: int, right: int, size: int = 24) -> Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def make_prompts(*asked: tuple[int, int, Tensor]) -> Prompts:
    """Prompts (image, class, component) with tight boxes and no clicks."""
    boxes = []
    for _, _, component in asked:
        rows, columns = torch.where(component)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    count = len(asked)
    return Prompts(
        image_index=torch.tensor([image for image, _, _ in asked]),
        class_index=torch.tensor([class_ for _, class_, _ in asked]),
        boxes=torch.tensor(boxes, dtype=torch.float32),
        points=torch.zeros(count, 1, 2),
        point_labels=torch.full((count, 1), -1),
        components=torch.stack([component for _, _, component in asked]),
    )


def logits_of(*masks: Tensor) -> Tensor:
    return torch.stack([torch.where(mask, 4.0, -4.0) for mask in masks])


def teacher(*class_maps: Tensor, classes: int = 2, sure: float = 0.94) -> Tensor:
    one_hot = torch.nn.functional.one_hot(torch.stack(class_maps).long(), classes + 1).movedim(-1, 1).float()
    return one_hot * (sure - (1 - sure) / classes) + (1 - sure) / classes


def test_agreement_is_dice() -> None:
    a, b = square(0, 0, 4, 4), square(0, 2, 4, 6)
    empty = torch.zeros_like(a)
    masks, components = torch.stack([a, a, empty, a]), torch.stack([a, b, empty, empty])
    assert agreement(masks, components).tolist() == pytest.approx([1, 0.5, 1, 0])


def test_a_kept_mask_becomes_its_class_with_sure_background_around_it_and_the_rest_ignored() -> None:
    component, answer = square(8, 8, 16, 16), square(8, 8, 16, 18)
    prompts = make_prompts((0, 2, component))
    target = target_from(
        prompts,
        logits_of(answer),
        torch.tensor([0.9]),
        teacher(component * 2),
        min_iou=0.7,
        min_agreement=0.6,
        background_margin_px=3,
    )
    expected = torch.full((24, 24), IGNORE)
    expected[5:19, 5:19] = 0
    expected[answer] = 2
    assert torch.equal(target[0], expected)
    assert target.dtype == torch.int64


@pytest.mark.parametrize(
    ("iou", "answer", "kept"),
    [
        (0.70, square(8, 8, 16, 16), True),
        (0.69, square(8, 8, 16, 16), False),
        (0.99, square(8, 8, 16, 16), True),
        (0.99, square(4, 4, 20, 20), False),  # Dice 2·64/(64+256) = 0.4
        (0.99, square(8, 8, 16, 12), True),  # 2·32/(64+32) = 0.67
        (0.99, square(0, 0, 4, 4), False),
        (0.99, torch.zeros(24, 24, dtype=torch.bool), False),
    ],
)
def test_the_gate_keeps_what_it_says_and_nothing_else(iou: float, answer: Tensor, kept: bool) -> None:
    component = square(8, 8, 16, 16)
    target = target_from(
        make_prompts((0, 1, component)),
        logits_of(answer),
        torch.tensor([iou]),
        teacher(component),
        min_iou=0.7,
        min_agreement=0.6,
    )
    assert bool((target != IGNORE).any()) is kept
    if kept:
        assert torch.equal(target[0] == 1, answer)


def test_masks_of_different_classes_that_overlap_are_ignored_there_and_of_one_class_joined() -> None:
    left, right = square(8, 4, 16, 13), square(8, 11, 16, 20)
    asked = teacher(left * 1)
    for classes, middle in (((1, 2), IGNORE), ((2, 2), 2)):
        prompts = make_prompts((0, classes[0], left), (0, classes[1], right))
        target = target_from(prompts, logits_of(left, right), torch.ones(2), asked, min_iou=0.5, min_agreement=0.5)[0]
        assert (target[8:16, 4:11] == classes[0]).all()
        assert (target[8:16, 13:20] == classes[1]).all()
        assert (target[8:16, 11:13] == middle).all()


def test_background_is_only_where_the_teacher_is_sure_of_it() -> None:
    component = square(8, 8, 16, 16)
    probs = teacher(component)
    probs[0, :, :, 12:] = teacher(component, sure=0.7)[0, :, :, 12:]
    probs[0, :, 6, :] = teacher(torch.full((24, 24), 2))[0, :, 6, :]  # the teacher sees another class there
    target = target_from(
        make_prompts((0, 1, component)),
        logits_of(component),
        torch.ones(1),
        probs,
        min_iou=0.5,
        min_agreement=0.5,
    )[0]
    assert (target[7, 4:12] == 0).all()
    assert (target[7, 12:] == IGNORE).all()
    assert (target[6] == IGNORE).all()


def test_images_of_a_batch_do_not_touch_each_other_and_permuting_it_permutes_the_target() -> None:
    first, second, third = square(2, 2, 10, 10), square(12, 12, 20, 22), square(6, 3, 18, 9)
    prompts = make_prompts((0, 1, first), (0, 2, second), (2, 2, third))
    probs = teacher(first.int() + 2 * second.int(), torch.zeros(24, 24), 2 * third.int())
    answers, iou = logits_of(first, second, third), torch.tensor([0.9, 0.8, 0.7])
    target = target_from(prompts, answers, iou, probs, min_iou=0.5, min_agreement=0.5)
    assert (target[1] == IGNORE).all()
    assert torch.equal(target[0] == 1, first)
    assert torch.equal(target[0] == 2, second)

    order = torch.tensor([2, 0, 1])  # image i of the new batch is image order[i] of the old
    moved = make_prompts((0, 2, third), (1, 1, first), (1, 2, second))
    permuted = target_from(moved, answers[[2, 0, 1]], iou[[2, 0, 1]], probs[order], min_iou=0.5, min_agreement=0.5)
    assert torch.equal(permuted, target[order])


def test_no_prompts_ignore_everything() -> None:
    probs = teacher(torch.zeros(24, 24))
    prompts = prompts_from(probs)
    target = target_from(prompts, torch.zeros(0, 24, 24), torch.zeros(0), probs, min_iou=0.5, min_agreement=0.5)
    assert (target == IGNORE).all()


def test_there_is_no_way_in_for_a_label_of_an_unlabelled_image() -> None:
    names = list(inspect.signature(target_from).parameters)
    assert names[:4] == ["prompts", "mask_logits", "iou", "teacher_probs"]
    assert [name for name in names if "label" in name or "truth" in name] == []


def test_the_target_carries_no_gradient_back_to_the_teacher() -> None:
    component = square(8, 8, 16, 16)
    probs = teacher(component).requires_grad_()
    target = target_from(
        make_prompts((0, 1, component)), logits_of(component), torch.ones(1), probs, min_iou=0.5, min_agreement=0.5
    )
    assert not target.requires_grad


# ------------------------------------------------------------------------------------------------------------ the loss


def slow_loss(logits: Tensor, target: Tensor) -> float:
    """The formula, pixel by pixel."""
    losses = []
    for image, classes in zip(logits.double(), target, strict=True):
        places = [(r, c) for r in range(target.shape[1]) for c in range(target.shape[2]) if classes[r, c] != IGNORE]
        if not places:
            continue
        probs = image.softmax(0)
        entropy = -sum(float(probs[classes[p], p[0], p[1]].log()) for p in places) / len(places)
        dices = []
        for class_ in range(1, logits.shape[1]):
            truth = [p for p in places if classes[p] == class_]
            if truth:
                overlap = sum(float(probs[class_, r, c]) for r, c in truth)
                mass = sum(float(probs[class_, r, c]) for r, c in places)
                dices.append(1 - (2 * overlap + 1e-5) / (mass + len(truth) + 1e-5))
        losses.append(0.5 * (entropy + (sum(dices) / len(dices) if dices else 0.0)))
    return sum(losses) / len(losses)


def example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (3, 6, 7), generator=generator)
    target[target == 3] = IGNORE
    target[0][target[0] == 2] = IGNORE
    target[2] = IGNORE
    return torch.randn(3, 4, 6, 7, generator=generator), target


def test_the_loss_is_its_formula() -> None:
    logits, target = example()
    assert float(sam_loss(logits, target)) == pytest.approx(slow_loss(logits, target), rel=1e-5)


def test_the_loss_has_a_gradient_and_a_step_along_it_reduces_the_loss() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 1))
    images = torch.rand(2, 1, 24, 24)
    components = square(8, 8, 16, 16), square(2, 4, 12, 20)
    target = target_from(
        make_prompts((0, 1, components[0]), (1, 2, components[1])),
        logits_of(*components),
        torch.ones(2),
        teacher(components[0] * 1, components[1] * 2),
        min_iou=0.5,
        min_agreement=0.5,
    )
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    before = sam_loss(network(images), target)
    before.backward()
    norm = torch.sqrt(sum((p.grad.square().sum() for p in network.parameters() if p.grad is not None), torch.zeros(())))
    assert norm > 1e-3
    optimiser.step()
    assert sam_loss(network(images), target) < before - 1e-4


def test_ignored_pixels_have_no_gradient_and_counted_ones_have() -> None:
    logits, target = example()
    logits.requires_grad_()
    sam_loss(logits, target).backward()
    assert logits.grad is not None
    size = logits.grad.abs().sum(1)
    assert (size[target == IGNORE] == 0).all()
    assert (size[target != IGNORE] > 0).all()


def test_every_class_learns_its_own_pixels() -> None:
    """Two-class code that treats every foreground as class 1 would raise class 1 everywhere."""
    target = torch.full((1, 4, 4), IGNORE)
    target[0, 0], target[0, 1], target[0, 2] = 0, 1, 3
    logits = torch.zeros(1, 4, 4, 4, requires_grad=True)
    sam_loss(logits, target).backward()
    assert logits.grad is not None
    for row, class_ in ((0, 0), (1, 1), (2, 3)):
        assert (logits.grad[0, :, row].argmin(0) == class_).all()


def test_nothing_counted_is_zero_with_a_zero_gradient() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = sam_loss(logits, torch.full((2, 4, 4), IGNORE))
    assert float(loss.detach()) == 0
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_no_image_changes_the_gradient_of_another_but_for_the_mean() -> None:
    logits, target = example()
    target[2] = 1
    alone = []
    for image in range(3):
        one = logits[image : image + 1].clone().requires_grad_()
        sam_loss(one, target[image : image + 1]).backward()
        assert one.grad is not None
        alone.append(one.grad)
    together = logits.clone().requires_grad_()
    sam_loss(together, target).backward()
    assert together.grad is not None
    assert torch.allclose(together.grad, torch.cat(alone) / 3, atol=1e-7)
