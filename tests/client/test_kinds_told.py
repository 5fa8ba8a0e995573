"""What can be worked out of all that a site tells of its kinds: sums over enough patients, or nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds_support import PLACES, Exchange, Heard, Hospital, without_images

from server.kinds import find_kinds
from server.sites import Problems
from strategies.records import Weights
from strategies.wire import KINDS, Request, pack_weights, unpack_kinds

TAGS = 80
"""Enough for the cases of one hospital."""

LENGTH = PLACES + 2 * TAGS
SLICES = st.lists(st.integers(1, 4), min_size=0, max_size=9)
"""Of each patient, how many."""


@pytest.fixture(scope="module", autouse=True)
def _without_images() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        without_images(patch)
        yield


def sums_in(heard: list[Heard]) -> np.ndarray:
    """(R, F): every sum over cases that was told, also those of squares."""
    return np.concatenate([array for one in heard for array in one.said.values() if array.ndim == 2])


def left_over(hospital: Hospital, exchange: Exchange) -> list[int]:
    """Of how many patients each told sum is, and each difference of two, of a total and a step, and of some of more terms."""
    heard = [one for one in exchange.heard if one.site == hospital.name]
    rows = sums_in(heard)
    totals = [one.said["moments"][0] for one in heard if "moments" in one.said]
    steps = [one.said["centroids"].sum(axis=0) for one in heard if "counts" in one.said]
    first, second = np.triu_indices(len(rows), 1)
    weights = np.random.default_rng(0).integers(-2, 3, size=(200, len(rows)))
    rest = np.reshape([total - step for total in totals for step in steps], (-1, LENGTH))
    return [n for n in hospital.patients_in(np.concatenate([rows, rows[first] - rows[second], weights @ rows, rest])) if n]


def told_apart(hospital: Hospital, exchange: Exchange) -> list[int]:
    """Patients of each set of cases that are in all sums alike: no sum of sums, with any weights, parts these."""
    rows = sums_in([one for one in exchange.heard if one.site == hospital.name])
    tags = rows[:, hospital.first_tag : hospital.first_tag + len(hospital.known)].round(9)
    together: dict[bytes, set[str]] = {}
    for case, column in zip(hospital.known.values(), tags.T, strict=True):
        if column.any():
            together.setdefault(column.tobytes(), set()).add(case.patient)
    return [len(patients) for patients in together.values()]


@settings(max_examples=25, deadline=None)
@given(
    slices=st.lists(SLICES, min_size=1, max_size=2),
    later=SLICES,
    min_patients=st.integers(1, 5),
    per_site=st.integers(1, 20),
    seed=st.integers(0, 9999),
)
def test_no_sum_over_few_patients_can_be_worked_out(
    slices: list[list[int]], later: list[int], min_patients: int, per_site: int, seed: int
) -> None:
    """Over three cycles, while cases are annotated, and patients come of whom there are few at first."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        hospitals = []
        for number, numbers in enumerate(slices):
            workspace = Path(folder) / str(number)
            workspace.mkdir()
            hospitals.append(Hospital(f"h{number}", workspace, min_patients, PLACES + TAGS * number, LENGTH))
            for patient, count in enumerate(numbers):
                hospitals[-1].admit(f"p{patient}", rng.normal(size=(count, PLACES)))
        exchange = Exchange(hospitals)
        for cycle in range(3):
            sites: Any = exchange
            find_kinds(sites, Problems(), features=LENGTH, labels=0, per_site=per_site, covering=True, seed=seed, cycle=cycle)
            for hospital in hospitals:
                for case in hospital.known:
                    if rng.random() < 0.2:
                        hospital.state[case] = str(rng.choice(["requested", "labelled", "skipped"]))
            for patient, count in enumerate(later[cycle::2]):
                hospitals[0].admit(f"new{cycle}.{patient}", rng.normal(size=(count, PLACES)))
    for hospital in hospitals:
        remainders, apart = left_over(hospital, exchange), told_apart(hospital, exchange)
        assert min(remainders, default=min_patients) >= min_patients
        assert min(apart, default=min_patients) >= min_patients
        mine = [one for one in exchange.heard if one.site == hospital.name]
        for one in mine:
            nothing = not any(array.any() for array in one.said.values())
            assert one.patients >= min_patients or (one.patients == 0 and nothing), "what the gate looks at"
        least = min((one.patients for one in mine if one.patients), default=0)
        assert least <= min([*remainders, *apart], default=least), "and it is no more than stands behind what was told"


def test_whoever_asks_with_centroids_of_their_own_learns_no_more(tmp_path: Path) -> None:
    """Centroids beside a case's embedding, in one step nearest to it and in the other not: the old way to get it."""
    rng = np.random.default_rng(0)
    hospital = Hospital("h", tmp_path, 3, PLACES, LENGTH)
    for patient in range(8):
        hospital.admit(f"p{patient}", rng.normal(size=(3, PLACES)))
    exchange = Exchange([hospital])
    for target in list(hospital.features.values()):
        for scale in (1.0, 1.02, 1.1, 1.5, 9.0):
            asked: Weights = {"centroids": np.stack([target * scale, -target * 0.05]), "counts": np.zeros(2, dtype=np.int64)}
            list(exchange.ask(KINDS, {"h": Request()}, Problems(), unpack=unpack_kinds, weights=pack_weights(asked)))
    assert len(told_apart(hospital, exchange)) > 3, "the questions part something"
    assert min(told_apart(hospital, exchange)) >= 3
    assert min(left_over(hospital, exchange)) >= 3
