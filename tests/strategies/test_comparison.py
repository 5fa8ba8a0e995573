"""Paired differences: their mean, an interval that covers it, and no comparison of what is not paired."""

from itertools import combinations

import numpy as np
import pytest

from strategies.comparison import SeedNoise, difference, doubt, holm, mean_interval, paired, seed_noise


def runs(effect: float, *, seeds: int = 5, patients: int = 20, noise: float = 0.02, of: int = 0) -> list[dict[str, float]]:
    """Dice by patient, hard patients being hard for everybody."""
    hardness = np.random.default_rng(1).uniform(0.3, 0.9, patients)
    rng = np.random.default_rng(2 + of)
    return [{f"p{n}": float(h + effect + rng.normal(0, noise)) for n, h in enumerate(hardness)} for _ in range(seeds)]


def test_the_mean_is_that_of_the_differences() -> None:
    """Of two patients a resample is 0, .05 or .1; t with one degree of freedom is 12.706 where a normal distribution has 1.96."""
    mean, low, high = difference([{"a": 0.8, "b": 0.5}], [{"a": 0.7, "b": 0.5}])
    assert mean == pytest.approx(0.05)
    widened = 2**0.5 * 12.706 / 1.96
    assert low == pytest.approx(0.05 - 0.05 * widened, abs=1e-4)
    assert high == pytest.approx(0.05 + 0.05 * widened, abs=1e-4)


def test_a_difference_far_smaller_than_that_between_patients_is_found_because_it_is_paired() -> None:
    mean, low, high = difference(runs(0.03, of=1), runs(0.0))
    assert low > 0
    assert low < mean < high
    assert abs(mean - 0.03) < 0.01


def trained(seeds: int, *, arms: int, rng: np.random.Generator) -> list[list[dict[str, float]]]:
    """Arms that are alike, as trainings are: a seed moves all patients of a run together, by more than patients differ."""
    return [
        [{f"p{n}": float(moved + rng.normal(0, 0.03)) for n in range(15)} for moved in rng.normal(0, 0.02, seeds)]
        for _ in range(arms)
    ]


def test_intervals_cover_the_truth_as_often_as_they_say_however_few_the_seeds() -> None:
    """With percentiles of resampled seeds it was 85 of 100."""
    rng = np.random.default_rng(5)
    inside = {False: 0, True: 0}
    for _ in range(200):
        ours, theirs, *others = trained(3, arms=6, rng=rng)
        tables = [paired(a, b) for a, b in combinations([ours, theirs, *others], 2)]
        for noise in (None, seed_noise(tables, df=5 * 2)):
            _, low, high = difference(ours, theirs, noise=noise)
            inside[noise is not None] += low <= 0 <= high
    assert all(count >= 185 for count in inside.values()), inside


@pytest.mark.parametrize("patients", [3, 6, 20])
def test_intervals_cover_the_truth_however_few_the_patients(patients: int) -> None:
    """Two methods of which one suits some patients better, steady over seeds. With percentiles alone it was 75 of 100."""
    rng = np.random.default_rng(7)
    inside = 0
    for _ in range(200):
        gains = rng.normal(0, 0.03, patients)
        theirs = [{f"p{n}": 0.5 for n in range(patients)} for _ in range(3)]
        ours = [{f"p{n}": 0.5 + float(gain + rng.normal(0, 0.003)) for n, gain in enumerate(gains)} for _ in theirs]
        _, low, high = difference(ours, theirs)
        inside += low <= 0 <= high
    assert 183 <= inside <= 199


def test_the_mean_of_a_method_covers_though_seeds_move_all_methods_alike() -> None:
    """With the noise of eighteen arms that share a cold start, as if they were as many seeds, it was 86 of 100."""
    rng = np.random.default_rng(8)
    inside = 0
    for _ in range(200):
        moved = rng.normal(0, 0.03, 3)
        _, low, high = mean_interval([{f"p{n}": float(0.5 + m + rng.normal(0, 0.01)) for n in range(15)} for m in moved])
        inside += low <= 0.5 <= high
    assert 183 <= inside <= 199


def test_a_method_shakier_than_the_others_is_covered_by_its_own_degrees_of_freedom() -> None:
    """Six times as shaky as five others: with their degrees of freedom it was 87 of 100."""
    rng = np.random.default_rng(9)
    inside = 0
    for _ in range(200):
        arms = trained(3, arms=5, rng=rng)
        shaky = [{f"p{n}": float(moved + rng.normal(0, 0.03)) for n in range(15)} for moved in rng.normal(0, 0.12, 3)]
        noise = seed_noise([paired(a, b) for a, b in combinations([shaky, *arms], 2)], df=5 * 2)
        _, low, high = difference(shaky, arms[0], noise=noise)
        inside += low <= 0 <= high
    assert inside >= 183


