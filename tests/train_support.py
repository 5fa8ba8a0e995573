"""What tests of a site's training share."""

from __future__ import annotations

import torch

from client.train import When

NOW = When(cycle=1, round=1, step=0, total_steps=8)
"""The first of four rounds of two steps."""

OPEN = ("sam.enabled=true", "sam.min_iou=0.0", "sam.min_agreement=0.0", "sam.trust=false")
"""SAM with an open gate: all that it says counts fully."""


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)
