"""Paired differences: their mean, an interval that covers it, and no comparison of what is not paired."""

import numpy as np
import pytest

from strategies.comparison import bootstrap, holm, paired_bootstrap, sign_doubt


def runs(effect: float, *, seeds: int = 5, patients: int = 20, noise: float = 0.02, of: int = 0) -> list[dict[str, float]]:
    """Dice by patient, hard patients being hard for everybody."""
    hardness = np.random.default_rng(1).uniform(0.3, 0.9, patients)
    rng = np.random.default_rng(2 + of)
    return [{f"p{n}": float(h + effect + rng.normal(0, noise)) for n, h in enumerate(hardness)} for _ in range(seeds)]


def test_the_mean_is_that_of_the_differences() -> None:
    mean, low, high = paired_bootstrap([{"a": 0.8, "b": 0.5}], [{"a": 0.7, "b": 0.5}])
    assert mean == pytest.approx(0.05)
    assert low == pytest.approx(0.0)
    assert high == pytest.approx(0.1)


def test_a_difference_far_smaller_than_that_between_patients_is_found_because_it_is_paired() -> None:
    mean, low, high = paired_bootstrap(runs(0.03, of=1), runs(0.0))
    assert low > 0
    assert low < mean < high
    assert abs(mean - 0.03) < 0.01


def test_the_interval_covers_no_difference_about_as_often_as_it_says() -> None:
    inside = 0
    for trial in range(100):
        _, low, high = paired_bootstrap(runs(0.0, of=2 * trial), runs(0.0, of=2 * trial + 1), draws=500, seed=trial)
        inside += low <= 0 <= high
    assert 88 <= inside <= 100


def test_fewer_seeds_and_patients_are_less_sure() -> None:
    _, low, high = paired_bootstrap(runs(0.0, of=1), runs(0.0))
    _, few_low, few_high = paired_bootstrap(runs(0.0, seeds=2, patients=4, of=1), runs(0.0, seeds=2, patients=4))
    assert few_high - few_low > high - low


def test_what_is_not_paired_is_not_compared() -> None:
    with pytest.raises(ValueError, match="same seeds and patients"):
        paired_bootstrap([{"a": 0.1}], [{"b": 0.1}])
    with pytest.raises(ValueError, match="same seeds and patients"):
        paired_bootstrap([{"a": 0.1}], [{"a": 0.1}, {"a": 0.2}])


def test_the_mean_of_one_method_has_the_interval_of_its_difference_to_nothing() -> None:
    ours = runs(0.0, seeds=3)
    assert bootstrap(ours) == paired_bootstrap(ours, [dict.fromkeys(run, 0.0) for run in ours])
    with pytest.raises(ValueError, match="same patients"):
        bootstrap([{"a": 0.1}, {"b": 0.1}])


def test_holm_by_hand() -> None:
    """Sorted .01, .02, .04 times 3, 2, 1 are .03, .04, .04: and none may fall below one before it."""
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.03, 0.03]) == pytest.approx([0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_difference_that_every_patient_shows_leaves_little_doubt_and_none_at_all_leaves_all() -> None:
    rng = np.random.default_rng(0)
    theirs = [{f"p{n}": 0.5 + 0.1 * rng.random() for n in range(10)} for _ in range(3)]
    better = [{p: d + 0.05 for p, d in run.items()} for run in theirs]
    assert sign_doubt(better, theirs) == pytest.approx(2 / 4001)
    assert sign_doubt(theirs, better) == sign_doubt(better, theirs)
    assert sign_doubt(theirs, theirs) == 1.0
    noisy = [{p: d + 0.1 * rng.normal() for p, d in run.items()} for run in theirs]
    assert 0.01 < sign_doubt(noisy, theirs) <= 1.0
