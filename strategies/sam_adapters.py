"""What of SAM the federation may train, as arrays that are averaged beside the specialist's weights.

An adapter is a set of named arrays, all 0 at the start of a run, so that a SAM with a new adapter is the SAM of the
checkpoint. Names begin with `sam.`; what they hold depends on what is adapted:

    decoder   sam.<name of a mask decoder's parameter>     its change: w = w₀ + Δ
    lora      sam.<name of an encoder's qkv weight>.b      B (out, rank) of w = w₀ + B·A   (Hu et al. 2022)

A, (rank, in), is drawn from the run's seed, is the same at every site and never trained: the mean of products is not
the product of means, so averaging both A and B would give a SAM that no site has trained. With A fixed, mean(B)·A is
mean(B·A) (FFA-LoRA, Sun et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from strategies.global_model import ADAPTER
from strategies.randomness import torch_generator
from strategies.records import Weights
from strategies.sam_parts import SIZES, Parts

_B = ".b"


def initial_adapter(size: str, *, adapt: str, rank: int) -> Weights:
    """The adapter at the start of a run, float32 zeros: of a SAM of one of `SIZES`, adapt "none", "decoder" or "lora"."""
    with torch.device("meta"):
        parts = Parts(SIZES[size])
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in parts.named_parameters():
        if adapt == "decoder" and name.startswith("mask_decoder."):
            shapes[ADAPTER + name] = tuple(parameter.shape)
        elif adapt == "lora" and name.startswith("image_encoder.") and name.endswith("attn.qkv.weight"):
            shapes[ADAPTER + name + _B] = (parameter.shape[0], rank)
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def effective(own: Mapping[str, Tensor], adapter: Mapping[str, Tensor], *, seed: int) -> dict[str, Tensor]:
    """The parameters of a SAM that an adapter changes, changed; gradients flow into the adapter.

    Args:
        own: the checkpoint's parameters by name, as `Parts.named_parameters` gives them.
        adapter: arrays of `initial_adapter`'s names and shapes.
        seed: of the run; it gives A.
    """
    changed = {}
    for name, value in adapter.items():
        if name.endswith(_B):
            target = name.removeprefix(ADAPTER).removesuffix(_B)
            a = lora_a(target, rank=value.shape[1], features=own[target].shape[1], seed=seed).to(value)
            changed[target] = own[target] + value @ a
        else:
            target = name.removeprefix(ADAPTER)
            changed[target] = own[target] + value
    return changed


def lora_a(name: str, *, rank: int, features: int, seed: int) -> Tensor:
    """A (rank, features) of one weight: normal with variance 1 / features, the same wherever it is asked for."""
    a: Tensor = torch.randn(rank, features, generator=torch_generator(seed, "lora", name)) / math.sqrt(features)
    return a
