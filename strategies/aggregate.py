"""Many sites' updates become one, and the server takes a step with it. An update is local minus global weights.

`Mean` adds updates as they arrive and holds one sum, however many sites there are. `median` and `trimmed_mean` need all
updates at once: sites × model size in memory. Arrays are floating-point and come out in the dtype of the weights they
belong to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from strategies.records import Weights


class UpdateError(ValueError):
    """An update that must not be aggregated; names the array and what is wrong with it."""


class Aggregate(Protocol):
    """Takes updates one by one and gives one back. The same updates in the same order give the same bits."""

    def add(self, update: Weights, weight: float = 1.0) -> None:
        """Take one site's update; the caller may drop it afterwards.

        Raises:
            UpdateError: names, shapes or values are wrong; what was added before is untouched.
        """

    def result(self) -> Weights:
        """The aggregated update.

        Raises:
            UpdateError: there is nothing to aggregate.
        """


class Mean:
    """Σ w·u / Σ w (FedAvg), summed in float64: another order of the same updates changes the last bit at most.

    Args:
        like: the global weights: names, shapes and dtypes that updates must have.
    """

    def __init__(self, like: Weights) -> None:
        self._like = _floating(like)
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._weight = 0.0
        self._count = 0

    def add(self, update: Weights, weight: float = 1.0) -> None:
        check_update(update, self._like)
        if not (math.isfinite(weight) and weight >= 0):
            raise UpdateError(f"the weight of the update is {weight}: it must be a number of at least 0")
        for name, array in update.items():
            term = np.multiply(array, weight, dtype=np.float64)
            if name in self._sums:
                self._sums[name] += term
            else:
                self._sums[name] = term
        self._weight += weight
        self._count += 1

    def result(self) -> Weights:
        if self._count == 0:
            raise UpdateError("no update arrived, so there is nothing to average")
        if self._weight == 0:
            raise UpdateError("all updates have weight 0: no site has a label, or weighting should be equal")
        return {name: (self._sums[name] / self._weight).astype(array.dtype) for name, array in self._like.items()}


class Stacked:
    """Keeps every update (sites × model size) and combines them number by number.

    Weights of sites are ignored: a rule that is meant to withstand wrong updates gives nobody more votes.

    Args:
        like: as for `Mean`.
        combine: (sites, ...) values of one parameter to (...).
    """

    def __init__(self, like: Weights, combine: Callable[[NDArray[Any]], NDArray[np.float64]]) -> None:
        self._like = _floating(like)
        self._combine = combine
        self._updates: list[Weights] = []

    def add(self, update: Weights, weight: float = 1.0) -> None:
        check_update(update, self._like)
        self._updates.append({name: np.array(array) for name, array in update.items()})

    def result(self) -> Weights:
        if not self._updates:
            raise UpdateError("no update arrived, so there is nothing to aggregate")
        return {
            name: self._combine(np.stack([update[name] for update in self._updates])).astype(array.dtype)
            for name, array in self._like.items()
        }


def median(like: Weights) -> Aggregate:
    """The median over sites of each number (Yin et al. 2018); the mean of the two middle ones for an even count."""
    return Stacked(like, lambda stack: np.asarray(np.median(stack.astype(np.float64), axis=0)))


def trimmed_mean(like: Weights, *, trim: float = 0.2) -> Aggregate:
    """The mean over sites of each number without its highest and lowest ones (Yin et al. 2018).

    Args:
        like: as for `Mean`.
        trim: share of the sites left out at each end, below 0.5; rounded down, but at least one from three sites on,
            since otherwise a small federation would get a plain mean under another name.
    """
    if not 0 <= trim < 0.5:
        raise ValueError(f"trim is {trim}: a share of at least 0 and below 0.5, or nothing is left to average")

    def combine(stack: NDArray[Any]) -> NDArray[np.float64]:
        sites = len(stack)
        cut = min(max(int(trim * sites), 1), (sites - 1) // 2)
        return np.asarray(np.sort(stack, axis=0)[cut : sites - cut].mean(axis=0, dtype=np.float64))

    return Stacked(like, combine)


AGGREGATES: dict[str, Callable[[Weights], Aggregate]] = {"mean": Mean, "median": median, "trimmed_mean": trimmed_mean}


def check_update(update: Mapping[str, NDArray[np.generic]], like: Weights) -> None:
    """Raises UpdateError unless `update` has exactly the names and shapes of `like`, floating-point and finite."""
    missing, extra = sorted(like.keys() - update.keys()), sorted(update.keys() - like.keys())
    if missing or extra:
        parts = [f"{what} {', '.join(names[:3])}" for what, names in (("lacks", missing), ("also has", extra)) if names]
        raise UpdateError(f"the update {' and '.join(parts)}: it belongs to another network")
    for name, expected in like.items():
        array = update[name]
        if array.shape != expected.shape:
            raise UpdateError(f"array {name} of the update has shape {array.shape}, the weights have {expected.shape}")
        if not np.issubdtype(array.dtype, np.floating):
            raise UpdateError(f"array {name} of the update is {array.dtype}, not floating-point")
        if not np.isfinite(array).all():
            raise UpdateError(f"array {name} of the update holds NaN or Inf: training diverged at the site")


# ------------------------------------------------------------------------------------------------------- server's step

MOMENTUM = 0.9
"""β of FedAvgM (Hsu et al. 2019)."""

BETA_1, BETA_2, TAU = 0.9, 0.99, 1e-3
"""Of FedAdam (Reddi et al. 2021, the values of their experiments)."""


def server_step(
    global_weights: Weights,
    aggregated_update: Weights,
    state: Weights,
    *,
    optimiser: Literal["none", "momentum", "adam"] = "none",
    learning_rate: float = 1.0,
) -> tuple[Weights, Weights]:
    """New global weights and new state; the inputs stay as they are.

    ```
    none      w + η·Δ                                              FedAvg at η = 1
    momentum  m ← β·m + Δ                     w + η·m              FedAvgM, Hsu et al. 2019
    adam      m ← β₁·m + (1−β₁)·Δ
              v ← β₂·v + (1−β₂)·Δ²            w + η·m/(√v + τ)     FedAdam, Reddi et al. 2021, algorithm 2
    ```
    Under adam m starts at 0 and v at τ², and there is no bias correction. There a number moves by about η wherever its
    updates are large against τ, so η between 0.001 and 0.1 is usual, and 1 for the others.

    Args:
        state: named arrays as they came out of the last step ({} for the first), ready to be saved beside the weights:
            `momentum/<name>`, or `first/<name>` and `second/<name>`.

    Raises:
        UpdateError: the update does not fit the weights, or the step leaves the range of their dtype.
        ValueError: an unknown optimiser, a learning rate that is not above 0, or the state of another optimiser.
    """
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"federation.server_learning_rate is {learning_rate}: it must be above 0")
    if optimiser not in _MOMENTS:
        raise ValueError(f"unknown server optimiser {optimiser!r}. Valid: {', '.join(_MOMENTS)}")
    check_update(aggregated_update, _floating(global_weights))
    expected = {f"{moment}/{name}" for moment in _MOMENTS[optimiser] for name in global_weights}
    if state and state.keys() != expected:
        raise ValueError(f"the server's state is not one of {optimiser}: it belongs to another optimiser or network")

    weights: Weights = {}
    moments: Weights = {}
    for name, before in global_weights.items():
        change = aggregated_update[name].astype(np.float64)
        if optimiser == "momentum":
            change = MOMENTUM * _moment(state, "momentum", name, 0.0) + change
            moments[f"momentum/{name}"] = _rounded(change, before.dtype, name)
        elif optimiser == "adam":
            first = BETA_1 * _moment(state, "first", name, 0.0) + (1 - BETA_1) * change
            second = BETA_2 * _moment(state, "second", name, TAU**2) + (1 - BETA_2) * change**2
            moments[f"first/{name}"] = _rounded(first, before.dtype, name)
            moments[f"second/{name}"] = _rounded(second, before.dtype, name)
            change = first / (np.sqrt(second) + TAU)
        weights[name] = _rounded(before.astype(np.float64) + learning_rate * change, before.dtype, name)
    return weights, moments


_MOMENTS: dict[str, tuple[str, ...]] = {"none": (), "momentum": ("momentum",), "adam": ("first", "second")}


def _moment(state: Weights, moment: str, name: str, start: float) -> NDArray[np.float64] | float:
    array = state.get(f"{moment}/{name}")
    return start if array is None else array.astype(np.float64)


def _rounded(array: NDArray[np.float64], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    """In the dtype of the weights. An infinite moment would go unnoticed: it freezes its parameter for good."""
    with np.errstate(over="ignore"):
        rounded = array.astype(dtype)
    if not np.isfinite(rounded).all():
        raise UpdateError(f"array {name} overflows in the server's step: an update is far too large")
    return rounded


# ------------------------------------------------------------------------------------------------------------ clipping


def clip_update(update: Weights, max_norm: float) -> Weights:
    """The update scaled down so that its L2 norm over all parameters together is at most `max_norm`.

    The bound holds for the result as rounded to its dtype, not only before rounding.

    ```
    norm of the update   0            → unchanged (nothing was learned)
                         ≤ max_norm   → unchanged
                         > max_norm   → scaled to max_norm
                         NaN, Inf     → UpdateError
    max_norm             0, < 0, NaN  → ValueError (nothing would be left)
                         Inf          → ValueError (nothing would be clipped: ask for no clipping instead)
    ```
    """
    if not (math.isfinite(max_norm) and max_norm > 0):
        raise ValueError(f"train.max_update_norm is {max_norm}: a finite number above 0 is needed; leave it out not to clip")
    norm = update_norm(update)
    if not math.isfinite(norm):
        raise UpdateError("the norm of the update is not finite: training diverged")
    if norm <= max_norm:
        return {name: array.copy() for name, array in update.items()}
    coarsest = max(float(np.finfo(np.dtype(array.dtype.str)).eps) for array in _floating(update).values())
    scale = max_norm / norm * (1 - coarsest)
    return {name: (array.astype(np.float64) * scale).astype(array.dtype) for name, array in update.items()}


def update_norm(update: Weights) -> float:
    """L2 norm over all numbers of all arrays, summed in float64."""
    flat = (array.astype(np.float64).ravel() for array in update.values())
    return math.sqrt(math.fsum(float(values @ values) for values in flat))


def _floating(weights: Weights) -> Weights:
    """The weights; raises UpdateError where one is no floating-point array."""
    for name, array in weights.items():
        if not np.issubdtype(array.dtype, np.floating):
            raise UpdateError(f"array {name} is {array.dtype}: a counter, as BatchNorm keeps one, can't be averaged")
    return weights
