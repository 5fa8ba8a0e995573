"""Groups hold enough patients, none of them for the most part, cases that are alike, and all but what one has too many of."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.query.groups import in_groups


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 999),
    whose=st.lists(st.integers(0, 9), max_size=40),
    min_patients=st.integers(1, 6),
    at_once=st.sampled_from([1, 10, 2000]),
)
def test_every_group_is_of_enough_patients_and_nobody_is_more_than_half_of_it(
    seed: int, whose: list[int], min_patients: int, at_once: int
) -> None:
    features = np.random.default_rng(seed).normal(size=(len(whose), 3))
    patients = [f"p{n}" for n in whose]
    group = in_groups(features, patients, min_patients=min_patients, at_once=at_once)
    if len(set(patients)) < min_patients:
        assert (group == -1).all(), "too few patients for a single group"
        return
    numbers = set(group.tolist()) - {-1}
    assert sorted(numbers) == list(range(int(group.max(initial=-1)) + 1)), "numbered without gaps"
    for number in numbers:
        cases_of = Counter(patients[n] for n in np.flatnonzero(group == number).tolist())
        assert len(cases_of) >= min_patients
        assert min_patients == 1 or max(cases_of.values()) <= cases_of.total() / 2
    assert len({patients[n] for n in np.flatnonzero(group == -1).tolist()}) < min_patients, "too few for a group of their own"
    np.testing.assert_array_equal(group, in_groups(features, patients, min_patients=min_patients, at_once=at_once))


def test_alike_cases_are_in_a_group() -> None:
    """Two clouds of three patients each; and two patients with a slice more, which join the group that they are like."""
    places = [0.0, 0.1, 0.2, 9.0, 9.1, 9.2, 0.15, 0.16]
    patients = ["a", "b", "c", "a", "b", "c", "a", "b"]
    group = in_groups(np.array(places)[:, None], patients, min_patients=3)
    assert len(set(group.tolist())) == 2
    assert len(set(group[[0, 1, 2, 6, 7]].tolist())) == 1
    assert len(set(group[3:6].tolist())) == 1


def test_many_cases_are_parted_first_and_each_part_grouped_as_if_it_were_all() -> None:
    """Four clouds far apart, of three patients with four cases each: with twelve at once each is grouped by itself."""
    rng = np.random.default_rng(0)
    places = rng.permutation(4).repeat(12)
    features = 100.0 * places[:, None] * [1.0, 0.5] + rng.normal(size=(48, 2))
    patients = [f"p{n % 3}" for n in range(48)]
    group = in_groups(features, patients, min_patients=3, at_once=12)
    for place in range(4):
        own = places == place
        alone = in_groups(features[own], [patients[n] for n in np.flatnonzero(own)], min_patients=3)
        np.testing.assert_array_equal(group[own] - group[own].min(), alone)
    assert len(set(group.tolist())) == 16, "four of each cloud"


def test_parts_are_not_cut_to_too_few_patients() -> None:
    """The ten cases of two patients lie apart from those of the third: a half of them alone could not be told of."""
    features = np.arange(15.0)[:, None]
    group = in_groups(features, ["a", "b"] * 5 + ["c"] * 5, min_patients=3, at_once=5)
    assert group.max() >= 1
    assert (group >= 0).sum() >= 6


def test_where_one_patient_is_enough_each_case_is_a_group() -> None:
    assert in_groups(np.zeros((3, 2)), ["a", "a", "b"], min_patients=1).tolist() == [0, 1, 2]


def test_of_a_patient_with_most_of_the_cases_no_more_are_told_than_of_the_others() -> None:
    """Forty slices of one, at 0 to 3.9, and one each of four others: a mean of all would be nearly the one patient's."""
    places = np.concatenate([np.arange(40) / 10, [0.0, 0.1, 0.2, 0.3]])[:, None]
    group = in_groups(places, ["a"] * 40 + list("bcde"), min_patients=5)
    assert group[40:].tolist() == [0, 0, 0, 0]
    stay = np.flatnonzero(group[:40] == 0)
    assert stay.tolist() == [8, 9, 10, 11], "the nearest to 0.9, the mean of the first case of each"
    assert (np.delete(group[:40], stay) == -1).all()
