"""Groups hold enough patients, all cases, and cases that are alike."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.query.groups import in_groups


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 999), whose=st.lists(st.integers(0, 9), max_size=40), min_patients=st.integers(1, 6))
def test_every_group_is_of_enough_patients_and_every_case_is_in_one(seed: int, whose: list[int], min_patients: int) -> None:
    features = np.random.default_rng(seed).normal(size=(len(whose), 3))
    patients = [f"p{n}" for n in whose]
    group = in_groups(features, patients, min_patients=min_patients)
    if len(set(patients)) < min_patients:
        assert (group == -1).all(), "too few patients for a single group"
        return
    assert sorted(set(group.tolist())) == list(range(int(group.max(initial=-1)) + 1)), "numbered without gaps"
    for number in set(group.tolist()):
        assert len({patients[n] for n in np.flatnonzero(group == number).tolist()}) >= min_patients
    np.testing.assert_array_equal(group, in_groups(features, patients, min_patients=min_patients))


def test_alike_cases_are_in_a_group() -> None:
    """Two clouds of three patients each; and one patient with many slices, which join the group that they are like."""
    places = [0.0, 0.1, 0.2, 9.0, 9.1, 9.2, 0.15, 0.16, 0.17]
    patients = ["a", "b", "c", "a", "b", "c", "a", "a", "a"]
    group = in_groups(np.array(places)[:, None], patients, min_patients=3)
    assert len(set(group.tolist())) == 2
    assert len(set(group[[0, 1, 2, 6, 7, 8]].tolist())) == 1
    assert len(set(group[3:6].tolist())) == 1


def test_where_one_patient_is_enough_each_case_is_a_group() -> None:
    assert in_groups(np.zeros((3, 2)), ["a", "a", "b"], min_patients=1).tolist() == [0, 1, 2]
