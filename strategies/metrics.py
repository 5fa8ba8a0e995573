"""How good a segmentation, a confidence or a learning curve is. Arrays in, numbers out.

Class maps hold 0 for background and 1..C for the classes; any number of axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import spatial


def dice_by_class(prediction: NDArray[np.integer], truth: NDArray[np.integer], *, classes: int) -> NDArray[np.float64]:
    """2·|P ∩ T| / (|P| + |T|) of each foreground class over the whole volume.

    Args:
        prediction, truth: class maps of one shape with values 0..`classes`.
        classes: number C of foreground classes.

    Returns:
        (C,) in [0, 1]; entry c − 1 is class c. NaN where the class is in neither, 0 where it is in one of them only.

    Raises:
        ValueError: different shapes, or a value outside 0..C.
    """
    table = confusion(prediction, truth, classes=classes)
    both = np.diagonal(table)[1:].astype(np.float64)
    either = (table.sum(axis=0) + table.sum(axis=1))[1:]
    dice: NDArray[np.float64] = np.divide(2 * both, either, out=np.full(classes, np.nan), where=either > 0)
    return dice


def confusion(prediction: NDArray[np.integer], truth: NDArray[np.integer], *, classes: int) -> NDArray[np.int64]:
    """(C+1, C+1) counts; row t, column p counts the voxels of true class t predicted as p.

    Raises:
        ValueError: different shapes, or a value outside 0..C.
    """
    _check_grid(prediction, truth)
    for name, labels in (("prediction", prediction), ("truth", truth)):
        low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
        if low < 0 or high > classes:
            raise ValueError(f"the {name} holds values {low}..{high}, and only 0..{classes} are classes")
    narrow = np.min_scalar_type((classes + 1) ** 2 - 1)  # a byte up to 15 classes: less memory to go through
    pairs = truth.astype(narrow).ravel() * narrow.type(classes + 1) + prediction.astype(narrow).ravel()
    counts: NDArray[np.int64] = np.bincount(pairs, minlength=(classes + 1) ** 2).astype(np.int64)
    return counts.reshape(classes + 1, classes + 1)


def _check_grid(prediction: NDArray[np.generic], truth: NDArray[np.generic]) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(f"the prediction has shape {prediction.shape}, the truth {truth.shape}: not one grid")


def hd95_mm(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], *, spacing_mm: Sequence[float] | None) -> float | None:
    """95th percentile of the distances between the surfaces of two masks, in mm; the larger of both directions.

    Surface voxels belong to the mask and have a face neighbour outside it or lie at the array's edge; axes of length 1
    are no direction to leave by. Distances are between voxel centres. Percentiles are interpolated linearly.

    Args:
        prediction, truth: masks of one structure and one shape.
        spacing_mm: distance of neighbours along each axis; None where the file does not say.

    Returns:
        None where the spacing is unknown or a mask is empty: there is no such distance.

    Raises:
        ValueError: different shapes, or a spacing that does not fit them.
    """
    _check_grid(prediction, truth)
    if spacing_mm is None:
        return None
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (prediction.ndim,) or not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise ValueError(f"spacing_mm is {tuple(spacing_mm)}: it takes {prediction.ndim} positive numbers, one an axis")
    first, second = _surface(prediction) * spacing, _surface(truth) * spacing
    if len(first) == 0 or len(second) == 0:
        return None
    there, back = _to_nearest(first, second), _to_nearest(second, first)
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """(P, axes) array indices of the mask's surface voxels."""
    mask = np.asarray(mask, dtype=np.bool_)
    inside = np.pad(np.atleast_1d(mask.squeeze()), 1)  # with an axis of length 1 left in, every voxel would be at an edge
    buried = inside.copy()
    for axis in range(inside.ndim):
        buried &= np.roll(inside, 1, axis) & np.roll(inside, -1, axis)  # what comes in at the other end is padding
    surface = (inside & ~buried)[(slice(1, -1),) * inside.ndim]
    return np.argwhere(surface.reshape(mask.shape))


def _to_nearest(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P,) distance from each of (P, axes) points to the nearest of the others."""
    tree: Any = spatial.KDTree
    return np.asarray(tree(others).query(points)[0], dtype=np.float64)


def expected_calibration_error(probabilities: NDArray[np.floating], truth: NDArray[np.integer], *, bins: int = 15) -> float:
    """Σ_b n_b/n · |accuracy_b − confidence_b| over `bins` equal bins of the highest probability (Guo et al. 2017).

    Args:
        probabilities: (B, C+1, ...) softmax outputs in [0, 1].
        truth: (B, ...) class map with values 0..C.
        bins: number of bins ((k−1)/bins, k/bins].

    Returns:
        In [0, 1]; 0 is calibrated.

    Raises:
        ValueError: shapes do not fit, there are no pixels, a probability is no number in [0, 1], or fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}: at least one is needed")
    if probabilities.ndim < 2 or probabilities.shape[:1] + probabilities.shape[2:] != truth.shape:
        shapes = f"probabilities {probabilities.shape} and truth {truth.shape}"
        raise ValueError(f"{shapes} are not (B, C+1, ...) and (B, ...)")
    if truth.size == 0:
        raise ValueError("there are no pixels to compare confidence and truth on")
    confidence = probabilities.max(axis=1).astype(np.float64).ravel()
    if not (np.isfinite(confidence).all() and confidence.min() >= 0 and confidence.max() <= 1 + 1e-6):
        raise ValueError("probabilities hold values outside [0, 1]: are they logits?")
    correct = (probabilities.argmax(axis=1) == truth).ravel().astype(np.float64)
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.intp) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / truth.size)


def aubc(labels: Sequence[float], dice: Sequence[float]) -> float:
    """Area under the budget curve by trapezoids, divided by the width of the budget axis: a mean Dice over all budgets.

    Args:
        labels: labels bought at each point, strictly rising, at least two points.
        dice: Dice at each point.

    Raises:
        ValueError: fewer than two points, different lengths, budgets that do not rise, or a value that is no number.
    """
    x, y = np.asarray(labels, dtype=np.float64), np.asarray(dice, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError(f"a curve needs at least two points with a Dice each, not {x.size} budgets and {y.size} Dice")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("the curve holds a value that is no number: leave out cycles without a Dice")
    if not (np.diff(x) > 0).all():
        raise ValueError(f"labels must rise from point to point, not {', '.join(f'{v:g}' for v in x)}")
    return math.fsum((y[1:] + y[:-1]) / 2 * np.diff(x)) / float(x[-1] - x[0])
