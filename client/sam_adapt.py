"""SAM learns at a site: its adapter is trained on labelled cases, with prompts made from their masks.

What is trained is the adapter alone (`strategies/sam_adapters.py`); the checkpoint's own weights never change, and the
change that a round makes crosses beside the specialist's update. Prompts are of the kinds that the run asks with, moved
about as a specialist's mistakes would move them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from client.sam import Sam
from configs.schema import Sam as Settings
from strategies.records import Case
from strategies.sam_adapters import effective
from strategies.sam_losses import answer_losses
from strategies.sam_parts import to_pixels
from strategies.sam_rough import rough_logits
from strategies.semi.losses import IGNORE
from strategies.semi.prompts import Prompts, jittered, prompts_from

BATCH = 8
"""Images in a step."""

LEARNING_RATE = {"decoder": 1e-4, "lora": 1e-3}
"""Of AdamW; B of a LoRA starts at 0 and has far fewer numbers."""

JITTER = 0.1
"""How far prompts are moved, as a share of the box."""


@dataclass(frozen=True)
class Lesson:
    """Labelled images that SAM may learn from.

    Attributes:
        images: (N, 1 or 3, H, W) in [0, 1]; labels: (N, H, W) int64.
        embeddings: (N, channels, grid, grid) of the images by the checkpoint's encoder; None when that is trained.
    """

    images: Tensor
    labels: Tensor
    embeddings: Tensor | None


def fold(cases: Sequence[Case], patients: Sequence[str]) -> tuple[list[int], list[int]]:
    """Which labelled cases SAM learns from, and which it is judged by: two lists of rows.

    Patients take turns in the order in which they were first asked about (`patients`), so that none changes sides as labels
    arrive, nor in a later run: an adapter that was averaged with others and came back has seen nothing that it is judged
    by. Tuning on one half and on the other in turn would not do: what comes back would have seen both.
    """
    learnt_from = set(patients[::2])
    rows = range(len(cases))
    return [r for r in rows if cases[r].patient in learnt_from], [r for r in rows if cases[r].patient not in learnt_from]


def train_adapter(
    sam: Sam,
    adapter: Mapping[str, Tensor],
    lesson: Lesson,
    settings: Settings,
    *,
    classes: int,
    seed: int,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], float | None, set[int]]:
    """`settings.adapt_steps` steps on the adapter; gives the new one (on the CPU), the mean loss, None without a step, and the
    rows of the lesson that were looked at.

    Args:
        sam: of the checkpoint, not adapted; nothing of it is changed.
        adapter: where training starts, as it came from the coordinator.
        seed: of the run, for LoRA's A.
        generator: draws images and moves prompts; the only randomness.
    """
    learned = {name: value.detach().clone().to(sam.device).requires_grad_() for name, value in adapter.items()}
    truth = torch.where(lesson.labels == IGNORE, 0, lesson.labels)
    if not learned or not bool((truth > 0).any()):
        return {name: value.detach().cpu() for name, value in learned.items()}, None, set()
    own = dict(sam.parts.named_parameters())
    optimiser = torch.optim.AdamW(learned.values(), LEARNING_RATE[settings.adapt], weight_decay=0.0)
    shown = torch.nonzero((truth > 0).flatten(1).any(1)).flatten().cpu()
    sums, seen = torch.zeros((), device=sam.device), set[int]()
    for _ in range(settings.adapt_steps):
        rows = shown[torch.randperm(len(shown), generator=generator)[:BATCH]]
        seen.update(rows.tolist())
        optimiser.zero_grad(set_to_none=True)
        for some in rows.split(sam.images_at_once):  # a trained encoder of 1024 px holds gigabytes for each image
            probs = F.one_hot(truth[some], classes + 1).movedim(-1, 1).float()
            prompts = prompts_from(probs, min_area_px=1, positives=settings.positives, negatives=settings.negatives)
            changed = effective(own, learned, seed=seed)
            if lesson.embeddings is not None:
                embeddings = lesson.embeddings[some].to(sam.device, torch.float32)
            else:
                encoder = {n.removeprefix("image_encoder."): v for n, v in changed.items()}
                pixels = to_pixels(lesson.images[some].to(sam.device), sam.size)
                embeddings = functional_call(sam.parts.image_encoder, encoder, (pixels,))
            loss = _loss(sam, changed, embeddings, prompts, probs, settings, generator) * (len(some) / len(rows))
            loss.backward()
            sums += loss.detach()
        optimiser.step()
    return {name: value.detach().cpu() for name, value in learned.items()}, float(sums) / settings.adapt_steps, seen


def _loss(
    sam: Sam,
    changed: Mapping[str, Tensor],
    embeddings: Tensor,
    prompts: Prompts,
    probs: Tensor,
    settings: Settings,
    generator: torch.Generator,
) -> Tensor:
    """Mean loss of SAM's answers to moved prompts about each component of the truth."""
    side = sam.size.input_px
    scale = side / probs.shape[-1]
    shrinks = side < probs.shape[-1]
    components = prompts.components[:, None].float()
    masks = F.interpolate(components, size=(side, side), mode="bilinear", align_corners=False, antialias=shrinks)[:, 0] > 0.5
    there = masks.flatten(1).any(1)  # what vanishes on SAM's grid would teach it to answer with nothing
    if not bool(there.any()):
        return sum(value.sum() for value in changed.values()) * torch.zeros((), device=sam.device)
    prompts, masks = prompts.select(there), masks[there]
    size = (probs.shape[-2], probs.shape[-1])
    moved = jittered(prompts, size=size, generators=[generator] * len(probs), share=JITTER).to(sam.device)
    coarse = _earlier_answers(masks, generator, side=4 * sam.size.grid).to(sam.device) if settings.mask else None
    clicks = moved.points.shape[1] > 0
    logits, iou = functional_call(
        sam.parts,
        {name: value for name, value in changed.items() if name.startswith("mask_decoder.")},
        (embeddings[moved.image_index],),
        {
            "boxes": moved.boxes * scale if settings.box else None,
            "points": moved.points * scale if clicks else None,
            "point_labels": moved.point_labels if clicks else None,
            "mask_logits": coarse,
        },
    )
    loss, _ = answer_losses(logits, iou, masks.float().to(sam.device), prompts.boxes.to(sam.device) * scale)
    return loss


def _earlier_answers(masks: Tensor, generator: torch.Generator, *, side: int) -> Tensor:
    """What a specialist might have said of `masks` (P, S, S) before it asked: logits (P, 1, side, side) on the CPU.

    Had it seen nothing of an object, it would not have asked: where nothing is left, all logits are raised until some is.
    """
    rough = rough_logits(masks.float().cpu(), generator, side=side)
    return rough + F.relu(1 - rough.amax((1, 2, 3), keepdim=True))
