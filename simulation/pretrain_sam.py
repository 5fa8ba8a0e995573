"""Trains the small SAM on synthetic scenes, to be shipped or replaced: `wardround pretrain-sam`.

A promptable segmenter learns to answer "what is in this box, at this click?" for any object. Each step draws new scenes
(`simulation/sam_shapes.py`), picks objects in them, and prompts for each with a box, with clicks, or with both, as
exact or as careless as a specialist's prediction would make them. The first mask answers boxes, the other three
compete for ambiguous prompts (only the best of them learns), and the IoU head learns how good each mask turned out. Some
prompts get a second pass: the answer, or a specialist's rough mask, comes back as a mask prompt with a click where it is
wrong (Kirillov et al., 2023, §3 and appendix A).

Two things help a young network to look at the picture, where boxes alone would already be a fair guess: scenes start
plain, and later one batch in five is hard, and a linear map must read borders and picture from the embedding
(`sketch_loss`). How it sets out, so that it can tell half a pixel, is in `simulation/sam_start.py`. In the end the IoU
head alone is trained on, against the finished weights. Prompts and losses are in `simulation/sam_lessons.py`, the exam at
every save in `simulation/sam_exam.py`.

A run is a number of steps; every step's draws follow from the seed and the step alone, so a run that was killed and
resumed sees the same scenes as one that never stopped. What is saved is the moving average of the weights. A run may
start from the weights of another (`--start`): then scenes are of every kind at once, and second passes begin early.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Generator, Tensor

from client.sam_checkpoint import digest, path_of, read
from configs.files import locked, write_bytes, write_text
from simulation.pretrain_recipe import PretrainFault, Recipe, checkpoint_of, read_checkpoint, write_checkpoint
from simulation.sam_exam import Marks, examine
from simulation.sam_lessons import Asked, ask, asks_anything, corrections, grouping_loss, sketch_loss
from simulation.sam_picture import picture
from simulation.sam_shapes import Scenes, draw
from simulation.sam_start import initialise
from strategies.sam_losses import answer_losses, true_iou
from strategies.sam_parts import SIZES, Parts, predict, to_pixels
from strategies.sam_rough import rough_logits

RATING_STEPS = 200
"""On the IoU head alone, in a run of no other steps."""


@dataclass(frozen=True)
class Progress:
    """Where a run is: `step` of `steps`, mean loss and Dice of the first mask since the last report, seconds so far.

    `marks` are those of the weights just saved, where they were.
    """

    step: int
    steps: int
    loss: float
    dice: float
    seconds: float
    marks: Marks | None = None


def training(
    out: Path,
    *,
    steps: int,
    seed: int = 0,
    device: str = "cpu",
    batch: int = 4,
    bfloat16: bool = False,
    start: str = "",
    resume: bool = False,
    every: int = 100,
    save_every: int = 400,
) -> Iterator[Progress]:
    """Train, yielding progress every `every` steps; `out` (safetensors) holds usable weights from the first save on.

    Beside `out` lies `<out>.checkpoint` with all that resuming needs, until the run is over, and `<out>.png`, what the
    saved weights answer about scenes that they never learn from. All are written atomically.

    `start` names a checkpoint of a small SAM to start from ("small" is the shipped one), "" random weights. With `start` and
    no steps the IoU head alone is trained, and nothing is yielded.

    Raises:
        PretrainFault: numbers that make no sense, a device that is not there, a checkpoint to resume from that is missing
            or of another recipe, weights to start from that are not a small SAM's or are `out` itself, or a loss that is no
            longer finite; what was saved before stays.
        SamUnavailable: the weights to start from can't be read.
        configs.files.StorageFault: `out` can't be written.
    """
    if steps < (0 if start else 1) or batch < 1:
        raise PretrainFault(
            f"pretraining needs one step and one image a batch at least: steps = {steps}, batch = {batch} (no steps at all, with "
            "weights to start from, train the IoU head alone)"
        )
    if start and path_of(start).resolve() == out.resolve():
        raise PretrainFault(
            f"{out} can't be both where the run starts and what it writes, or it could not be resumed: choose another --out"
        )
    if steps == 0 and checkpoint_of(out).exists():
        raise PretrainFault(f"{out.parent} holds a run that is not over: finish it with --resume, or choose another --out")
    recipe, size = Recipe(steps=steps, seed=seed, batch=batch, bfloat16=bfloat16), SIZES["small"]
    torch.manual_seed(seed)  # initial weights alone; all else is drawn from generators
    parts = Parts(size).to(device).train()
    initialise(parts)
    if start:
        name, weights = read(path_of(start))
        if name != "small":
            raise PretrainFault(f"{path_of(start)} is a {name}: only a small SAM can be started from")
        parts.load_state_dict(weights)
        recipe = replace(recipe, start=digest(path_of(start)), easy_share=0.0, single_share=0.25)
    readers = torch.nn.ModuleList(
        torch.nn.Conv2d(size.prompt_dim, channels, kernel_size=1) for channels in (2 * (size.patch_px // 2) ** 2, 32)
    ).to(device)
    optimiser = torch.optim.AdamW(
        _groups([*parts.parameters(), *readers.parameters()], recipe.weight_decay), lr=recipe.learning_rate, betas=(0.9, 0.98)
    )
    average = {name: tensor.detach().clone() for name, tensor in parts.state_dict().items()}
    first, seconds = 0, 0.0
    checkpoint = checkpoint_of(out)
    if resume:
        state = read_checkpoint(checkpoint, recipe)
        parts.load_state_dict(state["weights"])
        readers.load_state_dict(state["readers"])
        optimiser.load_state_dict(state["optimiser"])
        average = {name: tensor.to(device) for name, tensor in state["average"].items()}
        first, seconds = state["step"], state["seconds"]

    began, sums, counted = time.monotonic() - seconds, torch.zeros(2, device=device), 0
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe)
        told = _step(parts, readers, optimiser, step, recipe, device)
        if not bool(told.isfinite().all()):
            raise PretrainFault(
                f"the loss became {float(told[0])} in step {step + 1}. What was saved before it is kept: start from it with "
                f"--start {out}, another --seed and another --out"
            )
        sums += told
        counted += 1
        _follow(average, parts, decay=min(recipe.average_decay, (step + 1) / (step + 10)))
        done, marks = step + 1, None
        if done % save_every == 0 or done == steps:
            marks = _save(out, average, device)
            seconds = time.monotonic() - began
            write_checkpoint(checkpoint, recipe, parts, readers, optimiser, average, done, seconds)
        if done % every == 0 or done == steps:
            loss, dice = (sums / counted).tolist()
            yield Progress(done, steps, loss, dice, time.monotonic() - began, marks)
            sums, counted = torch.zeros(2, device=device), 0
    parts.load_state_dict(average)
    _calibrate(parts, recipe, device)
    _save(out, parts.state_dict(), device)
    checkpoint.unlink(missing_ok=True)


def _save(out: Path, weights: dict[str, Tensor], device: str) -> Marks:
    """Write weights and the picture of their answers; gives their marks."""
    write_bytes(out, save({name: tensor.cpu().contiguous() for name, tensor in weights.items()}))
    ripe = Parts(SIZES["small"]).to(device)
    ripe.load_state_dict(weights)
    marks, answers = examine(ripe, side=SIZES["small"].input_px)
    write_bytes(out.with_suffix(".png"), picture(answers))
    return marks


def _step(
    parts: Parts, readers: torch.nn.ModuleList, optimiser: torch.optim.Optimizer, step: int, recipe: Recipe, device: str
) -> Tensor:
    """One gradient step; gives (loss, Dice), detached."""
    scenes, asked, with_boxes = _lesson(step, recipe, device)
    embeddings = _embed(parts, to_pixels(scenes.images, SIZES["small"]), bfloat16=recipe.bfloat16)
    logits, iou = _answer(parts, embeddings, asked, with_boxes=with_boxes)
    loss, dice = answer_losses(logits, iou, asked.masks, asked.boxes)
    if step >= recipe.single_share * recipe.steps:
        again, rough = _second_pass(asked, logits.detach(), step, recipe, device)
        logits, iou = _answer(parts, embeddings, again, with_boxes=with_boxes, mask_logits=rough)
        loss = loss + 0.5 * answer_losses(logits, iou, again.masks, again.boxes)[0]
    sketcher, grouper = readers
    generator = Generator(device=device).manual_seed(recipe.seed * 1_000_003 + step)
    loss = loss + sketch_loss(sketcher(embeddings), scenes) + grouping_loss(grouper(embeddings), scenes, generator)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
    optimiser.step()
    return torch.stack([loss.detach(), dice])


def _second_pass(asked: Asked, logits: Tensor, step: int, recipe: Recipe, device: str) -> tuple[Asked, Tensor]:
    """Every third prompt again, with a mask to improve on (P/3, 1, h, w), and mostly with a click where that is wrong."""
    generator = Generator(device=device).manual_seed(recipe.seed * 1_000_003 + step)
    chosen = torch.arange(len(logits), device=logits.device) % 3 == step % 3
    chosen[0] |= len(logits) < 3
    asked, logits = asked.select(chosen), logits[chosen, :1]
    own = torch.rand(len(logits), generator=generator, device=logits.device) < 0.7
    rough = rough_logits(asked.masks, generator, side=logits.shape[-1])
    rough = torch.where(own[:, None, None, None], logits, rough)
    points, labels = corrections(rough, asked.masks)
    unsaid = ~own & (torch.rand(len(logits), generator=generator, device=logits.device) < 0.5)
    labels[unsaid] = -1
    clicks = torch.cat([asked.points, points], 1), torch.cat([asked.point_labels, labels], 1)
    return Asked(asked.image_index, asked.masks, asked.boxes, *clicks), rough


def _calibrate(parts: Parts, recipe: Recipe, device: str) -> None:
    """Teach the IoU head, and nothing else, how good the finished weights' masks are, as they are given in use.

    Before, the weights were still moving, and answers to boxes were not tempered.
    """
    head = parts.mask_decoder.iou_prediction_head
    steps = max(recipe.steps // 16, 1 if recipe.steps else RATING_STEPS)
    optimiser = torch.optim.AdamW(head.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = recipe.learning_rate * (1 - step / steps)
        scenes, asked, with_boxes = _lesson(recipe.steps + step, recipe, device)
        with torch.no_grad():
            embeddings = _embed(parts, to_pixels(scenes.images, SIZES["small"]), bfloat16=recipe.bfloat16)
        logits, iou = _answer(parts, embeddings, asked, with_boxes=with_boxes, tempered=True)
        optimiser.zero_grad(set_to_none=True)
        (iou - true_iou(logits.detach(), asked.masks)).square().mean().backward()
        optimiser.step()


def _lesson(step: int, recipe: Recipe, device: str) -> tuple[Scenes, Asked, bool]:
    """Scenes, what is asked about them, and whether boxes are part of it (else clicks alone); follows from seed and step."""
    generator = Generator(device=device).manual_seed(recipe.seed * 1_000_003 + step)
    ease = _ease(step, recipe, generator)
    scenes = draw(generator, batch=recipe.batch, side=SIZES["small"].input_px, ease=ease)
    while not asks_anything(scenes):  # a small batch may show no object
        scenes = draw(generator, batch=recipe.batch, side=SIZES["small"].input_px, ease=ease)
    asked = ask(scenes, generator, prompts_per_image=recipe.prompts_per_image)
    clicked = (asked.point_labels == 1).any(1)
    with_boxes = torch.rand((), generator=generator, device=generator.device).item() >= 0.2 or not bool(clicked.any())
    return scenes, asked if with_boxes else asked.select(clicked), with_boxes


def _ease(step: int, recipe: Recipe, generator: Generator) -> float:
    """How plain a step's scenes are: at first all, later most; one batch in five is hard.

    Where borders are mostly hidden the box is the better guide, and a young network learns to look away from the picture.
    """
    drawn: list[float] = torch.rand(2, generator=generator, device=generator.device).tolist()
    kind, place = drawn
    if step < recipe.easy_share * recipe.steps:
        return 0.8 + 0.2 * place
    return 0.5 + 0.5 * place if kind >= 0.2 else 0.5 * place


def _answer(
    parts: Parts,
    embeddings: Tensor,
    asked: Asked,
    *,
    with_boxes: bool,
    mask_logits: Tensor | None = None,
    tempered: bool = False,
) -> tuple[Tensor, Tensor]:
    return predict(
        parts,
        embeddings[asked.image_index],
        boxes=asked.boxes if with_boxes else None,
        points=asked.points,
        point_labels=asked.point_labels,
        mask_logits=mask_logits,
        tempered=tempered,
    )


def _embed(parts: Parts, pixels: Tensor, *, bfloat16: bool) -> Tensor:
    """The image encoder; with `bfloat16` the products in its blocks are rough, sums and the neck stay exact."""
    encoder = parts.image_encoder
    hidden = encoder.patch_embed(pixels)
    if encoder.pos_embed is not None:
        hidden = hidden + encoder.pos_embed
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bfloat16):
        for block in encoder.blocks:
            hidden = block(hidden)
    embeddings: Tensor = encoder.neck(hidden.float().permute(0, 3, 1, 2))
    return embeddings


def _groups(parameters: list[torch.nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices alone."""
    matrices = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
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


