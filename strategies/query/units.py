"""What an expert is asked for at a time: a slice, a whole volume, or all of a patient's. Slices are scored; units are chosen.

A volume's score is the mean over its slices: what an expert would see of it on average. So are its features, and those of what
is annotated: a mean of slices lies nearer to other means than to any slice, so that slices would seem far from units of their
own kind. Units have ids of their own while one is chosen, and come back as the slices they are made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.records import Case, Choice, Scores, Selection


def unit_of(case: Case, unit: str) -> str:
    """The id of the unit that a case belongs to; `unit` is "slice", "volume" or "patient"."""
    return {"slice": case.id, "volume": case.image, "patient": case.patient}[unit]


def means_of_units(features: NDArray[np.floating], units: Sequence[str]) -> NDArray[np.float32]:
    """(U, F) mean features of each unit, in ascending order of their ids, from those of cases.

    Args:
        features: (N, F) of cases.
        units: N ids of the units that the cases belong to.
    """
    names, rows = np.unique(np.asarray(units, dtype=str), return_inverse=True)
    return _means(features, rows, len(names)).astype(np.float32)


def grouped(scores: Scores, units_of: Mapping[str, str]) -> Scores:
    """Scores of units from those of their cases: means of values and features, sums of pixels, foreground where any has some.

    Args:
        scores: of cases, N rows.
        units_of: case id to unit id, for each of them; a unit is of one patient.

    Returns:
        Scores with unit ids as `case_ids`, in ascending order; what is annotated is as it was (`Scores.labelled_features` are
        of units from the beginning).
    """
    units = sorted({units_of[case] for case in scores.case_ids})
    row_of = {unit: row for row, unit in enumerate(units)}
    rows = np.array([row_of[units_of[case]] for case in scores.case_ids], dtype=np.int64)

    def of_units(name: str, array: NDArray[Any]) -> NDArray[Any]:
        if name in Scores.OF_LABELS:
            return array
        if name == "foreground":
            return _sums(array, rows, len(units)) > 0
        if name == "predicted_pixels":
            return _sums(array, rows, len(units))
        return _means(array, rows, len(units)).astype(array.dtype)

    patients = dict(zip(rows.tolist(), scores.patients, strict=True))
    arrays = {name: of_units(name, array) for name, array in scores.arrays().items()}
    return Scores(units, [patients[row] for row in range(len(units))], **arrays)


def spread_out(selection: Selection, members: Mapping[str, Sequence[str]]) -> Selection:
    """The cases of the chosen units, best unit first, each with its unit's score and reason.

    Args:
        selection: of units.
        members: unit id to the ids of its cases, in the order in which they are to be annotated.
    """
    return Selection(
        tuple(
            Choice(case, unit.score, f"{unit.reason}; with all {len(members[unit.case_id])} slices")
            for unit in selection.choices
            for case in members[unit.case_id]
        )
    )


def _sums(array: NDArray[Any], rows: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """(count, …) sums of what belongs to each of `rows`."""
    sums = np.zeros((count, *array.shape[1:]), dtype=np.float64)
    np.add.at(sums, rows, array)
    return sums


def _means(array: NDArray[Any], rows: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """(count, …) means of what belongs to each of `rows`; every row has something."""
    members = np.bincount(rows, minlength=count).astype(np.float64)
    return _sums(array, rows, count) / members.reshape(-1, *[1] * (array.ndim - 1))
