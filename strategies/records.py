"""The records that travel through the loop: plain, frozen, and without a trace of where they were stored.

Words are those of `docs/architecture.md`: a *case* is what an expert is asked to annotate, a *grant* is how many cases
a site may ask for, an *update* is local minus global weights. Higher scores are more informative, always.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

Weights: TypeAlias = dict[str, NDArray[np.generic]]
"""Parameter name to array, as in a torch `state_dict`."""


@dataclass(frozen=True, order=True)
class Case:
    """One slice that an expert can annotate. `id` is stable and unique in its site; ids never leave the site."""

    id: str
    patient: str = field(compare=False)
    image: str = field(compare=False)
    index: int = field(compare=False)


@dataclass(frozen=True)
class Scores:
    """What a site knows of its unlabelled cases when it chooses; row i of everything belongs to `case_ids[i]`.

    What a strategy does not need is None.

    Attributes:
        case_ids: N ids in ascending order.
        patients: N patient hashes.
        values: (N,) float64, higher is more informative.
        by_class: (N, C) float64, the same for each foreground class.
        features: (N, F) float32, by which cases are compared.
        foreground: (N,) bool, whether the model predicts any foreground.
        predicted_pixels: (N, C) float64, pixels of each foreground class that the model predicts.
        labelled_features: (L, F) float32 features of what is annotated or asked for: of slices, or of whole volumes or
            patients where these are asked for (`query/units.py`).
        labelled_pixels: (C,) float64, pixels of each foreground class in the labelled cases.
        chosen_features: (B, F) float32, of cases chosen before in the same batch, which are no rows of the above any more.
        closed_features: (X, F) float32, of cases of the pool that may not be chosen in this batch (`query/cap.py`).
        pool_values: (P,) float64, `values` of the whole pool that a batch is chosen from, where some of it are no rows any more.

    Raises:
        ValueError: ids out of order or twice, or rows of another number than there are cases.
        FloatingPointError: a number is not finite; names the case.
    """

    case_ids: Sequence[str]
    patients: Sequence[str]
    values: NDArray[np.float64] | None = None
    by_class: NDArray[np.float64] | None = None
    features: NDArray[np.float32] | None = None
    foreground: NDArray[np.bool_] | None = None
    predicted_pixels: NDArray[np.float64] | None = None
    labelled_features: NDArray[np.float32] | None = None
    labelled_pixels: NDArray[np.float64] | None = None
    chosen_features: NDArray[np.float32] | None = None
    closed_features: NDArray[np.float32] | None = None
    pool_values: NDArray[np.float64] | None = None

    OF_CASES: ClassVar[tuple[str, ...]] = ("values", "by_class", "features", "foreground", "predicted_pixels")
    OF_LABELS: ClassVar[tuple[str, ...]] = (
        "labelled_features",
        "labelled_pixels",
        "chosen_features",
        "closed_features",
        "pool_values",
    )

    def __post_init__(self) -> None:
        n = len(self.case_ids)
        if list(self.case_ids) != sorted(set(self.case_ids)):
            raise ValueError("case_ids must be unique and in ascending order, so that a choice does not follow the pool's order")
        if len(self.patients) != n:
            raise ValueError(f"{len(self.patients)} patients for {n} cases")
        for name, array in self.arrays().items():
            if name in self.OF_CASES and len(array) != n:
                raise ValueError(f"{name} has {len(array)} rows for {n} cases")
            if not np.isfinite(array).all():
                where = int(np.argwhere(~np.isfinite(array))[0][0])
                of = f" of case {self.case_ids[where]}" if name in self.OF_CASES else ""
                raise FloatingPointError(f"{name}{of} is not finite: the model diverged or an image holds NaN")

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that are there, by name."""
        named = {name: getattr(self, name) for name in (*self.OF_CASES, *self.OF_LABELS)}
        return {name: array for name, array in named.items() if array is not None}

    def among(self, case_ids: Iterable[str]) -> Scores:
        """The rows of the given cases; cases without a row are left out."""
        wanted = set(case_ids)
        rows = [row for row, case_id in enumerate(self.case_ids) if case_id in wanted]
        arrays = {name: array[rows] if name in self.OF_CASES else array for name, array in self.arrays().items()}
        return Scores([self.case_ids[row] for row in rows], [self.patients[row] for row in rows], **arrays)


