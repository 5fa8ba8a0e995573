"""One data set to many sites, and at every site which patients are held out. Pure; patients stand for themselves.

Everything here is decided by *patient*: no two images of one patient come to two sites or to two sides of a split. The
order in which patients are given changes nothing, and all randomness follows from `split_seed`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Role: TypeAlias = Literal["pool", "validation", "test"]
Sites: TypeAlias = dict[str, list[str]]
"""Site name to its patients, in ascending order."""

MINIMUM = 3
"""Patients of a site: at least one each to train on, to validate and to test."""


class DataFault(ValueError):
    """The data does not fit the settings; the message names the file or the key, and what to do."""


def by_column(site_of: Mapping[str, str | None]) -> Sites:
    """Sites as the index names them.

    Args:
        site_of: patient to the name of its site.

    Raises:
        DataFault: a patient has no site, or a site has fewer than `MINIMUM` patients.
    """
    without = sum(1 for site in site_of.values() if not site)
    if without:
        raise DataFault(
            f"{without} of {len(site_of)} patients have no site: fill the site column of the index, "
            'or let split.sites make sites ("dirichlet", "size" or "scanner")'
        )
    sites: Sites = {}
    for patient in sorted(site_of):
        sites.setdefault(str(site_of[patient]), []).append(patient)
    small = {name: len(patients) for name, patients in sites.items() if len(patients) < MINIMUM}
    if small:
        told = ", ".join(f"{name} ({count})" for name, count in sorted(small.items()))
        raise DataFault(
            f"these sites have fewer than {MINIMUM} patients, one each to train, validate and test: {told}. Give them more, "
            "join them with another site in the site column of the index, or leave them out of it"
        )
    return dict(sorted(sites.items()))


def by_label(frequencies: Mapping[str, NDArray[np.floating]], *, count: int, alpha: float, split_seed: int) -> Sites:
    """Sites whose patients differ in what the labels show: Dirichlet label skew over patients.

    A patient has no single label, so each is first put into the group of the class in which it exceeds the average
    patient most (in standard deviations; the background is a class here, and the group of small structures). Each
    group is then dealt to the sites in shares drawn from Dirichlet(alpha), as for class labels in Hsu et al. 2019
    (arXiv 1909.06335). Sites short of `MINIMUM` patients receive some of the largest.

    Args:
        frequencies: patient to the (C+1,) share of its pixels in each class, background first.
        count: number of sites, named `site_1` and so on.
        alpha: concentration, above 0; small is skewed, large is even.

    Raises:
        DataFault: there are fewer than `MINIMUM × count` patients.
    """
    patients = _enough(frequencies, count)
    rng = np.random.default_rng([split_seed, 1])
    table = np.stack([np.asarray(frequencies[patient], dtype=np.float64) for patient in patients])
    spread = table.std(axis=0)
    excess = (table - table.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    group_of = dict(zip(patients, excess.argmax(axis=1).tolist(), strict=True))
    sites: Sites = {name: [] for name in _names(count)}
    for group in range(table.shape[1]):
        members = [patient for patient in _shuffled(patients, split_seed, "label") if group_of[patient] == group]
        shares = rng.dirichlet(np.full(count, alpha))
        start = 0
        for name, size in zip(sites, _apportion(len(members), shares), strict=True):
            sites[name] += members[start : start + size]
            start += size
    return _filled(sites, split_seed)


def by_size(patients: Iterable[str], *, count: int, alpha: float, split_seed: int) -> Sites:
    """Sites of different size: `MINIMUM` patients each, and the others in shares drawn from Dirichlet(alpha).

    Raises:
        DataFault: there are fewer than `MINIMUM × count` patients.
    """
    shuffled = _shuffled(_enough(patients, count), split_seed, "size")
    shares = np.random.default_rng([split_seed, 2]).dirichlet(np.full(count, alpha))
    sizes = [MINIMUM + extra for extra in _apportion(len(shuffled) - MINIMUM * count, shares)]
    ends = np.cumsum([0, *sizes])
    return {name: sorted(shuffled[ends[i] : ends[i + 1]]) for i, name in enumerate(_names(count))}


def equal_parts(patients: Iterable[str], *, count: int, split_seed: int) -> Sites:
    """Sites that differ in nothing but chance; their sizes differ by at most one.

    Raises:
        DataFault: there are fewer than `MINIMUM × count` patients.
    """
    shuffled = _shuffled(_enough(patients, count), split_seed, "parts")
    return {name: sorted(shuffled[place::count]) for place, name in enumerate(_names(count))}


def hold_out(
    patients: Iterable[str], *, test_fraction: float, validation_fraction: float, split_seed: int, folds: int = 0, fold: int = 0
) -> dict[str, Role]:
    """The role of each patient of one site: at least one each for test, validation and the pool.

    Only this site's patients and `split_seed` decide, so another site, or another `seed` of the run, moves nobody.

    Args:
        test_fraction, validation_fraction: shares in [0, 1), rounded to patients.
        folds: 0, or 2 and more: patients are parted into so many, and `fold` (from 0) is for test in place of a fraction; over
            all folds every patient is that once. Validation patients come from the next part.

    Raises:
        DataFault: the site has fewer than `MINIMUM` patients, or than folds.
    """
    order = _shuffled(patients, split_seed, "held out")
    if len(order) < MINIMUM:
        raise DataFault(
            f"{len(order) or 'no'} patient{'s' * (len(order) != 1)}: at least {MINIMUM} are needed, "
            "one each to train, validate and test. Add patients, or leave the site out"
        )
    if len(order) < folds or (folds == 2 and len(order) == MINIMUM):
        raise DataFault(
            f"{len(order)} patients can't be parted in {folds} with one left to train on and one to validate: set "
            f"split.folds to {len(order)}{' at most' * (len(order) > MINIMUM)}"
        )
    test = max(1, int(test_fraction * len(order) + 0.5))
    if folds:
        order = [patient for part in range(folds) for patient in order[(fold + part) % folds :: folds]]
        test = len(order[fold::folds])
    validation = max(1, int(validation_fraction * len(order) + 0.5))
    while test + validation >= len(order):  # rounding, or the minimum of one, left nobody to train on
        test, validation = (test - 1, validation) if test >= validation and not folds else (test, validation - 1)
    roles: dict[str, Role] = {}
    for place, patient in enumerate(order):
        roles[patient] = "test" if place < test else "validation" if place < test + validation else "pool"
    return dict(sorted(roles.items()))


# --------------------------------------------------------------------------------------------------------------- parts


def _names(count: int) -> list[str]:
    width = len(str(count))
    return [f"site_{number:0{width}d}" for number in range(1, count + 1)]


def _enough(patients: Iterable[str], count: int) -> list[str]:
    unique = sorted(set(patients))
    if len(unique) < MINIMUM * count:
        raise DataFault(
            f"split.count = {count} sites of at least {MINIMUM} patients need {MINIMUM * count} patients, "
            f"the data has {len(unique)}: set split.count to at most {max(1, len(unique) // MINIMUM)}"
        )
    return unique


def _shuffled(patients: Iterable[str], split_seed: int, purpose: str) -> list[str]:
    """A random order that each patient's own name decides: adding a patient leaves the order of the others."""

    def ticket(patient: str) -> str:
        return hashlib.sha256(f"{split_seed}\0{purpose}\0{patient}".encode()).hexdigest()

    return sorted(set(patients), key=lambda patient: (ticket(patient), patient))


def _apportion(total: int, shares: NDArray[np.float64]) -> list[int]:
    """Whole numbers that sum to `total`, nearest to `shares` (which sum to 1): largest remainders get the rest."""
    exact = shares * total
    sizes = np.floor(exact).astype(int)
    for place in np.argsort(sizes - exact, kind="stable")[: total - int(sizes.sum())]:
        sizes[place] += 1
    return [int(size) for size in sizes]


def _filled(sites: Mapping[str, Sequence[str]], split_seed: int) -> Sites:
    """Move patients from the largest site to each that is below `MINIMUM`."""
    filled = {name: _shuffled(patients, split_seed, "fill") for name, patients in sites.items()}
    for patients in filled.values():
        while len(patients) < MINIMUM:
            patients.append(max(filled.values(), key=len).pop())
    return {name: sorted(patients) for name, patients in filled.items()}
