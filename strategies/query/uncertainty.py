"""Pixel maps of uncertainty: probabilities of one or several passes in, one number a pixel out. Higher is less certain.

Every function takes probabilities (M, B, C+1, H, W): M passes or committee members, B cases, softmax over axis 2,
values in [0, 1]; and returns (B, H, W) float32. NaN in is NaN out: `Scores` refuses it with the case's id. A case's score is
the mean over its pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from strategies.query.choose import top
from strategies.query.reduce import mean_over_pixels
from strategies.query.strategy import Columns, Seen, Strategy


def entropy(probabilities: Tensor) -> Tensor:
    """H(p̄), the entropy of the mean prediction, in nats: 0 where it is sure, ln(C+1) where all classes are equal."""
    return _entropy(_passes(probabilities).mean(dim=0))


def bald(probabilities: Tensor) -> Tensor:
    """H(p̄) − mean_m H(p^m), in nats: how far the passes contradict each other (Gal et al. 2017); from 0 to ln(C+1).

    Raises:
        ValueError: there is only one pass of one model, which can't contradict itself.
    """
    probabilities = _passes(probabilities)
    if len(probabilities) < 2:
        raise ValueError('bald compares passes, and there is only one: set query.passes to 2 or more, or query.model = "both"')
    together, own = torch.zeros_like(probabilities[0]), torch.zeros_like(probabilities[0, :, 0])
    for one in probabilities:  # a pass at a time fits the processor's cache: three times as fast as all of them together
        together += one
        own += _entropy(one)
    disagreement = _entropy(together / len(probabilities)) - own / len(probabilities)
    return disagreement.clamp(min=0)  # rounding may leave it just below 0, which power sampling refuses


def least_confidence(probabilities: Tensor) -> Tensor:
    """1 − max_c p̄_c: 0 where the mean prediction is sure, 1 − 1/(C+1) where all classes are equal."""
    return 1 - _passes(probabilities).mean(dim=0).amax(dim=1)


def margin(probabilities: Tensor) -> Tensor:
    """1 − (p̄₍₁₎ − p̄₍₂₎), the two most probable classes: 0 where one is sure, 1 where they are level."""
    first, second = _passes(probabilities).mean(dim=0).topk(2, dim=1).values.unbind(dim=1)
    return 1 - (first - second)


def vote_entropy(probabilities: Tensor) -> Tensor:
    """−Σ_c (V_c/M) ln(V_c/M), V_c of the M members voting for class c (Dagan and Engelson 1995): from 0 to ln min(M, C+1).

    Raises:
        ValueError: there is only one member, who always agrees with itself.
    """
    probabilities = _passes(probabilities)
    if len(probabilities) < 2:
        raise ValueError(
            'vote_entropy compares members, and there is only one: set query.passes to 2 or more, or query.model = "both"'
        )
    votes = torch.zeros_like(probabilities[0])
    for member in probabilities:
        votes.scatter_add_(1, member.max(dim=1, keepdim=True).indices, torch.ones_like(votes[:, :1]))
    # whole votes, divided once: shares of 1/M that are added up may exceed 1, and power sampling refuses what is below 0
    return _entropy(votes / len(probabilities)) + 0 * probabilities.sum((0, 2))  # a NaN is nobody's vote and must stay one


def _passes(probabilities: Tensor) -> Tensor:
    if probabilities.ndim != 5:
        shape = tuple(probabilities.shape)
        raise ValueError(f"probabilities must be (passes, cases, classes, rows, columns), not {shape}")
    return probabilities.float()


def _entropy(probabilities: Tensor) -> Tensor:
    """−Σ_c p_c ln p_c over the class axis, the third from the end; 0 ln 0 is 0.

    `torch.special.entr` says the same, and on a CPU takes one number at a time.
    """
    logarithms = probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log_()
    return logarithms.mul_(probabilities).sum(dim=-3).neg_()


def by_pixels(name: str, pixel: Callable[[Tensor], Tensor], *, why: str, passes: int = 1) -> Strategy:
    """The strategy that takes the cases with the highest mean of a pixel map."""

    def look(seen: Seen) -> Columns:
        return {"values": mean_over_pixels(pixel(seen.probabilities), seen.inside)}

    return Strategy(name, partial(top, why=why), look=look, passes=passes, why=why)


LEAST_CONFIDENCE = by_pixels(
    "least_confidence",
    least_confidence,
    why="the model trusts its own answer least here: mean doubt",
)
MARGIN = by_pixels("margin", margin, why="two answers are level here: mean closeness")
ENTROPY = by_pixels("entropy", entropy, why="the model is unsure here: mean entropy")
BALD = by_pixels(
    "bald",
    bald,
    why="the model contradicts itself here: mean disagreement",
    passes=8,
)
VOTE_ENTROPY = by_pixels(
    "vote_entropy",
    vote_entropy,
    why="a committee is divided here: mean vote entropy",
    passes=8,
)