def _device(wanted: str) -> str:
    """ "auto" is CUDA where there is one."""
    there = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    if wanted not in ("auto", *there):
        raise PretrainFault(f"there is no device {wanted!r} here: choose one of auto, {', '.join(there)}")
    return there[-1] if wanted == "auto" else wanted


def pretrain(
    out: Path,
    *,
    steps: int = 10_000,
    seed: int = 0,
    device: str = "auto",
    batch: int = 4,
    bfloat16: bool = False,
    start: str = "",
    resume: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """What `wardround pretrain-sam` does: train into the folder `out`, reporting a line every hundred steps.

    `out` then holds `small_sam.safetensors`, usable from the first save on, `small_sam.png` with its answers, `log.txt`,
    and while the run is not over the checkpoint that it resumes from. Stopped by Ctrl-C it says how to go on; what was
    done since the last save, at most a few minutes, is done again.

    Raises:
        PretrainFault, SamUnavailable: as `training`.
        configs.files.FolderInUse, configs.files.StorageFault: another run is in `out`; it can't be written.
    """
    chosen = _device(device)
    weights = out / "small_sam.safetensors"
    with locked(out):
        log = out / "log.txt"
        lines = log.read_text().splitlines() if resume and log.exists() else []

        def tell(line: str) -> None:
            lines.append(line)
            write_text(log, "\n".join(lines) + "\n")
            report(line)

        origin = f" from {start}" if start else ""
        tell(f"{'going on' if resume else 'starting'}{origin}: {steps} steps of {batch} images, seed {seed}, {chosen}")
        run = training(weights, steps=steps, seed=seed, device=chosen, batch=batch, bfloat16=bfloat16, start=start, resume=resume)
        if steps == 0:
            tell(f"the IoU head alone, {RATING_STEPS} steps")
        try:
            for now in run:
                left = now.seconds / now.step * (now.steps - now.step)
                tell(
                    f"step {now.step}/{now.steps}  loss {now.loss:.3f}  Dice of the first mask {now.dice:.3f}  "
                    f"{now.seconds / 60:.1f} min, {left / 60:.1f} min left"
                )
                if now.marks:
                    tell(f"step {now.step}/{now.steps}  {now.marks}")
                if now.step == now.steps:
                    tell("now the IoU head alone, for about a thirtieth of that time")
        except KeyboardInterrupt:
            resumable = checkpoint_of(weights).exists()
            tell("stopped" + (f"; the same command with --resume goes on from {checkpoint_of(weights)}" if resumable else ""))
            raise
        tell(f"weights in {weights}")
