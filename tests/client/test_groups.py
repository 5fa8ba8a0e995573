"""Groups stay as they were drawn: later cases form new ones, and one that is not whole is told no more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kinds_support import PLACES, Hospital

from client.groups import groups_of
from configs.files import StorageFault


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    """Six patients with two slices each, told in groups of three patients."""
    site = Hospital("h", tmp_path, 3, PLACES, PLACES + 40)
    admit(site, "abcdef")
    return site


def admit(site: Hospital, patients: Sequence[str], seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for patient in patients:
        site.admit(patient, rng.normal(size=(2, PLACES)))


def told_of(hospital: Hospital, without: Sequence[str] = (), turn: float = 1.0) -> dict[int, set[str]]:
    """Cases by the number of their group."""
    site: Any = hospital
    cases = sorted(case for name, case in hospital.known.items() if name not in without)
    groups = groups_of(site, cases, np.array([hospital.features[case.id] for case in cases]) ** turn)
    return {
        number: {case.id for case, own in zip(cases, groups, strict=True) if own == number} for number in set(groups.tolist())
    }


def test_groups_stay_whatever_sees_the_cases_later(hospital: Hospital) -> None:
    first = told_of(hospital)
    assert set().union(*first.values()) == set(hospital.known)
    assert len(first) > 1
    assert told_of(hospital, turn=3.0) == first, "also where another SAM sees the cases otherwise"


def test_later_cases_wait_until_there_are_enough_patients_and_form_groups_of_their_own(hospital: Hospital) -> None:
    first = told_of(hospital)
    admit(hospital, "gh", seed=1)
    waiting = told_of(hospital)
    assert {case[0] for case in waiting.pop(-1)} == {"g", "h"}
    assert waiting == first
    admit(hospital, "i", seed=2)
    grown = told_of(hospital)
    assert first.items() <= grown.items()
    assert {case[0] for number, group in grown.items() if number not in first for case in group} == {"g", "h", "i"}


def test_a_group_that_lost_a_case_is_told_no_more(hospital: Hospital) -> None:
    first = told_of(hospital)
    lost = sorted(first[0])[0]
    left = told_of(hospital, without=[lost])
    assert left == {number: group for number, group in first.items() if number} | {-1: first[0] - {lost}}


def test_another_min_patients_draws_groups_anew(hospital: Hospital) -> None:
    told_of(hospital)
    hospital.min_patients = 5
    assert all(len({case[0] for case in group}) >= 5 for group in told_of(hospital).values())


def test_a_damaged_file_is_not_drawn_over(hospital: Hospital) -> None:
    told_of(hospital)
    path = hospital.workspace / "groups.json"
    path.write_text(path.read_text()[:20])
    with pytest.raises(StorageFault, match=r"groups\.json is damaged.*put a copy of it back"):
        told_of(hospital)
