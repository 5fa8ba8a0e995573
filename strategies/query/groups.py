"""Cases in small groups of several patients, so that what is told of whole groups is told of no few patients.

Microaggregation (Domingo-Ferrer and Mateo-Sanz 2002). A sum over many cases protects nobody where another sum leaves a few of
them out: the difference is theirs. But whoever is told sums over whole groups alone can add and subtract them as often as they
like, and is left with whole groups, or nothing. Nor is a group nearly one patient's, so that its mean would be: this is the rule
of dominance for tables of statistics offices (Hundepool et al. 2012), with a half. Pure: arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 2000
"""Of more cases than this those that lie together are grouped by themselves: a pool of 100,000 would take hours."""


def in_groups(
    features: NDArray[np.floating], patients: Sequence[str], *, min_patients: int, at_once: int = AT_ONCE
) -> NDArray[np.intp]:
    """(N,) the group of each case, numbered from 0: alike cases, of at least `min_patients` patients in each.

    As MDAV does it: of the cases that are left the one farthest from their mean, and from each of the nearest other patients
    the nearest case. Cases that are left of too few patients join the group with the nearest mean. Of a patient with more cases
    there than all others together those farthest from the mean are left out again, so that nobody makes up more than half of a
    group. Features and patients decide on it, and not what is annotated.

    With `min_patients` 1 each case is a group: then nobody is hidden.

    Args:
        features: (N, F) of cases, by which they are alike.
        patients: N names or hashes.
        at_once: so many cases are grouped together at most; of more the halves that lie together are, each by itself. So this
            takes O(N · `at_once` · F / `min_patients`) time.

    Returns:
        The groups; −1 for cases that are left out, of fewer than `min_patients` patients, and for all where all together are of
        too few.
    """
    points = np.asarray(features, dtype=np.float64)
    if min_patients <= 1:
        return np.arange(len(points))
    whose = np.unique(np.asarray(patients, dtype=str), return_inverse=True)[1]
    group = np.full(len(points), -1, dtype=np.intp)
    while len(np.unique(whose[rest := np.flatnonzero(group < 0)])) >= min_patients:  # several parts may each leave a few out
        for part in _parts(points, whose, rest, min_patients=min_patients, at_once=at_once):
            own = _grouped(points[part], whose[part], min_patients=min_patients)
            group[part] = np.where(own < 0, -1, own + group.max() + 1)
    return group


def _parts(
    points: NDArray[np.float64], whose: NDArray[np.intp], rows: NDArray[np.intp], *, min_patients: int, at_once: int
) -> Iterator[NDArray[np.intp]]:
    """The rows in parts of alike cases: halved, and halved again, across the line between two that are far apart.

    A part is larger than `at_once` where a half of it would be of too few patients.
    """
    halves: tuple[NDArray[np.intp], ...] = ()
    if len(rows) > at_once:
        own = points[rows]
        one = own[np.square(own - own.mean(axis=0)).sum(axis=1).argmax()]
        other = own[np.square(own - one).sum(axis=1).argmax()]
        along = rows[np.argsort(own @ (other - one), kind="stable")]
        halves = (along[: len(along) // 2], along[len(along) // 2 :])
    if halves and all(len(np.unique(whose[half])) >= min_patients for half in halves):
        for half in halves:
            yield from _parts(points, whose, half, min_patients=min_patients, at_once=at_once)
    else:
        yield rows


def _grouped(points: NDArray[np.float64], whose: NDArray[np.intp], *, min_patients: int) -> NDArray[np.intp]:
    """(N,) groups of all these cases, of at least `min_patients` patients in all. O(N² · F / `min_patients`) time."""
    group = np.full(len(points), -1, dtype=np.intp)
    left, squares = np.arange(len(points)), np.square(points).sum(axis=1)
    means: list[NDArray[np.float64]] = []
    while len(np.unique(whose[left])) >= min_patients:
        own = points[left]
        farthest = own[(squares[left] - 2 * own @ own.mean(axis=0)).argmax()]  # distances, but for what all cases share
        order = left[np.argsort(squares[left] - 2 * own @ farthest, kind="stable")]
        nearest_of_each = np.unique(whose[order], return_index=True)[1]
        members = order[np.sort(nearest_of_each)[:min_patients]]
        group[members] = len(means)
        means.append(points[members].mean(axis=0))
        left = left[group[left] < 0]
    for row in left.tolist():
        group[row] = np.linalg.norm(np.stack(means) - points[row], axis=1).argmin()
    for number, mean in enumerate(means):
        members = np.flatnonzero(group == number)
        cases_of = np.bincount(whose[members])
        own = members[whose[members] == cases_of.argmax()]
        surplus = max(2 * len(own) - len(members), 0)  # none but the largest can be more than half
        farthest = np.argsort(-np.linalg.norm(points[own] - mean, axis=1), kind="stable")[:surplus]
        group[own[farthest]] = -1
    return group
