"""Random generators derived from where they are used, so that no order of events changes what they draw.

`numpy_rng(seed, "A", 3, 1, "batches")` is the same generator in every process that asks for it.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive(*parts: str | int) -> int:
    """A 63-bit number that follows from `parts` alone; (1, 23) and (12, 3) differ."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_rng(*parts: str | int) -> np.random.Generator:
    return np.random.default_rng(derive(*parts))


def torch_generator(*parts: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    return torch.Generator(device=device).manual_seed(derive(*parts))