@dataclass(frozen=True)
class Choice:
    """One chosen case with its score and one line that tells the expert why."""

    case_id: str
    score: float
    reason: str


@dataclass(frozen=True)
class Selection:
    """The chosen cases, best first, without duplicates."""

    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for choice in self.choices:
            if choice.case_id in seen:
                raise ValueError(f"case {choice.case_id} was chosen twice")
            seen.add(choice.case_id)

    @property
    def case_ids(self) -> list[str]:
        return [c.case_id for c in self.choices]


@dataclass(frozen=True)
class Sums:
    """Dice of a site's held-out volumes as sums and counts per class, so that merging is addition.

    Attributes:
        dice: (C,) sum of Dice over the volumes in which the class counts.
        counts: (C,) number of those volumes.
        patients: patients behind the sums; the gate withholds them below `min_patients`.
    """

    dice: tuple[float, ...]
    counts: tuple[int, ...]
    patients: int

    def by_class(self) -> list[float | None]:
        """Mean Dice of each class, None where no volume has it."""
        return [d / n if n else None for d, n in zip(self.dice, self.counts, strict=True)]

    def mean(self) -> float | None:
        """Site Dice: mean over volumes, then over classes; None where nothing counts."""
        present = [d for d in self.by_class() if d is not None]
        return sum(present) / len(present) if present else None


@dataclass(frozen=True)
class Demand:
    """What a site tells of its pool, so that budgets can follow need: counts and coarse quantiles of the scores.

    Attributes:
        unlabelled: cases that wait.
        units: how many these are as grants count them (`query.unit`): slices, volumes or patients.
        quantiles: of the cases' scores, rising; empty where withheld, or where cases have none.
        patients: whose cases the quantiles are of; None without quantiles.
    """

    unlabelled: int
    units: int
    quantiles: tuple[float, ...] = ()
    patients: int | None = None


@dataclass(frozen=True)
class Joined:
    """A site's answer to `query.join`; counts are None where the site shares updates only.

    `sam` names the SAM that the site would train, "" where the run trains none: what sites learn is added to the weights
    that they began with, so it can be averaged only where these are the same.
    """

    name: str
    protocol: int
    classes: tuple[str, ...]
    sam: str
    cases: int | None
    labelled: int | None
    unlabelled: int | None


@dataclass(frozen=True)
class SiteUpdate:
    """A site's answer to `train`. Everything but the update is None or empty where the site shares updates only.

    `trust` is how much SAM counted at the site, by class in [0, 1]; None where it took no part, or nothing may be told of it.
    `losses_patients` are the fewest behind one of the losses, `trust_patients` those by whom SAM was judged; None without these.
    `minutes` and `patients` are as in `Annotation`: labels also come while a round is trained.
    """

    name: str
    update: Weights
    labelled: int | None = None
    labels_trained: int | None = None
    unlabelled: int | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    losses_patients: int | None = None
    trust: Sequence[float] | None = None
    trust_patients: int | None = None
    seconds: float | None = None
    minutes: int | None = None
    patients: int | None = None


@dataclass(frozen=True)
class Assessment:
    """A site's answer to `query.assess`: gated sums of validation and test, and its demand; None is withheld."""

    name: str
    validation: Sums | None = None
    test: Sums | None = None
    demand: Demand | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Annotation:
    """A site's answer to `query.annotate`: counts only.

    Attributes:
        granted: cases of this grant that were put on the worklist (fewer when the pool is small).
        received: labels that arrived in this cycle so far.
        outstanding: requests still without a label.
        minutes: what this run's labels have cost the experts, in whole minutes, up to the last that the site tells of; it tells
            of further ones once they are of its `min_patients` patients together. None before the first.
        balance: how level the classes are in these labels, in [0, 1]; None also where the run does not ask.
        patients: the fewest behind a difference of two answers, the first one included.
    """

    name: str
    granted: int | None = None
    received: int | None = None
    outstanding: int | None = None
    labelled: int | None = None
    unlabelled: int | None = None
    skipped: int | None = None
    minutes: int | None = None
    balance: float | None = None
    patients: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Refused:
    """A site's refusal: one code from `wire.CODES` and a reference that its own log explains."""

    name: str
    code: str
    reference: str