def test_folds_that_share_their_training_patients_are_less_sure_by_hand() -> None:
    """Five folds: the variance of their mean is 1/5 + 1/4 of theirs instead of 1/5."""
    folds = [{"fold": value} for value in (0.1, 0.2, 0.3, 0.4, 0.5)]
    mean, low, high = mean_interval(folds)
    same, wide_low, wide_high = mean_interval(folds, overlap=0.25)
    assert mean == same == pytest.approx(0.3)
    assert (wide_high - wide_low) / (high - low) == pytest.approx(1.5)
    assert high - low == pytest.approx(2 * 2.776 * 0.1581 / 5**0.5, rel=0.05)


def test_arms_that_are_alike_are_seldom_told_apart() -> None:
    """In 5 of 100 comparisons at most; with percentiles of resampled seeds it was 75."""
    rng = np.random.default_rng(6)
    false = 0
    for _ in range(60):
        sides = list(combinations(trained(3, arms=6, rng=rng), 2))
        noise = seed_noise([paired(*side) for side in sides], df=5 * 2)
        false += min(holm([doubt(*side, noise=noise) for side in sides])) < 0.05
    assert false <= 6


@pytest.mark.parametrize("patients", [2, 4, 10])
def test_arms_that_suit_other_patients_are_seldom_told_apart_however_few_these_are(patients: int) -> None:
    """Steady over seeds, and each as good on average. By the tails of resampled patients it was 38, 23 and 8 of 100."""
    rng = np.random.default_rng(3)
    false = 0
    for _ in range(60):
        suits = rng.normal(0.5, 0.03, (6, patients))
        arms = [[{f"p{n}": float(d + rng.normal(0, 0.003)) for n, d in enumerate(own)} for _ in range(3)] for own in suits]
        sides = list(combinations(arms, 2))
        noise = seed_noise([paired(*side) for side in sides], df=5 * 2)
        false += min(holm([doubt(*side, noise=noise) for side in sides])) < 0.05
    assert false <= 6


def test_of_one_patient_doubt_is_that_of_seeds_by_hand() -> None:
    """A mean of .2 and a standard error of .1/√3 with two degrees of freedom: t is 3.464."""
    ours, theirs = [{"a": 0.1 + 0.1 * n} for n in range(3)], [{"a": 0.0}] * 3
    assert doubt(ours, theirs) == pytest.approx(0.0742, abs=1e-4)


def test_a_method_whose_trainings_fail_at_times_is_not_thought_as_steady_as_the_others() -> None:
    shaky = [{p: d - (0.3 if seed == 1 else 0.0) for p, d in run.items()} for seed, run in enumerate(runs(0.0, seeds=3, of=1))]
    steady = SeedNoise(0.001, 100)
    _, low, high = difference(shaky, runs(0.0, seeds=3), noise=steady)
    assert low < 0 < high
    _, low, high = difference(runs(0.05, seeds=3, of=1), runs(0.0, seeds=3), noise=steady)
    assert low > 0


def test_noise_is_the_root_of_mean_variances_over_seeds() -> None:
    one, other = np.array([[1.0, 3.0], [5.0, 7.0]]), np.array([[0.0], [0.0], [3.0]])
    assert seed_noise([one, other], df=4) == SeedNoise(pytest.approx(np.sqrt((8 + 3) / 2)), 4)  # type: ignore[arg-type]
    assert seed_noise([np.ones((1, 4))], df=0).sd == 0.0, "one seed tells nothing"


def test_fewer_seeds_and_patients_are_less_sure() -> None:
    _, low, high = difference(runs(0.0, of=1), runs(0.0))
    _, few_low, few_high = difference(runs(0.0, seeds=2, patients=4, of=1), runs(0.0, seeds=2, patients=4))
    assert few_high - few_low > high - low


def test_what_is_not_paired_is_not_compared() -> None:
    with pytest.raises(ValueError, match="same seeds and patients"):
        difference([{"a": 0.1}], [{"b": 0.1}])
    with pytest.raises(ValueError, match="same seeds and patients"):
        difference([{"a": 0.1}], [{"a": 0.1}, {"a": 0.2}])


def test_the_mean_of_one_method_has_the_interval_of_its_difference_to_nothing() -> None:
    ours = runs(0.0, seeds=3)
    assert mean_interval(ours) == difference(ours, [dict.fromkeys(run, 0.0) for run in ours])
    with pytest.raises(ValueError, match="same patients"):
        mean_interval([{"a": 0.1}, {"b": 0.1}])


def test_holm_by_hand() -> None:
    """Sorted .01, .02, .04 times 3, 2, 1 are .03, .04, .04: and none may fall below one before it."""
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.03, 0.03]) == pytest.approx([0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_doubt_is_little_where_all_seeds_agree_and_whole_where_nothing_differs() -> None:
    theirs = runs(0.0, seeds=3)
    better = [{p: d + 0.05 + 0.001 * seed for p, d in run.items()} for seed, run in enumerate(theirs)]
    assert doubt(better, theirs) < 0.001
    assert doubt(theirs, better) == pytest.approx(doubt(better, theirs))
    assert doubt(theirs, theirs) == 1.0
    exactly = [{p: d + 0.05 for p, d in run.items()} for run in theirs]
    assert 0 < doubt(exactly, theirs) < 0.001, "never none at all"
    assert doubt(better, theirs, noise=SeedNoise(0.1, 10)) > 0.3, "where seeds lie apart by more than that"
