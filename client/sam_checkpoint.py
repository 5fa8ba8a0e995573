"""SAM checkpoints: read a file, make sure it is one, and say in a sentence what to do when it is not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from configs.schema import Run
from strategies.sam_parts import SIZES, of_unit_scale, recognise

SMALL = Path(__file__).with_name("weights") / "small_sam.safetensors"
"""The small SAM that comes with the code, trained on synthetic images alone."""

REMEDY = (
    "name an official checkpoint by its path (sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth or sam_vit_h_4b8939.pth, the model "
    "checkpoints of segment-anything; or MedSAM's medsam_vit_b.pth), "
    'or "small" for the one that comes with wardround: in site.toml it is sam_checkpoint, in a simulated run sam.checkpoint'
)


class SamUnavailable(ValueError):
    """There is no usable SAM; the message names the file, what is wrong with it, and what to do."""


def path_of(checkpoint: str) -> Path:
    """The file meant by a setting: "small", or a path in which `~` is the home folder."""
    return SMALL if checkpoint == "small" else Path(checkpoint).expanduser()


def read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Which of `SIZES` the checkpoint is, and its weights as float32 on the CPU.

    `.safetensors` files and torch's own are read; the latter with `weights_only=True`, so that a file from elsewhere
    can't run code. Checkpoints of training runs that keep the weights under "model" or "state_dict", or with
    "module." before every name, are read too. MedSAM (`is_medsam`) takes images of another scale, which its weights are
    changed for here.

    Raises:
        SamUnavailable: missing, unreadable, or not a SAM.
    """
    state = _weights(_content(path))
    size = None if state is None else recognise(state)
    if state is None or size is None:
        raise SamUnavailable(f"{path} is a file of weights, but not of a SAM (known sizes: {', '.join(SIZES)}); {REMEDY}")
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise SamUnavailable(f"{path} holds NaN or Inf, so no mask of it can be used; {REMEDY}")
    weights = {name: tensor.float() for name, tensor in state.items()}
    return size, of_unit_scale(weights) if is_medsam(path) else weights


def is_medsam(path: Path) -> bool:
    """Whether a file's name says that it is MedSAM: nothing in its weights tells it from SAM's vit_b."""
    return "medsam" in path.name.lower()


def check(run: Run) -> None:
    """Make sure, before anything is trained, that the checkpoint of a run can be used as its settings ask.

    Raises:
        SamUnavailable: it can't be read, or is not of the size that sites work on together.
    """
    if not run.reads_sam:
        return
    path = path_of(run.sam.checkpoint)
    size, _ = read(path)
    if run.needs_one_sam and size != run.sam.size:
        asks = f'sam.adapt = "{run.sam.adapt}" trains' if run.sam.adapt != "none" else 'budget.rule = "coordinated" takes'
        raise SamUnavailable(
            f'{path} is a {size}, but {asks} a SAM of sam.size = "{run.sam.size}": '
            f'set sam.size = "{size}", or name a checkpoint of the other size in sam.checkpoint'
        )


def digest(path: Path) -> str:
    """SHA-256 of a file's content in hex; raises SamUnavailable when it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def identity(checkpoint: str) -> str:
    """The SAM of a setting in 16 hexadecimal digits, by what is in the file and how it is read, not by where it lies.

    Raises:
        SamUnavailable: the file can't be read.
    """
    path = path_of(checkpoint)
    return hashlib.sha256(f"{digest(path)} {is_medsam(path)}".encode()).hexdigest()[:16]


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # parsers given arbitrary bytes raise anything: IndexError from torch, for one
        # torch's own words advise to load it without protection: never
        raise SamUnavailable(f"{path} is damaged or is no checkpoint ({type(error).__name__} on reading); {REMEDY}") from error


def _unreadable(path: Path, error: OSError) -> SamUnavailable:
    if isinstance(error, FileNotFoundError):
        return SamUnavailable(f"there is no SAM checkpoint at {path}; {REMEDY}")
    return SamUnavailable(f"the SAM checkpoint {path} can't be read ({error.strerror or error}); {REMEDY}")


def _weights(content: Any) -> dict[str, Tensor] | None:
    """The state dictionary in a file's content, plain or wrapped by a training run; None where there is none."""
    for name in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        return None
    return {str(name).removeprefix("module."): value for name, value in content.items()}
