"""SAM's target holds what the gate let through and nothing else; its loss has a gradient that helps."""

import inspect

import pytest
import torch
from torch import Tensor

from strategies.semi.augment import Warp
from strategies.semi.losses import IGNORE
from strategies.semi.prompts import Prompts, prompts_from
from strategies.semi.sam_target import Target, sam_loss, target_from


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


def teacher(*class_maps: Tensor, classes: int = 2, sure: float = 0.94) -> Tensor:
    one_hot = torch.nn.functional.one_hot(torch.stack(class_maps).long(), classes + 1).movedim(-1, 1).float()
    return one_hot * (sure - (1 - sure) / classes) + (1 - sure) / classes


def everything(prompts: Prompts) -> Tensor:
    return torch.ones(len(prompts), dtype=torch.bool)


def test_a_kept_mask_becomes_its_class_with_sure_background_around_it_and_the_rest_ignored() -> None:
    component, answer = square(8, 8, 16, 16), square(8, 8, 16, 18)
    prompts = make_prompts((0, 2, component))
    target = target_from(prompts, answer[None], everything(prompts), teacher(component * 2), background_margin_px=3)
    expected = torch.full((24, 24), IGNORE)
    expected[5:19, 5:19] = 0
    expected[answer] = 2
    assert torch.equal(target.classes[0], expected)
    assert target.classes.dtype == torch.int64
    assert torch.equal(target.weight[0], (expected != IGNORE).float())


def test_background_lies_around_the_box_in_an_image_that_is_wider_than_high() -> None:
    component = torch.zeros(16, 24, dtype=torch.bool)
    component[3:7, 14:20] = True
    prompts = make_prompts((0, 1, component))
    target = target_from(prompts, component[None], everything(prompts), teacher(component), background_margin_px=2)
    expected = torch.full((16, 24), IGNORE)
    expected[1:9, 12:22] = 0
    expected[3:7, 14:20] = 1
    assert torch.equal(target.classes[0], expected)


def test_a_mask_that_is_not_kept_leaves_no_trace() -> None:
    first, second = square(2, 2, 10, 10), square(12, 12, 20, 22)
    probs = teacher(first.int() + 2 * second.int())
    both, one = make_prompts((0, 1, first), (0, 2, second)), make_prompts((0, 1, first))
    kept = torch.tensor([True, False])
    some = target_from(both, torch.stack([first, second]), kept, probs)
    alone = target_from(one, first[None], everything(one), probs)
    assert torch.equal(some.classes, alone.classes)
    assert torch.equal(some.weight, alone.weight)


def test_classes_count_by_the_trust_in_them_and_not_at_all_without() -> None:
    first, second = square(2, 2, 10, 10), square(13, 13, 20, 22)
    probs = teacher(first.int() + 2 * second.int())
    prompts = make_prompts((0, 1, first), (0, 2, second))
    masks = torch.stack([first, second])
    target = target_from(prompts, masks, everything(prompts), probs, trust=torch.tensor([0.0, 0.25, 0.5]))
    assert (target.weight[0][first] == 0.25).all()
    assert (target.weight[0][second] == 0.5).all()
    assert target.weight[0, 0, 0] == 0.25, "background beside the first"
    assert target.weight[0, 21, 21] == 0.5, "background beside the second"
    assert target.weight[0, 11, 11] == 0.5, "background beside both counts by the higher"
    none = target_from(prompts, masks, everything(prompts), probs, trust=torch.tensor([1.0, 0.0, 1.0]))
    assert not (none.classes == 1).any()
    assert (none.weight[0][first] == 0).all()


def test_a_warped_target_ignores_what_lies_outside_the_image() -> None:
    component = square(8, 0, 16, 8)
    prompts = make_prompts((0, 1, component))
    target = target_from(prompts, component[None], everything(prompts), teacher(component))
    right = Warp(torch.tensor([[[1.0, 0.0, -0.5], [0.0, 1.0, 0.0]]]), (24, 24))  # a quarter of the side to the right
    moved = target.warped(right)
    assert (moved.classes[0, :, :6] == IGNORE).all()
    assert (moved.weight[0, :, :6] == 0).all()
    assert torch.equal(moved.classes[0, :, 6:], target.classes[0, :, :18])
    assert torch.allclose(moved.weight[0, :, 7:], target.weight[0, :, 1:18], atol=1e-5)


