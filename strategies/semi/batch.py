"""What goes into a semi-supervised framework and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from strategies.semi import losses
from strategies.semi.augment import Intensity, Warp


@dataclass(frozen=True)
class Batch:
    """Images of one training step. There is no place in it for a label of an unlabelled image, so none can leak.

    Attributes:
        images: (Bl, K, H, W) float32, Bl ≥ 1: labelled images as the student sees them, augmented.
        labels: (Bl, H, W) int64: classes 0..C or IGNORE, in the frame of `images`.
        unlabelled: (Bu, K, H, W) float32 in the original frame, not augmented; None without unlabelled images.
        warp: the spatial part of the student's view of `unlabelled`; None leaves it in the original frame.
        intensity: the intensity part of that view; None leaves the grey values as they are.
        loss: of logits (B, C + 1, H, W) against labels (B, H, W), a scalar: what "supervised" is made of.
    """

    images: Tensor
    labels: Tensor
    unlabelled: Tensor | None = None
    warp: Warp | None = None
    intensity: Intensity | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = losses.supervised

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or len(self.images) == 0:
            raise ValueError(f"images must be (Bl, K, H, W) with at least one image, not {tuple(self.images.shape)}")
        expected = (len(self.images), *self.images.shape[2:])
        if tuple(self.labels.shape) != expected or self.labels.dtype != torch.int64:
            found = f"{tuple(self.labels.shape)} {self.labels.dtype}"
            raise ValueError(f"labels must be {expected} int64, one for each labelled image and none else, not {found}")
        if self.unlabelled is None:
            if self.warp is not None or self.intensity is not None:
                raise ValueError("warp and intensity are the student's view of unlabelled images, but there are none")
        elif self.unlabelled.shape[1:] != self.images.shape[1:] or len(self.unlabelled) == 0:
            shape = "(Bu, " + ", ".join(map(str, self.images.shape[1:])) + ")"
            raise ValueError(f"unlabelled must be {shape} with at least one image, not {tuple(self.unlabelled.shape)}")

    def student_view(self) -> Tensor | None:
        """The unlabelled images as the student sees them, (Bu, K, H, W): warped, then changed in intensity."""
        view = self.unlabelled
        if view is None:
            return None
        if self.warp is not None:
            view = self.warp.images(view)
        return view if self.intensity is None else self.intensity.images(view)


@dataclass(frozen=True)
class Outcome:
    """What a framework makes of a batch.

    Attributes:
        losses: scalar terms by name, not weighted: "supervised" always, "consistency" where there is something to be
            consistent with. The caller weights them.
        logits_unlabelled: (Bu, C + 1, H, W), the student's answer in the frame of `Batch.warp`, with its graph: further
            targets (SAM), made in the original frame and warped, need no second forward pass. None without unlabelled
            images, or where they are not looked at.
        guess: gives (Bu, C + 1, H, W), the framework's best guess in the original frame, without graph: SAM's prompts are
            made from it. A function, because a framework may need a forward pass for it that not every step asks for; to
            be called before the networks learn from this outcome. None where `logits_unlabelled` is.
    """

    losses: Mapping[str, Tensor]
    logits_unlabelled: Tensor | None = None
    guess: Callable[[], Tensor] | None = None

    @cached_property
    def teacher_probs(self) -> Tensor | None:
        """What `guess` gives."""
        return None if self.guess is None else self.guess()


@dataclass(frozen=True)
class Time:
    """Where in the run a step is.

    Attributes:
        progress: share of the run's steps that were taken before it, from 0 to 1.
        ramp: λ(t)/λmax, above 0 and at most 1.
    """

    progress: float
    ramp: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.progress <= 1.0 or not 0.0 < self.ramp <= 1.0:
            raise ValueError(f"progress is a share of the run and ramp a share of its peak, not {self}")


class Terms(Protocol):
    """The loss terms of a framework. `helpers` are the networks that `Framework.helpers` asks for, by name.

    `generator` is the only randomness of its own (dropout in a network draws from torch's); it may live on the CPU for
    images on a GPU.
    """

    def __call__(
        self,
        batch: Batch,
        student: nn.Module,
        helpers: Mapping[str, nn.Module],
        *,
        time: Time,
        generator: torch.Generator,
    ) -> Outcome: ...
