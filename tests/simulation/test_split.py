"""Splits: patients are spread without loss, by seed alone, and the skews are the ones promised."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simulation.split import MINIMUM, Sites, by_column, by_label, by_size, equal_parts, hold_out

Splitter = Callable[[list[str], int, float, int], Sites]


def frequencies(patients: list[str]) -> dict[str, np.ndarray]:
    """Class shares that a patient's name decides."""
    return {p: np.random.default_rng(list(p.encode())).dirichlet([8, 2, 1]) for p in patients}


SPLITTERS: dict[str, Splitter] = {
    "label": lambda p, count, alpha, seed: by_label(frequencies(p), count=count, alpha=alpha, split_seed=seed),
    "size": lambda p, count, alpha, seed: by_size(p, count=count, alpha=alpha, split_seed=seed),
    "parts": lambda p, count, alpha, seed: equal_parts(p, count=count, split_seed=seed),
}


@pytest.mark.parametrize("kind", SPLITTERS)
@given(
    count=st.integers(1, 6),
    extra=st.integers(0, 25),
    alpha=st.sampled_from([0.05, 0.5, 5.0, 100.0]),
    seed=st.integers(0, 2**40),
)
def test_a_split_is_a_partition_that_follows_from_the_seed_alone(
    kind: str, count: int, extra: int, alpha: float, seed: int
) -> None:
    patients = [f"p{i}" for i in range(MINIMUM * count + extra)]
    sites = SPLITTERS[kind](patients, count, alpha, seed)
    assert len(sites) == count
    assert sorted(p for members in sites.values() for p in members) == sorted(patients), "nobody lost, nobody twice"
    assert min(map(len, sites.values())) >= MINIMUM
    shuffled = random.Random(seed).sample(patients, len(patients))
    assert SPLITTERS[kind](shuffled, count, alpha, seed) == sites
    assert all(members == sorted(members) for members in sites.values())


@pytest.mark.parametrize("kind", SPLITTERS)
def test_another_seed_is_another_split(kind: str) -> None:
    patients = [f"p{i}" for i in range(40)]
    assert SPLITTERS[kind](patients, 4, 1.0, 0) != SPLITTERS[kind](patients, 4, 1.0, 1)


@pytest.mark.parametrize("kind", SPLITTERS)
def test_too_few_patients_name_the_key_and_the_most_sites(kind: str) -> None:
    with pytest.raises(ValueError, match=r"split\.count = 4 .* 12 patients, the data has 11: .*at most 3"):
        SPLITTERS[kind]([f"p{i}" for i in range(11)], 4, 1.0, 0)


def test_equal_parts_differ_by_one_patient_at_most() -> None:
    sizes = [len(p) for p in equal_parts([f"p{i}" for i in range(23)], count=5, split_seed=3).values()]
    assert sorted(sizes) == [4, 4, 5, 5, 5]


def unevenness(alpha: float) -> float:
    """Mean over seeds of the spread of site sizes."""
    patients = [f"p{i}" for i in range(80)]
    return float(np.mean([np.std([len(p) for p in SPLITTERS["size"](patients, 4, alpha, seed).values()]) for seed in range(40)]))


def test_a_small_alpha_makes_sites_uneven_and_a_large_one_even() -> None:
    assert unevenness(0.2) > 2 * unevenness(5.0)
    assert unevenness(1e4) < 1.0


def label_skew(alpha: float) -> float:
    """Mean over seeds of the distance between a site's share of each patient group and the share overall."""
    groups = {f"p{i}": i % 3 for i in range(90)}
    table = {p: np.array([0.6, 0.2, 0.2]) + 0.1 * np.eye(3)[g] for p, g in groups.items()}
    skews = []
    for seed in range(30):
        for members in by_label(table, count=3, alpha=alpha, split_seed=seed).values():
            share = np.bincount([groups[p] for p in members], minlength=3) / len(members)
            skews.append(np.abs(share - 1 / 3).sum() / 2)
    return float(np.mean(skews))


def test_dirichlet_skews_the_labels() -> None:
    skewed, even = label_skew(0.1), label_skew(1e4)
    assert skewed > 0.3
    assert even < 0.05


def test_one_structure_is_enough_to_skew_by_its_size() -> None:
    table = {f"p{i}": np.array([1 - 0.01 * i, 0.01 * i]) for i in range(40)}
    sites = by_label(table, count=2, alpha=0.05, split_seed=1)
    means = [float(np.mean([table[p][1] for p in members])) for members in sites.values()]
    assert abs(means[0] - means[1]) > 0.1


