"""What a pre-training run depends on, and the checkpoint that it resumes from."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.files import write_bytes
from strategies.sam_parts import Parts


class PretrainFault(ValueError):
    """Pre-training can't start, or can't go on; the message says what to change."""


@dataclass(frozen=True)
class Recipe:
    """What a run depends on; a checkpoint of another recipe is not resumed.

    `bfloat16` is for the image encoder's products alone: positions of prompts need more digits than it has. Scenes are
    plain in the first `easy_share` of the steps, and second passes begin after the first `single_share` of them. `start`
    is the SHA-256 of the weights that it starts from, none for random ones.
    """

    steps: int
    seed: int
    batch: int
    bfloat16: bool = False
    start: str = ""
    prompts_per_image: int = 6
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warm_up: int = 200
    average_decay: float = 0.998
    easy_share: float = 0.15
    single_share: float = 0.7


def checkpoint_of(out: Path) -> Path:
    """Where the checkpoint of a run lies that writes its weights to `out`."""
    return out.with_name(out.name + ".checkpoint")


def write_checkpoint(
    path: Path,
    recipe: Recipe,
    parts: Parts,
    readers: torch.nn.ModuleList,
    optimiser: torch.optim.Optimizer,
    average: dict[str, Tensor],
    step: int,
    seconds: float,
) -> None:
    """Write all that resuming after `step` steps needs, atomically; `average` are the weights that were saved."""
    buffer = io.BytesIO()
    torch.save(
        {
            "recipe": asdict(recipe),
            "weights": parts.state_dict(),
            "readers": readers.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": average,
            "step": step,
            "seconds": seconds,
        },
        buffer,
    )
    write_bytes(path, buffer.getvalue())


def read_checkpoint(path: Path, recipe: Recipe) -> dict[str, Any]:
    """What `write_checkpoint` wrote, by the names of its parameters ("weights" for `parts`).

    Raises:
        PretrainFault: it is missing, damaged, or of a run with another recipe.
    """
    if not path.is_file():
        raise PretrainFault(f"nothing to resume: {path} does not exist; start without --resume")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        saved = state["recipe"]
    except Exception as error:  # torch raises anything when given arbitrary bytes
        raise PretrainFault(f"{path} is damaged or is no checkpoint of pretraining; start without --resume") from error
    if saved != asdict(recipe):
        asked = asdict(recipe)
        apart = [f"{name} {saved.get(name)!r}, not {value!r}" for name, value in asked.items() if saved.get(name) != value]
        raise PretrainFault(
            f"{path} was made with {', '.join(apart) or 'other settings'}: resume with the same, or start without --resume"
        )
    return state