def test_masks_of_different_classes_that_overlap_are_ignored_there_and_of_one_class_joined() -> None:
    left, right = square(8, 4, 16, 13), square(8, 11, 16, 20)
    asked = teacher(left * 1)
    for classes, middle in (((1, 2), IGNORE), ((2, 2), 2)):
        prompts = make_prompts((0, classes[0], left), (0, classes[1], right))
        target = target_from(prompts, torch.stack([left, right]), everything(prompts), asked).classes[0]
        assert (target[8:16, 4:11] == classes[0]).all()
        assert (target[8:16, 13:20] == classes[1]).all()
        assert (target[8:16, 11:13] == middle).all()


def test_background_is_only_where_the_teacher_is_sure_of_it() -> None:
    component = square(8, 8, 16, 16)
    probs = teacher(component)
    probs[0, :, :, 12:] = teacher(component, sure=0.7)[0, :, :, 12:]
    probs[0, :, 6, :] = teacher(torch.full((24, 24), 2))[0, :, 6, :]  # the teacher sees another class there
    prompts = make_prompts((0, 1, component))
    target = target_from(prompts, component[None], everything(prompts), probs).classes[0]
    assert (target[7, 4:12] == 0).all()
    assert (target[7, 12:] == IGNORE).all()
    assert (target[6] == IGNORE).all()


def test_images_of_a_batch_do_not_touch_each_other_and_permuting_it_permutes_the_target() -> None:
    first, second, third = square(2, 2, 10, 10), square(12, 12, 20, 22), square(6, 3, 18, 9)
    prompts = make_prompts((0, 1, first), (0, 2, second), (2, 2, third))
    probs = teacher(first.int() + 2 * second.int(), torch.zeros(24, 24), 2 * third.int())
    answers, trust = torch.stack([first, second, third]), torch.tensor([0.0, 0.5, 0.7])
    both = target_from(prompts, answers, everything(prompts), probs, trust=trust)
    target = both.classes
    assert (target[1] == IGNORE).all()
    assert torch.equal(target[0] == 1, first)
    assert torch.equal(target[0] == 2, second)

    order = torch.tensor([2, 0, 1])  # image i of the new batch is image order[i] of the old
    moved = make_prompts((0, 2, third), (1, 1, first), (1, 2, second))
    permuted = target_from(moved, answers[[2, 0, 1]], everything(moved), probs[order], trust=trust)
    assert torch.equal(permuted.classes, target[order])
    assert torch.equal(permuted.weight, both.weight[order])


def test_no_prompts_ignore_everything() -> None:
    probs = teacher(torch.zeros(24, 24))
    prompts = prompts_from(probs)
    target = target_from(prompts, torch.zeros(0, 24, 24, dtype=torch.bool), everything(prompts), probs)
    assert (target.classes == IGNORE).all()
    assert (target.weight == 0).all()


def test_there_is_no_way_in_for_a_label_of_an_unlabelled_image() -> None:
    names = list(inspect.signature(target_from).parameters)
    assert names[:4] == ["prompts", "masks", "kept", "teacher_probs"]
    assert [name for name in names if "label" in name or "truth" in name] == []


def test_the_target_carries_no_gradient_back_to_the_teacher() -> None:
    component = square(8, 8, 16, 16)
    probs = teacher(component).requires_grad_()
    prompts = make_prompts((0, 1, component))
    target = target_from(prompts, component[None], everything(prompts), probs)
    assert not target.classes.requires_grad
    assert not target.weight.requires_grad


# ------------------------------------------------------------------------------------------------------------ the loss


