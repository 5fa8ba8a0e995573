"""How much SAM may count, by class: what it has shown on a site's own held-out patients, and how sure that is.

On an image whose mask is known the specialist predicts, SAM is prompted by that prediction as it would be on an
unlabelled one, and each component whose mask passes the gate is replaced by that mask. The difference this makes to Dice
is SAM's advantage there. Trust is how much likelier than not the advantage is real: 0 where there is no evidence or it speaks
against SAM, towards 1 as patients agree that it helps.

The comparison must be on patients that trained neither: on its own training cases a specialist is nearly perfect, and no
generalist, however good on new images, could add anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from strategies.semi.losses import IGNORE
from strategies.semi.prompts import Prompts

PRIOR_PATIENTS = 1.0
"""The mean advantage is shrunk to 0 as if so many patients had shown none."""

SPREAD, SPREAD_PATIENTS = 0.1, 4.0
"""Spread of the advantage between patients before any was seen, and how many patients that guess is worth."""


@torch.no_grad()
def advantages(prediction: Tensor, prompts: Prompts, masks: Tensor, kept: Tensor, truth: Tensor, *, classes: int) -> Tensor:
    """What SAM's masks add to the Dice of each image and class.

    Args:
        prediction: (B, H, W) int64, the specialist's class map, from which `prompts` were made.
        masks, kept: (P, H, W) and (P,) bool, SAM's answers and which of them pass the gate.
        truth: (B, H, W) int64, 0..C or IGNORE (those pixels count nowhere).
        classes: C, foreground classes.

    Returns:
        (B, C) float32 in [-1, 1]; NaN where no mask of the class was kept: that says nothing about SAM.
    """
    images, height, width = prediction.shape
    wanted = torch.arange(1, classes + 1, device=prediction.device)[:, None, None]
    specialist, real = prediction[:, None] == wanted, truth[:, None] == wanted
    place = (prompts.image_index * classes + prompts.class_index - 1)[kept]
    replaced = torch.zeros(images * classes, height, width, dtype=torch.int32, device=prediction.device)
    given = torch.zeros_like(replaced)
    replaced.index_add_(0, place, prompts.components[kept].int())
    given.index_add_(0, place, masks[kept].int())
    corrected = (specialist & (replaced.view_as(specialist) == 0)) | (given.view_as(specialist) > 0)
    counts = (truth != IGNORE)[:, None]
    change = _dice(corrected & counts, real) - _dice(specialist & counts, real)
    asked = torch.zeros(images * classes, dtype=torch.bool, device=prediction.device)
    asked[place] = True
    return torch.where(asked.view(images, classes), change, torch.nan)


def trust_from(advantages: Tensor, patients: Sequence[str]) -> Tensor:
    """(C + 1,) float32 in [0, 1], background's 0: trust by class, from the advantages (N, C) in N images of `patients`.

    Images of a patient are averaged first: they are not independent. With n patients of mean advantage d̄,

        m = n·d̄ / (n + 1),   s² = (4·0.1² + Σ (d − d̄)²) / (4 + n),   trust = max(0, 2 Φ(m·√(n + 1) / s) − 1)

    Φ the normal distribution function: the probability that the advantage is above 0, rescaled so that even odds are 0.
    """
    trust = torch.zeros(advantages.shape[1] + 1)
    for class_, shown in enumerate(_by_class(advantages, patients), start=1):
        if not shown:
            continue
        mean = math.fsum(shown) / len(shown)
        spread = SPREAD_PATIENTS * SPREAD**2 + math.fsum((value - mean) ** 2 for value in shown)
        deviation = math.sqrt(spread / (SPREAD_PATIENTS + len(shown)))
        trust[class_] = max(0.0, math.erf(_shrunk(shown) * math.sqrt((len(shown) + PRIOR_PATIENTS) / 2) / deviation))
    return trust


def gain_from(advantages: Tensor, patients: Sequence[str]) -> float:
    """What a SAM adds to the Dice of an image where it is asked about the classes that it helps: the sum of their m.

    For choosing between SAMs; m, advantages and patients as in `trust_from`.
    """
    return math.fsum(max(0.0, _shrunk(shown)) for shown in _by_class(advantages, patients))


def judges_from(advantages: Tensor, patients: Sequence[str]) -> int:
    """How many patients stand behind the trust of the class with the fewest; a class that nobody judged tells of nobody.

    Args:
        advantages, patients: as `trust_from` takes them.
    """
    behind = [len(shown) for shown in _by_class(advantages, patients)]
    return min((count for count in behind if count), default=len(set(patients)))


def _by_class(advantages: Tensor, patients: Sequence[str]) -> list[list[float]]:
    """For each class the mean advantage of each patient that says anything of it, in ascending order: sums must not follow
    the order of patients."""
    if len(advantages) != len(patients):
        raise ValueError(f"{len(advantages)} rows of advantages for {len(patients)} patients")
    by_patient: dict[str, list[int]] = {}
    for row, patient in enumerate(patients):
        by_patient.setdefault(patient, []).append(row)
    means = [[float(column[rows].nanmean()) for rows in by_patient.values()] for column in advantages.T]
    return [sorted(mean for mean in of_class if not math.isnan(mean)) for of_class in means]


def _shrunk(shown: Sequence[float]) -> float:
    """m: the mean over patients, shrunk to 0."""
    return math.fsum(shown) / (len(shown) + PRIOR_PATIENTS)


def _dice(masks: Tensor, truth: Tensor) -> Tensor:
    """Dice of (B, C, H, W) bool masks: (B, C), 1 where both are empty."""
    overlap = (masks & truth).sum((2, 3)).float()
    total = (masks.sum((2, 3)) + truth.sum((2, 3))).float()
    return torch.where(total > 0, 2 * overlap / total.clamp(min=1), torch.ones_like(total))
