"""What a comparison's numbers say of runs that are small enough to count by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from simulation.compare.arms import ALL_LABELS, TWIN
from simulation.compare.numbers import WORSE_BY, Line, Pair, numbers_of, overlap_of, pairs_of
from simulation.compare.readings import (
    Reached,
    common_range,
    efficiency,
    final,
    patient_aubc,
    patient_dice_at,
    same_patients,
    samples,
    whole_seeds,
)
from simulation.compare.record import Point, Ran
from simulation.compare.tables import pair_rows


def point(labels: int, dice: dict[str, float], *, minutes: float | None = None) -> Point:
    cost = float(labels) if minutes is None else minutes
    return Point(labels, cost, labels / 100, dict(dice), dict(dice), min(dice.values()), 1000)


def ran(arm: str, seed: int, curve: dict[int, dict[str, float]], *, fold: int = 0) -> Ran:
    return Ran(arm, seed, tuple(point(labels, dice) for labels, dice in curve.items()), seconds=10.0, fold=fold)


FLAT = {10: {"a": 0.4, "b": 0.6}, 20: {"a": 0.4, "b": 0.6}}
RISING = {10: {"a": 0.4, "b": 0.6}, 20: {"a": 0.6, "b": 0.8}, 40: {"a": 0.7, "b": 0.9}}


def test_a_patients_area_by_hand() -> None:
    """(0.5 · 10 + 0.65 · 20) / 30 for a: trapezoids over the width."""
    area = patient_aubc(ran("x", 0, RISING))
    assert area == pytest.approx({"a": 18 / 30, "b": 24 / 30})
    assert patient_aubc(ran("x", 0, {5: {"a": 0.3}})) == {"a": 0.3}, "one assessment is its Dice"


def test_an_area_within_the_range_that_curves_share() -> None:
    """From 15 (0.5) to 20 (0.6) to 30 (0.65) for a."""
    area = patient_aubc(ran("x", 0, RISING), within=(15, 30))
    assert area["a"] == pytest.approx((5 * 0.55 + 10 * 0.625) / 15)
    assert common_range([ran("x", 0, RISING), ran("y", 0, FLAT), ran("all", 0, {99: FLAT[10]})]) == (10, 20)


def test_cycles_that_brought_no_label_are_one_point_with_their_mean() -> None:
    stands = Ran("x", 0, (point(10, {"a": 0.4}), point(10, {"a": 0.6}), point(20, {"a": 0.7})), seconds=1.0)
    assert patient_aubc(stands)["a"] == pytest.approx((0.5 + 0.7) / 2)
    assert patient_dice_at(stands, budget=10) == {"a": pytest.approx(0.5)}
    assert patient_dice_at(stands, budget=15) == {"a": pytest.approx(0.6)}


def line_beside(full: float, runs: list[Ran]) -> Line:
    """Of an arm, in a comparison where all labels give that Dice."""
    ceiling = [ran(ALL_LABELS, one.seed, {100: {"a": full, "b": full}}) for one in runs]
    return numbers_of(["x", ALL_LABELS], [*runs, *ceiling], folds=1).lines["x"]


def test_the_line_of_an_arm() -> None:
    line = line_beside(0.8, [ran("x", seed, RISING) for seed in (0, 1)])
    assert line.seeds == 2
    assert line.aubc[0] == line.aubc_minutes[0] == pytest.approx(21 / 30)
    assert line.final[0] == pytest.approx(0.8)
    assert line.reach_labels[0.9].budget == pytest.approx(20 + 20 * 0.02 / 0.1), "0.72 lies a fifth of the way from .7 to .8"
    assert line.reach_labels[0.95].budget == pytest.approx(20 + 20 * 0.06 / 0.1)
    assert line.worst == pytest.approx(0.7)
    assert line.reach_labels[0.9].by_all


def test_a_seed_that_never_arrives_counts_with_all_that_it_had_and_is_told() -> None:
    assert line_beside(0.8, [ran("x", 0, FLAT)]).reach_labels[0.9] == Reached(20, by_all=False)
    line = line_beside(0.8, [ran("x", 0, RISING), ran("x", 1, {**FLAT, 40: FLAT[20]})])
    assert line.reach_labels[0.9] == Reached(pytest.approx((24 + 40) / 2), by_all=False)  # type: ignore[arg-type]


def test_a_run_that_gains_no_label_is_no_curve_and_takes_no_range_from_the_others() -> None:
    stalled = Ran("x", 0, (point(10, {"a": 0.4, "b": 0.6}),) * 2, seconds=1.0)
    runs = [stalled, ran("y", 0, RISING), ran("z", 0, FLAT)]
    assert common_range(runs) == (10, 20)
    numbers = numbers_of(["x", "y", "z"], runs, folds=1)
    assert numbers.within == (10, 20)
    assert numbers.lines["y"].aubc[0] == pytest.approx(0.6), "over 10 to 20 alone"
    assert common_range([ran("x", 0, {1: FLAT[10], 5: FLAT[10]}), ran("y", 0, FLAT)]) is None


def test_the_worst_site_is_unknown_where_no_test_patient_has_a_structure() -> None:
    known, unknown = ran("x", 0, FLAT), ran("x", 1, FLAT)
    unknown = replace(unknown, points=tuple(replace(one, worst_test=None) for one in unknown.points))
    assert numbers_of(["x"], [unknown], folds=1).lines["x"].worst is None
    assert numbers_of(["x"], [known, unknown], folds=1).lines["x"].worst == pytest.approx(0.4)


def test_dice_at_the_budgets_of_random_where_an_arm_comes_so_far() -> None:
    runs = [ran("random", 0, RISING), ran("x", 0, FLAT), ran("y", 0, {10: FLAT[10], 30: RISING[40], 40: RISING[40]})]
    lines = numbers_of(["random", "x", "y"], runs, folds=1).lines
    assert {budget: told[0] for budget, told in lines["random"].at.items()} == pytest.approx({10: 0.5, 20: 0.7, 40: 0.8})
    assert list(lines["x"].at) == [10, 20]
    assert lines["y"].at[20][0] == pytest.approx(0.65), "halfway"


def test_a_ceiling_that_others_are_above_is_none() -> None:
    ceiling = [ran(ALL_LABELS, 0, {100: {"a": 0.75, "b": 0.75}})]
    numbers = numbers_of(["x", ALL_LABELS], [ran("x", 0, RISING), *ceiling], folds=1)
    assert numbers.above == ["x"]
    assert not numbers.lines["x"].reach_labels
    assert numbers_of(["y", ALL_LABELS], [ran("y", 0, FLAT), *ceiling], folds=1).above == []


def test_expert_minutes_have_areas_and_pairs_of_their_own() -> None:
    """Equal over labels; y pays twice as much for its first labels, and for the last as much."""
    dice = {10: 0.4, 20: 0.6, 30: 0.7}
    costs = {"x": {10: 10.0, 20: 20.0, 30: 40.0}, "y": {10: 10.0, 20: 35.0, 30: 40.0}}
    runs = [
        Ran(arm, seed, tuple(point(n, {"a": dice[n]}, minutes=cost[n]) for n in dice), seconds=1.0)
        for arm, cost in costs.items()
        for seed in (0, 1, 2)
    ]
    numbers = numbers_of(["x", "y"], runs, folds=1)
    assert numbers.pairs[0].difference[0] == 0
    assert numbers.pairs_minutes[0].difference[0] == pytest.approx((10 * 0.5 + 20 * 0.65) / 30 - (25 * 0.5 + 5 * 0.65) / 30)
    assert numbers.lines["y"].aubc_minutes[0] < numbers.lines["x"].aubc_minutes[0]


def folded(arm: str, gain: float = 0.0, *, seeds: int = 1, folds: int = 5) -> list[Ran]:
    return [
        ran(arm, seed, {10: {f"p{fold}": 0.1 * fold + gain}, 20: {f"p{fold}": 0.1 * fold + 0.1 + gain}}, fold=fold)
        for seed in range(seeds)
        for fold in range(folds)
    ]


def test_folds_of_a_seed_are_taken_together_where_seeds_are_as_many() -> None:
    folds = folded("x", seeds=2, folds=2)
    assert samples(folds[::-1], final, unit="seed") == [{"p0": 0.1, "p1": 0.2}] * 2
    numbers = numbers_of(["x"], folds, folds=2)
    assert numbers.lines["x"].seeds == 2
    assert numbers.lines["x"].aubc[0] == pytest.approx(0.1), "the mean over patients of both folds"
    assert whole_seeds(folds[:3], folds=2) == folds[:2], "seed 1 lacks a fold"


def test_of_one_seed_folds_are_what_is_repeated() -> None:
    numbers = numbers_of(["x", "y"], [*folded("x"), *folded("y", 0.05)], folds=5)
    (pair,) = numbers.pairs
    assert (pair.count, pair.unit) == (5, "fold")
    assert pair.verdict("y") == "y is better than x."
    assert numbers.lines["x"].aubc[0] == pytest.approx(0.25)


def test_the_goal_of_a_fold_is_its_own() -> None:
    """Fold 4 ends five times as high as fold 0: a share of their mean is out of reach for one, and nothing for the other."""
    ceiling = [replace(one, arm=ALL_LABELS, points=one.points[1:]) for one in folded("x")]
    line = numbers_of(["x", ALL_LABELS], [*folded("x"), *ceiling], folds=5).lines["x"]
    each = [20 - 10 * 0.05 * (0.1 * fold + 0.1) / 0.1 for fold in range(5)]
    assert line.reach_labels[0.95] == Reached(pytest.approx(sum(each) / 5), by_all=True)  # type: ignore[arg-type]


def test_what_is_repeated_is_the_same_for_all_arms_though_one_lacks_a_seed() -> None:
    """Two folds and two seeds, of y one seed: by itself it has more folds than seeds."""
    numbers = numbers_of(["x", "y"], [*folded("x", seeds=2, folds=2), *folded("y", seeds=1, folds=2)], folds=2)
    (pair,) = numbers.pairs
    assert (numbers.unit, pair.unit, pair.count) == ("seed", "seed", 1)
    assert len({tuple(row) for row in pair_rows(numbers)}) == 1, "rows of one table"


def test_folds_are_less_sure_than_as_many_seeds() -> None:
    """By the factor that makes up for training on the same patients: 1.5 for five."""
    gains = (0.01, 0.03, 0.05, 0.02, 0.04)
    by_fold = {"x": folded("x"), "y": [folded("y", gain)[fold] for fold, gain in enumerate(gains)]}
    by_seed = {
        arm: [ran(arm, seed, {10: {"a": 0.5 + gain}}) for seed, gain in enumerate(of)]
        for arm, of in (("x", (0.0,) * 5), ("y", gains))
    }
    widths = [pair.difference[2] - pair.difference[1] for of in (by_fold, by_seed) for pair in pairs_of(of, patient_aubc)]
    assert widths[0] / widths[1] == pytest.approx(1.5)


def test_folds_overlap_by_whom_they_train_on_who_are_not_those_that_validate() -> None:
    """Six patients in three folds of two; of the four others one validates, so that three are trained on."""

    def of(fold: int, held: str, validates: str) -> Ran:
        tested, validated = (dict.fromkeys(names, 0.5) for names in (held, validates))
        return Ran("x", 0, (Point(10, 10.0, 0.1, validated, tested, 0.5, 0),), seconds=1.0, fold=fold)

    folds = [of(0, "ab", "c"), of(1, "cd", "a"), of(2, "ef", "a")]
    assert overlap_of(folds, unit="fold") == pytest.approx(2 / 3)
    assert overlap_of([replace(one, arm="y", seed=1) for one in folds] + folds, unit="fold") == pytest.approx(2 / 3)
    assert overlap_of(folds[:1], unit="fold") == 0.0, "one fold is all that there is"


def test_seeds_are_as_sure_in_folds_as_without() -> None:
    """Four patients, at once or in two folds of two: to train on the same patients is nothing that seeds have in common there."""

    def widths(folds: int) -> list[float]:
        runs = [
            ran(arm, seed, {10: {f"p{n}": 0.5 + 0.01 * seed * gain + 0.02 * n * gain for n in range(fold, 4, folds)}}, fold=fold)
            for arm, gain in (("x", 0), ("y", 1))
            for seed in range(3)
            for fold in range(folds)
        ]
        numbers = numbers_of(["x", "y"], runs, folds=folds)
        return [high - low for _, low, high in (numbers.pairs[0].difference, numbers.lines["y"].aubc)]

    assert widths(2) == pytest.approx(widths(1), rel=0.05)


def test_of_one_test_patient_nothing_is_told_apart() -> None:
    runs = [ran(arm, seed, {10: {"a": dice}, 20: {"a": dice}}) for arm, dice in (("x", 0.2), ("y", 0.9)) for seed in range(4)]
    (pair,) = numbers_of(["x", "y"], runs, folds=1).pairs
    assert not pair.is_clear
    assert pair.no_worse("y") is None
    assert pair.verdict("y") == "Can't tell y from x with 4 seeds and one test patient."


def test_an_arm_with_a_head_of_its_own_has_to_beat_chance_with_that_head() -> None:
    dice = {"random_fg": 0.5, TWIN: 0.6, "feal+cap": 0.58, "entropy": 0.55}
    runs = [ran(arm, seed, {10: {"a": d}, 20: {"a": d}}) for arm, d in dice.items() for seed in range(3)]
    numbers = numbers_of(list(dice), runs, folds=1)
    pair, other, twin = (numbers.against(arm) for arm in ("feal+cap", "entropy", TWIN))
    assert pair is not None
    assert other is not None
    assert twin is not None
    assert pair.of("feal+cap", TWIN)
    assert other.of("entropy", "random_fg")
    assert twin.of(TWIN, "random_fg")
    assert numbers.against("random_fg") is None
    fewer = numbers_of(list(dice), [one for one in runs if one.arm != TWIN], folds=1).against("feal+cap")
    assert fewer is not None
    assert fewer.of("feal+cap", "random_fg")


def test_pairs_are_paired_by_seed_and_patient() -> None:
    """Patients and seeds differ by far more than the arms do, and alike in both: the difference has no spread."""
    hard = {"a": 0.1, "b": 0.9}
    arms = {
        name: [ran(name, seed, {10: {p: d / (1 + seed) + gain for p, d in hard.items()}}) for seed in (0, 1, 2)]
        for name, gain in (("x", 0.0), ("y", 0.05))
    }
    (pair,) = pairs_of(arms, patient_aubc)
    assert pair.difference == pytest.approx((-0.05, -0.05, -0.05))
    assert pair.verdict("x") == "x is worse than y."
    assert pair.verdict("y") == "y is better than x."
    assert pair.seen_from("y") == pytest.approx((0.05, 0.05, 0.05))
    fewer = pairs_of({"x": arms["x"][:2], "y": arms["y"]}, patient_aubc)
    assert fewer[0].verdict("y") == "Can't tell y from x with 2 seeds.", "however clear it looks"


def test_more_pairs_make_each_of_them_less_sure() -> None:
    def doubts(arms: int) -> float:
        runs = {
            f"x{n}": [
                ran(f"x{n}", seed, {10: {p: 0.5 + 0.02 * n * (1 if p != "c" else -0.6) for p in "abc"}}) for seed in range(3)
            ]
            for n in range(arms)
        }
        return pairs_of(runs, patient_aubc)[0].doubt

    assert doubts(2) < doubts(4)


def test_seeds_that_lie_apart_in_other_pairs_make_a_lucky_one_less_sure() -> None:
    """x and y happen to lie equally far apart with every seed; z shows that trainings do not repeat so well."""

    def arm(name: str, *means: float) -> list[Ran]:
        return [ran(name, seed, {10: {"a": mean, "b": mean + 0.01}}) for seed, mean in enumerate(means)]

    alone = {"x": arm("x", 0.5, 0.6, 0.7), "y": arm("y", 0.53, 0.63, 0.731)}
    assert pairs_of(alone, patient_aubc)[0].is_clear
    assert not pairs_of({**alone, "z": arm("z", 0.6, 0.5, 0.75)}, patient_aubc)[0].is_clear


@pytest.mark.parametrize(
    ("difference", "no_worse"), [((0.0, -WORSE_BY, 0.1), True), ((0.0, -0.011, 0.1), None), ((-0.05, -0.08, -0.011), False)]
)
def test_no_worse_needs_the_whole_interval(difference: tuple[float, float, float], no_worse: bool | None) -> None:
    assert Pair("x", "y", difference, 1.0, 3, "seed", 2).no_worse("x") is no_worse
    assert Pair("x", "y", difference, 1.0, 2, "seed", 2).no_worse("x") is None, "of two seeds"


def test_efficiency_is_of_the_mean_curve_and_none_where_it_jumps_at_once() -> None:
    def rises(seed: int, shift: float, rate: float) -> Ran:
        dice = [0.8 - 0.4 * math.exp(-rate * labels / 100) for labels in (5, 10, 20, 40, 80)]
        return ran("x", seed, {labels: {"a": d + shift} for labels, d in zip((5, 10, 20, 40, 80), dice, strict=True)})

    assert efficiency([rises(0, 0.02, 3.0), rises(1, -0.02, 3.0)]) == pytest.approx(3.0, rel=1e-3)
    jumps = ran("x", 0, {n: {"a": d} for n, d in zip((5, 10, 20, 40, 80), (0.4, 0.8, 0.79, 0.81, 0.8), strict=True)})
    assert efficiency([jumps]) is None
    flat = ran("x", 0, {n: {"a": d} for n, d in zip((5, 10, 20, 40), (0.5, 0.508, 0.512, 0.513), strict=True)})
    assert efficiency([flat]) is None, "what noise does as often as not"


def test_patients_whose_dice_is_not_known_throughout_are_left_out_and_counted() -> None:
    runs = [ran("x", 0, RISING), ran("y", 0, {**RISING, 40: {"a": 0.5}}), ran("y", 0, {5: {"c": 0.5}}, fold=1)]
    kept, left_out = same_patients(runs)
    assert left_out == 2, "b, of validation and of test"
    assert all(set(p.test) == ({"a"} if r.fold == 0 else {"c"}) for r in kept for p in r.points)
    assert same_patients([replace(r) for r in runs[:1]])[1] == 0


def test_a_run_in_which_a_site_told_no_dice_does_not_count_and_takes_nobody_from_the_others() -> None:
    whole = [ran(arm, seed, RISING) for arm in "xy" for seed in range(2)]
    away = replace(whole[0].points[1], test={"a": 0.6}, validation={"a": 0.6}, unassessed=["site_b"])
    partly = replace(whole[0], points=(whole[0].points[0], away, whole[0].points[2]))
    numbers = numbers_of(["x", "y"], [partly, *whole[1:]], folds=1)
    assert numbers.unassessed == [partly]
    assert (numbers.ended, numbers.left_out) == (4, 0)
    assert [one.seed for one in numbers.by_arm["x"]] == [1]
    assert numbers.lines["y"].aubc[0] == pytest.approx(0.7)


@pytest.mark.parametrize("role", ["validation", "test"])
def test_nothing_is_compared_where_a_fold_has_nobody_whose_dice_is_known(role: str) -> None:
    runs = folded("x", folds=2)
    runs[1] = replace(runs[1], points=tuple(replace(one, **{role: {}}) for one in runs[1].points))  # type: ignore[arg-type]
    numbers = numbers_of(["x"], runs, folds=2)
    assert (numbers.nobody, numbers.lines, numbers.ended) == ([role], {}, 2)
