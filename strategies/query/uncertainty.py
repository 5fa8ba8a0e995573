"""Pixel maps of uncertainty: probabilities of one or several passes in, one number a pixel out. Higher is less certain.

Every function takes probabilities (M, B, C+1, H, W): M passes or committee members, B cases, softmax over axis 2,
values in [0, 1]; and returns (B, H, W) float32. NaN in is NaN out: `Scores` refuses it with the case's id.
"""

from __future__ import annotations

import torch
from torch import Tensor


def entropy(probabilities: Tensor) -> Tensor:
    """H(p̄), the entropy of the mean prediction, in nats: 0 where it is sure, ln(C+1) where all classes are equal."""
    return _entropy(_passes(probabilities).mean(dim=0))


def bald(probabilities: Tensor) -> Tensor:
    """H(p̄) − mean_m H(p^m), in nats: how far the passes contradict each other (Gal et al. 2017); from 0 to ln(C+1).

    Raises:
        ValueError: there is only one pass, which can't contradict itself.
    """
    probabilities = _passes(probabilities)
    if len(probabilities) < 2:
        raise ValueError("bald compares passes with dropout, and there is only one: set query.passes to 2 or more")
    disagreement = _entropy(probabilities.mean(dim=0)) - _entropy(probabilities).mean(dim=0)
    return disagreement.clamp(min=0)  # rounding may leave it just below 0, which power sampling refuses


def _passes(probabilities: Tensor) -> Tensor:
    if probabilities.ndim != 5:
        shape = tuple(probabilities.shape)
        raise ValueError(f"probabilities must be (passes, cases, classes, rows, columns), not {shape}")
    return probabilities.float()


def _entropy(probabilities: Tensor) -> Tensor:
    """−Σ_c p_c ln p_c over the class axis, the third from the end; 0 ln 0 is 0."""
    total: Tensor = torch.special.entr(probabilities).sum(dim=-3)
    return total