def slow_loss(logits: Tensor, target: Target) -> float:
    """The formula, pixel by pixel."""
    losses = []
    for image, classes, weight in zip(logits.double(), target.classes, target.weight.double(), strict=True):
        size = classes.shape
        places = [(r, c) for r in range(size[0]) for c in range(size[1]) if classes[r, c] != IGNORE]
        if not places:
            continue
        probs = image.softmax(0)
        entropy = -sum(float(weight[p] * probs[classes[p], p[0], p[1]].log()) for p in places) / len(places)
        dices = []
        for class_ in range(1, logits.shape[1]):
            truth = [p for p in places if classes[p] == class_]
            if truth:
                overlap = sum(float(probs[class_, r, c]) for r, c in truth)
                mass = sum(float(probs[class_, r, c]) for r, c in places)
                trust = sum(float(weight[p]) for p in truth) / len(truth)
                dices.append(trust * (1 - (2 * overlap + 1e-5) / (mass + len(truth) + 1e-5)))
        losses.append(0.5 * (entropy + (sum(dices) / len(dices) if dices else 0.0)))
    return sum(losses) / len(losses)


def example() -> tuple[Tensor, Target]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (3, 6, 7), generator=generator)
    target[target == 3] = IGNORE
    target[0][target[0] == 2] = IGNORE
    target[2] = IGNORE
    logits = torch.randn(3, 4, 6, 7, generator=generator)
    return logits, Target(target, torch.rand(3, 6, 7, generator=generator) * 0.9 + 0.1)


def fully(classes: Tensor) -> Target:
    return Target(classes, (classes != IGNORE).float())


def test_the_loss_is_its_formula() -> None:
    logits, target = example()
    assert float(sam_loss(logits, target)) == pytest.approx(slow_loss(logits, target), rel=1e-5)


def test_the_loss_has_a_gradient_and_a_step_along_it_reduces_the_loss() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 1))
    images = torch.rand(2, 1, 24, 24)
    components = square(8, 8, 16, 16), square(2, 4, 12, 20)
    prompts = make_prompts((0, 1, components[0]), (1, 2, components[1]))
    probs = teacher(components[0] * 1, components[1] * 2)
    target = target_from(prompts, torch.stack(components), everything(prompts), probs)
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
    assert (size[target.classes == IGNORE] == 0).all()
    assert (size[target.classes != IGNORE] > 0).all()


def test_every_class_learns_its_own_pixels() -> None:
    """Two-class code that treats every foreground as class 1 would raise class 1 everywhere."""
    target = torch.full((1, 4, 4), IGNORE)
    target[0, 0], target[0, 1], target[0, 2] = 0, 1, 3
    logits = torch.zeros(1, 4, 4, 4, requires_grad=True)
    sam_loss(logits, fully(target)).backward()
    assert logits.grad is not None
    for row, class_ in ((0, 0), (1, 1), (2, 3)):
        assert (logits.grad[0, :, row].argmin(0) == class_).all()


def test_nothing_counted_is_zero_with_a_zero_gradient() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = sam_loss(logits, fully(torch.full((2, 4, 4), IGNORE)))
    assert float(loss.detach()) == 0
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_no_image_changes_the_gradient_of_another_but_for_the_mean() -> None:
    logits, target = example()
    target.classes[2] = 1
    alone = []
    for image in range(3):
        one = logits[image : image + 1].clone().requires_grad_()
        sam_loss(one, Target(target.classes[image : image + 1], target.weight[image : image + 1])).backward()
        assert one.grad is not None
        alone.append(one.grad)
    together = logits.clone().requires_grad_()
    sam_loss(together, target).backward()
    assert together.grad is not None
    assert torch.allclose(together.grad, torch.cat(alone) / 3, atol=1e-7)


def test_half_the_trust_is_half_the_loss_and_none_is_none() -> None:
    logits, target = example()
    full = sam_loss(logits, target)
    assert torch.isclose(sam_loss(logits, Target(target.classes, target.weight / 2)), full / 2)
    assert float(sam_loss(logits, Target(target.classes, torch.zeros_like(target.weight)))) == 0
