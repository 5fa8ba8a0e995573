"""Trains the small SAM on synthetic scenes, to be shipped or replaced: `wardround pretrain-sam`.

A promptable segmenter learns to answer "what is in this box, at this click?" for any object. Each step draws new scenes
(`simulation/sam_shapes.py`), picks objects in them, and prompts for each with a box, with clicks, or with both, as
exact or as careless as a specialist's prediction would make them. The first mask answers boxes, the other three
compete for ambiguous prompts (only the best of them learns), and the IoU head learns how good each mask turned out
(Kirillov et al., 2023, §3).

A run is a number of steps; every step's draws follow from the seed and the step alone, so a run that was killed and
resumed sees the same scenes as one that never stopped. What is saved is the moving average of the weights.
"""

from __future__ import annotations

import io
import math
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Generator, Tensor
from torch.nn import functional as F

from client.sam_parts import SIZES, Parts, predict, to_pixels
from configs.files import write_bytes
from simulation.sam_shapes import OBJECTS, Scenes, draw

POINTS = 3
"""Clicks in a prompt: at most one inside and two outside, fewer where a draw leaves some out."""

MIN_AREA_PX = 12
"""Objects of which less is seen are not asked for."""


@dataclass(frozen=True)
class Recipe:
    """What a run depends on; a checkpoint of another recipe is not resumed.

    `bfloat16` is for the image encoder's products alone: positions of prompts need more digits than it has.
    """

    steps: int
    seed: int
    batch: int
    bfloat16: bool = False
    prompts_per_image: int = 6
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warm_up: int = 200
    average_decay: float = 0.998


@dataclass(frozen=True)
class Progress:
    """Where a run is: `step` of `steps`, mean loss and Dice of the first mask since the last report, seconds so far."""

    step: int
    steps: int
    loss: float
    dice: float
    seconds: float


@dataclass(frozen=True)
class Asked:
    """Prompts and what they ask for, in pixels of the scene.

    Attributes:
        image_index: (P,) int64, the scene of each prompt.
        masks: (P, S, S) float32 of 0 and 1, the object meant.
        boxes: (P, 4); points: (P, POINTS, 2); point_labels: (P, POINTS), as `client.sam_parts.predict` takes them.
    """

    image_index: Tensor
    masks: Tensor
    boxes: Tensor
    points: Tensor
    point_labels: Tensor


def ask(scenes: Scenes, generator: Generator, *, prompts_per_image: int) -> Asked:
    """Draw objects from each scene, with replacement, and a prompt for each; scenes without an object get none."""
    side = scenes.labels.shape[-1]
    present = F.one_hot(scenes.labels, OBJECTS + 1).sum((1, 2))[:, 1:]
    weights = (present >= MIN_AREA_PX).float()
    images = torch.nonzero(weights.any(1)).flatten()
    picked = torch.multinomial(weights[images], prompts_per_image, replacement=True, generator=generator).flatten()
    image_index = images.repeat_interleave(prompts_per_image)
    masks = (scenes.labels[image_index] == (picked + 1)[:, None, None]).float()
    points, point_labels = _clicks(masks, generator)
    return Asked(image_index, masks, _boxes(masks, generator).clamp(0, side), points, point_labels)


def _boxes(masks: Tensor, generator: Generator) -> Tensor:
    """Boxes around masks: a quarter of them tight, the others with every edge off by some pixels or some percent."""
    side = masks.shape[-1]
    place = torch.arange(side, device=masks.device)
    edges = []
    for axis in (1, 2):  # over rows: which columns; over columns: which rows
        used = masks.amax(axis) > 0
        edges += [torch.where(used, place, side).amin(1), torch.where(used, place + 1, 0).amax(1)]
    tight = torch.stack([edges[0], edges[2], edges[1], edges[3]], 1).float()
    extent = (tight[:, 2:] - tight[:, :2]).repeat(1, 2)
    care = torch.rand(len(masks), 1, generator=generator, device=masks.device)
    spread = torch.where(care < 0.25, 0.0, torch.where(care < 0.8, 0.03, 0.1)) * extent + (care >= 0.25) * 0.8
    outwards = torch.tensor([-1.0, -1.0, 1.0, 1.0], device=masks.device)
    padding = (care >= 0.5) * torch.rand(len(masks), 1, generator=generator, device=masks.device) * 2.5
    noise = torch.randn(tight.shape, generator=generator, device=masks.device).clamp(-2.5, 2.5)
    return tight + outwards * padding + spread * noise