def test_patients_that_are_all_alike_still_split() -> None:
    sites = by_label({f"p{i}": np.array([0.5, 0.5]) for i in range(12)}, count=3, alpha=0.5, split_seed=0)
    assert sorted(map(len, sites.values()))[0] >= MINIMUM


def test_the_column_is_taken_as_it_is() -> None:
    sites = by_column({"b": "Y", "a": "X", "c": "X", "d": "X", "e": "Y", "f": "Y"})
    assert sites == {"X": ["a", "c", "d"], "Y": ["b", "e", "f"]}


def test_a_missing_site_and_a_small_site_are_told() -> None:
    with pytest.raises(ValueError, match=r"1 of 2 patients have no site.*split\.sites"):
        by_column({"a": None, "b": "X"})
    with pytest.raises(ValueError, match=r"fewer than 3 patients.*: Y \(1\)\. Give them more, join them with another site"):
        by_column({"a": "X", "b": "X", "c": "X", "d": "Y"})


# ------------------------------------------------------------------------------------------------------------ held out

fractions = st.floats(0, 0.98)


@given(
    patients=st.sets(st.text(max_size=6), min_size=3, max_size=40),
    test=fractions,
    share=st.floats(0, 1),
    seed=st.integers(0),
)
def test_every_patient_has_one_role_and_every_role_a_patient(patients: set[str], test: float, share: float, seed: int) -> None:
    validation = share * (0.99 - test)
    roles = hold_out(patients, test_fraction=test, validation_fraction=validation, split_seed=seed)
    assert set(roles) == patients
    counts = {role: list(roles.values()).count(role) for role in ("pool", "validation", "test")}
    assert min(counts.values()) >= 1
    assert sum(counts.values()) == len(patients)
    assert abs(counts["test"] - test * len(patients)) <= 2
    assert abs(counts["validation"] - validation * len(patients)) <= 2
    again = hold_out(sorted(patients, reverse=True), test_fraction=test, validation_fraction=validation, split_seed=seed)
    assert again == roles


def test_hand_counted_fractions() -> None:
    roles = hold_out([f"p{i}" for i in range(12)], test_fraction=0.25, validation_fraction=0.15, split_seed=0)
    assert [list(roles.values()).count(role) for role in ("test", "validation", "pool")] == [3, 2, 7]
    roles = hold_out(["a", "b", "c"], test_fraction=0.25, validation_fraction=0.15, split_seed=0)
    assert sorted(roles.values()) == ["pool", "test", "validation"]


def test_the_split_seed_draws_other_patients() -> None:
    patients = [f"p{i}" for i in range(30)]
    held = [hold_out(patients, test_fraction=0.3, validation_fraction=0.2, split_seed=seed) for seed in range(2)]
    assert held[0] != held[1]


def test_a_new_patient_turns_no_training_patient_into_a_test_patient_and_back_at_large() -> None:
    patients = [f"p{i}" for i in range(40)]
    before = hold_out(patients, test_fraction=0.25, validation_fraction=0.25, split_seed=7)
    after = hold_out([*patients, "new"], test_fraction=0.25, validation_fraction=0.25, split_seed=7)
    assert sum(before[p] != after[p] for p in patients) <= 2


@pytest.mark.parametrize("patients", [[], ["a"], ["a", "b"]])
def test_too_few_patients_to_hold_any_out(patients: list[str]) -> None:
    with pytest.raises(ValueError, match="at least 3 are needed"):
        hold_out(patients, test_fraction=0.25, validation_fraction=0.15, split_seed=0)


@given(patients=st.sets(st.text(max_size=6), min_size=3, max_size=40), folds=st.integers(2, 6), seed=st.integers(0))
def test_over_all_folds_every_patient_is_for_test_once(patients: set[str], folds: int, seed: int) -> None:
    assume(len(patients) >= max(folds, 4))
    tested: list[str] = []
    for fold in range(folds):
        roles = hold_out(patients, test_fraction=0.5, validation_fraction=0.2, split_seed=seed, folds=folds, fold=fold)
        assert set(roles) == patients
        assert set(roles.values()) == {"pool", "validation", "test"}, "one each at least"
        tested += [patient for patient, role in roles.items() if role == "test"]
    assert sorted(tested) == sorted(patients)


def test_more_folds_than_patients_are_refused() -> None:
    with pytest.raises(ValueError, match=r"4 patients can't be parted in 5 .*: set split\.folds to 4 at most"):
        hold_out("abcd", test_fraction=0.2, validation_fraction=0.2, split_seed=0, folds=5)
    with pytest.raises(ValueError, match=r"set split\.folds to 3$"):
        hold_out("abc", test_fraction=0.2, validation_fraction=0.2, split_seed=0, folds=2)
