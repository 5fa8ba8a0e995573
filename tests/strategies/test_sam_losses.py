"""The loss of an answer is least for the right one, whatever the size of the object."""

import torch
from torch.nn import functional as F

from strategies.sam_losses import answer_losses, true_iou


def test_the_loss_is_least_for_the_right_mask_and_the_right_confidence() -> None:
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    masks = ((y - 50) ** 2 + (x - 70) ** 2 < 20**2).float()[None]
    boxes = torch.tensor([[50.0, 30.0, 90.0, 70.0]])
    right = (F.avg_pool2d(masks[:, None], 2) - 0.5).mul(30).expand(-1, 4, -1, -1)
    sure = torch.ones(1, 4)
    best, dice = answer_losses(right, sure, masks, boxes)
    assert best < 0.1
    assert dice > 0.98
    for logits, iou in ((right.roll(6, 3), sure), (-right, sure), (right, sure * 0.2), (torch.zeros_like(right), sure)):
        worse, _ = answer_losses(logits, iou, masks, boxes)
        assert worse > best + 0.2


def test_only_the_best_of_the_three_masks_for_ambiguous_prompts_learns() -> None:
    masks = torch.zeros(1, 128, 128)
    masks[:, 40:80, 40:80] = 1
    boxes = torch.tensor([[40.0, 40.0, 80.0, 80.0]])
    logits = torch.zeros(1, 4, 64, 64)
    logits[:, 2] = (F.avg_pool2d(masks, 2) - 0.5) * 4
    logits.requires_grad_()
    loss, _ = answer_losses(logits, torch.zeros(1, 4), masks, boxes)
    loss.backward()
    assert logits.grad is not None
    size = logits.grad.abs().sum((0, 2, 3))
    assert (size[[0, 2]] > 0).all()
    assert (size[[1, 3]] == 0).all()


def test_true_iou_is_that_of_the_mask_at_full_size() -> None:
    masks = torch.zeros(1, 128, 128)
    masks[0, 32:64, 32:96] = 1
    answers = torch.stack([masks[0], masks[0].roll(32, 1), 1 - masks[0], torch.ones(128, 128)])
    logits = F.avg_pool2d(answers[None], 2) - 0.5
    assert torch.allclose(true_iou(logits, masks), torch.tensor([[1.0, 1 / 3, 0.0, 0.125]]))


def test_a_small_object_weighs_as_much_as_a_large_one() -> None:
    """The loss of finding nothing is about the same, whatever share of the picture the object is."""
    found = []
    for half in (4, 12, 40):
        masks = torch.zeros(1, 128, 128)
        masks[:, 64 - half : 64 + half, 64 - half : 64 + half] = 1
        boxes = torch.tensor([[64.0 - half, 64.0 - half, 64.0 + half, 64.0 + half]])
        loss, _ = answer_losses(torch.full((1, 4, 64, 64), -4.0), torch.zeros(1, 4), masks, boxes)
        found.append(float(loss))
    assert max(found) < 1.8 * min(found)