def _clicks(masks: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """One click inside each mask, rather deep, and two outside near its border; each left out (-1) now and then."""
    count, side = masks.shape[0], masks.shape[-1]
    cell = 4
    coarse = F.avg_pool2d(masks[:, None], cell)
    depth = F.avg_pool2d(coarse, 3, stride=1, padding=1) ** 4
    beside = ((F.max_pool2d(coarse, 7, stride=1, padding=3) > 0) & (coarse == 0)).float()
    fine = F.interpolate(torch.cat([depth, beside], 1), scale_factor=cell, mode="nearest")
    inside = (masks * fine[:, 0]).flatten(1)
    outside = fine[:, 1].flatten(1) + 1e-9  # a mask that fills the picture has no outside; its click is left out below
    spots = torch.cat(
        [
            torch.multinomial(inside, 1, replacement=True, generator=generator),
            torch.multinomial(outside, POINTS - 1, replacement=True, generator=generator),
        ],
        dim=1,
    )
    points = torch.stack([spots % side, torch.div(spots, side, rounding_mode="floor")], -1).float() + 0.5
    left_out = torch.rand(count, POINTS, generator=generator, device=masks.device) < torch.tensor(
        [0.35, 0.5, 0.5], device=masks.device
    )
    hit = masks.flatten(1).gather(1, spots)
    kind = torch.tensor([1] + [0] * (POINTS - 1), device=masks.device)
    labels = torch.where(left_out | (hit != kind), -1, kind)
    return torch.where((labels >= 0)[..., None], points, 0.0), labels


def losses(logits: Tensor, predicted_iou: Tensor, masks: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss of a batch of prompts, and mean Dice of the first masks.

    The loss of a mask is cross-entropy plus Dice against the share of each coarse pixel that the object covers;
    cross-entropy counts fully in and around the box and a tenth elsewhere, or small objects would drown in background.

    Args:
        logits: (P, 4, h, w), predicted_iou: (P, 4); masks: (P, S, S), S a multiple of h; boxes: (P, 4) in pixels of S.
    """
    ratio = masks.shape[-1] // logits.shape[-1]
    share = F.avg_pool2d(masks[:, None], ratio)
    weight = _focus(boxes / ratio, logits.shape[-1])[:, None]
    entropy = F.binary_cross_entropy_with_logits(logits, share.expand_as(logits), reduction="none")
    entropy = (entropy * weight).sum((2, 3)) / weight.sum((2, 3))
    probability = torch.sigmoid(logits)
    overlap = (probability * share).sum((2, 3))
    both = probability.square().sum((2, 3)) + share.square().sum((2, 3))
    each = entropy + 1 - (2 * overlap + 0.1) / (both + 0.1)
    best_of_three = each[:, 1:].amin(1)

    with torch.no_grad():
        fine = F.interpolate(logits, size=masks.shape[-2:], mode="bilinear", align_corners=False) > 0
        meant = masks[:, None] > 0.5
        shared, united = (fine & meant).sum((2, 3)), (fine | meant).sum((2, 3))
        iou = shared / united.clamp(min=1)
        dice = 2 * iou[:, 0] / (1 + iou[:, 0])
    confidence = (predicted_iou - iou).square().mean(1)
    return (each[:, 0] + 0.5 * best_of_three + confidence).mean(), dice.mean()


def _focus(boxes: Tensor, side: int) -> Tensor:
    """(P, side, side): 1 in boxes a third larger on every side, 0.1 elsewhere."""
    place = torch.arange(side, device=boxes.device) + 0.5
    margin = (boxes[:, 2:] - boxes[:, :2]) / 3 + 1
    low, high = boxes[:, :2] - margin, boxes[:, 2:] + margin
    columns = (place >= low[:, :1]) & (place <= high[:, :1])
    rows = (place >= low[:, 1:]) & (place <= high[:, 1:])
    return 0.1 + 0.9 * (rows[:, :, None] & columns[:, None, :]).float()


def pretrain(
    out: Path,
    *,
    steps: int,
    seed: int = 0,
    device: str = "cpu",
    batch: int = 8,
    bfloat16: bool = False,
    resume: bool = False,
    every: int = 100,
    save_every: int = 200,
) -> Iterator[Progress]:
    """Train, yielding progress every `every` steps; `out` (safetensors) holds usable weights from the first save on.

    Beside `out` lies `<out>.checkpoint` with all that resuming needs, until the run is over. Both are written
    atomically.

    Raises:
        ValueError: numbers that make no sense, or a checkpoint to resume from that is missing or of another recipe.
        configs.files.StorageFault: `out` can't be written.
    """
    if steps < 1 or batch < 1:
        raise ValueError(f"pretraining needs one step and one image a batch at least: steps = {steps}, batch = {batch}")
    recipe, size = Recipe(steps=steps, seed=seed, batch=batch, bfloat16=bfloat16), SIZES["small"]
    torch.manual_seed(seed)  # initial weights alone; all else is drawn from generators
    parts = Parts(size).to(device).train()
    _initialise(parts)
    optimiser = torch.optim.AdamW(
        _groups(parts, recipe.weight_decay), lr=recipe.learning_rate, betas=(0.9, 0.98), fused=False
    )
    average = {name: tensor.detach().clone() for name, tensor in parts.state_dict().items()}
    start, seconds = 0, 0.0
    checkpoint = _checkpoint_of(out)
    if resume:
        state = _read_checkpoint(checkpoint, recipe)
        parts.load_state_dict(state["weights"])
        optimiser.load_state_dict(state["optimiser"])
        average = {name: tensor.to(device) for name, tensor in state["average"].items()}
        start, seconds = state["step"], state["seconds"]

    began, sums, counted = time.monotonic() - seconds, torch.zeros(2, device=device), 0
    for step in range(start, steps):
        generator = Generator(device=device).manual_seed(seed * 1_000_003 + step)
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe)
        sums += _step(parts, optimiser, generator, recipe)
        counted += 1
        _follow(average, parts, decay=min(recipe.average_decay, (step + 1) / (step + 10)))
        done = step + 1
        if done % save_every == 0 or done == steps:
            write_bytes(out, save({name: tensor.cpu().contiguous() for name, tensor in average.items()}))
            if done < steps:
                seconds = time.monotonic() - began
                _write_checkpoint(checkpoint, recipe, parts, optimiser, average, done, seconds)
        if done % every == 0 or done == steps:
            loss, dice = (sums / counted).tolist()
            yield Progress(done, steps, loss, dice, time.monotonic() - began)
            sums, counted = torch.zeros(2, device=device), 0
    checkpoint.unlink(missing_ok=True)


def _step(parts: Parts, optimiser: torch.optim.Optimizer, generator: Generator, recipe: Recipe) -> Tensor:
    """One gradient step; gives (loss, Dice), detached."""
    size = SIZES["small"]
    scenes = draw(generator, batch=recipe.batch, side=size.input_px)
    asked = ask(scenes, generator, prompts_per_image=recipe.prompts_per_image)
    clicks_only = torch.rand((), generator=generator, device=generator.device).item() < 0.15
    with torch.autocast(scenes.images.device.type, torch.bfloat16, enabled=recipe.bfloat16):
        embeddings = parts.image_encoder(to_pixels(scenes.images, size))
    logits, iou = predict(
        parts,
        embeddings[asked.image_index].float(),
        boxes=None if clicks_only else asked.boxes,
        points=asked.points,
        point_labels=asked.point_labels,
    )
    if clicks_only:  # without a box, a prompt whose click was left out asks for nothing
        asks = (asked.point_labels == 1).any(1)
        logits, iou = logits[asks], iou[asks]
        asked = Asked(
            asked.image_index[asks], asked.masks[asks], asked.boxes[asks], asked.points[asks], asked.point_labels[asks]
        )
    loss, dice = losses(logits, iou, asked.masks, asked.boxes)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
    optimiser.step()
    return torch.stack([loss.detach(), dice])


def _initialise(parts: Parts) -> None:
    """segment-anything leaves positions at zero and the rest to torch's defaults: small values learn sooner."""
    encoder = parts.image_encoder
    if encoder.pos_embed is not None:
        torch.nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
    for layer in encoder.blocks.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.trunc_normal_(layer.weight, std=0.04)
            torch.nn.init.zeros_(layer.bias)


def _groups(parts: Parts, decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices alone."""
    matrices = [p for p in parts.parameters() if p.ndim > 1]
    others = [p for p in parts.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def _schedule(step: int, recipe: Recipe) -> float:
    """Warm up, then half a cosine down to 2 %."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    share = (step - recipe.warm_up) / max(recipe.steps - recipe.warm_up, 1)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))


@torch.no_grad()
def _follow(average: dict[str, Tensor], parts: Parts, *, decay: float) -> None:
    for name, tensor in parts.state_dict().items():
        average[name].lerp_(tensor, 1 - decay)


def _checkpoint_of(out: Path) -> Path:
    return out.with_name(out.name + ".checkpoint")


def _write_checkpoint(
    path: Path,
    recipe: Recipe,
    parts: Parts,
    optimiser: torch.optim.Optimizer,
    average: dict[str, Tensor],
    step: int,
    seconds: float,
) -> None:
    buffer = io.BytesIO()
    torch.save(
        {
            "recipe": asdict(recipe),
            "weights": parts.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": average,
            "step": step,
            "seconds": seconds,
        },
        buffer,
    )
    write_bytes(path, buffer.getvalue())


def _read_checkpoint(path: Path, recipe: Recipe) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"nothing to resume: {path} does not exist; start without --resume")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        saved = state["recipe"]
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a checkpoint of pretraining ({error}); start without --resume") from error
    if saved != asdict(recipe):
        raise ValueError(
            f"{path} was made with {saved}, this run asks for {asdict(recipe)}: "
            "resume with the same numbers, or start without --resume"
        )
    return state


def main(
    out: Path,
    *,
    steps: int = 4000,
    seed: int = 0,
    device: str = "cpu",
    batch: int = 8,
    bfloat16: bool = False,
    threads: int = 2,
    resume: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """What `wardround pretrain-sam` does: train with `threads` CPU threads and report a line every hundred steps.

    Stopped by Ctrl-C it says how to go on; what was done since the last save, at most a few minutes, is done again.
    """
    torch.set_num_threads(threads)
    run = pretrain(out, steps=steps, seed=seed, device=device, batch=batch, bfloat16=bfloat16, resume=resume)
    try:
        for now in run:
            left = now.seconds / now.step * (now.steps - now.step)
            report(
                f"step {now.step}/{now.steps}  loss {now.loss:.3f}  Dice of the first mask {now.dice:.3f}  "
                f"{now.seconds / 60:.1f} min, {left / 60:.1f} min left"
            )
    except KeyboardInterrupt:
        report(f"stopped; the same command with --resume goes on from {_checkpoint_of(out)}")
        raise
    report(f"weights in {out}")
