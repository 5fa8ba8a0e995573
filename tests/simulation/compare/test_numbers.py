"""What a comparison's numbers say of runs that are small enough to count by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulation.compare.numbers import (
    WORSE_BY,
    Pair,
    at_budgets,
    by_seed,
    common_range,
    line_of,
    pairs_of,
    patient_aubc,
    same_patients,
    whole_seeds,
)
from simulation.compare.record import Point, Ran


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
    assert at_budgets([stands], [10]) == {10: pytest.approx(0.5)}


def test_the_line_of_an_arm() -> None:
    line = line_of([ran("x", seed, RISING) for seed in (0, 1)], full_dice=0.8)
    assert line.seeds == 2
    assert line.aubc[0] == pytest.approx(21 / 30)
    assert line.final[0] == pytest.approx(0.8)
    assert line.reach_labels[0.9] == pytest.approx(20 + 20 * 0.02 / 0.1), "0.72 lies a fifth of the way from .7 to .8"
    assert line.reach_labels[0.95] == pytest.approx(20 + 20 * 0.06 / 0.1)
    assert line.worst == pytest.approx(0.7)
    assert line_of([ran("x", 0, FLAT)], full_dice=0.8).reach_labels[0.9] is None, "never there"


def test_a_seed_that_never_arrives_leaves_no_mean() -> None:
    line = line_of([ran("x", 0, RISING), ran("x", 1, {**FLAT, 40: FLAT[20]})], full_dice=0.8)
    assert line.reach_labels[0.9] is None


def test_folds_of_a_seed_are_taken_together() -> None:
    folds = [
        ran("x", seed, {10: {f"p{fold}": 0.1 * fold}, 20: {f"p{fold}": 0.2 * fold}}, fold=fold)
        for seed in (0, 1)
        for fold in (1, 0)
    ]
    assert by_seed(folds, lambda r: r.points[-1].test) == [{"p0": 0.0, "p1": 0.2}] * 2
    line = line_of(folds, full_dice=None)
    assert line.seeds == 2
    assert line.aubc[0] == pytest.approx(0.075), "the mean over patients of both folds"
    assert whole_seeds(folds[:3], folds=2) == folds[:2], "seed 1 lacks a fold"


def test_pairs_are_paired_by_seed_and_patient() -> None:
    """Patients and seeds differ by far more than the arms do, and alike in both: the difference has no spread."""
    hard = {"a": 0.1, "b": 0.9}
    arms = {
        name: [ran(name, seed, {10: {p: d / (1 + seed) + gain for p, d in hard.items()}}) for seed in (0, 1, 2)]
        for name, gain in (("x", 0.0), ("y", 0.05))
    }
    (pair,) = pairs_of(arms)
    assert pair.difference == pytest.approx((-0.05, -0.05, -0.05))
    assert pair.verdict("x") == "x is worse than y."
    assert pair.verdict("y") == "y is better than x."
    assert pair.seen_from("y") == pytest.approx((0.05, 0.05, 0.05))
    fewer = pairs_of({"x": arms["x"][:2], "y": arms["y"]})
    assert fewer[0].verdict("y") == "Can't tell y from x with 2 seeds.", "however clear it looks"


def test_more_pairs_make_each_of_them_less_sure() -> None:
    def doubts(arms: int) -> float:
        runs = {
            f"x{n}": [
                ran(f"x{n}", seed, {10: {p: 0.5 + 0.02 * n * (1 if p != "c" else -0.6) for p in "abc"}}) for seed in range(3)
            ]
            for n in range(arms)
        }
        return pairs_of(runs)[0].doubt

    assert doubts(2) < doubts(4)


@pytest.mark.parametrize(
    ("difference", "no_worse"), [((0.0, -WORSE_BY, 0.1), True), ((0.0, -0.011, 0.1), None), ((-0.05, -0.08, -0.011), False)]
)
def test_no_worse_needs_the_whole_interval(difference: tuple[float, float, float], no_worse: bool | None) -> None:
    assert Pair("x", "y", difference, 1.0, 3).no_worse("x") is no_worse


def test_patients_whose_dice_is_not_known_throughout_are_left_out_and_counted() -> None:
    runs = [ran("x", 0, RISING), ran("y", 0, {**RISING, 40: {"a": 0.5}}), ran("y", 0, {5: {"c": 0.5}}, fold=1)]
    kept, left_out = same_patients(runs)
    assert left_out == 2, "b, of validation and of test"
    assert all(set(p.test) == ({"a"} if r.fold == 0 else {"c"}) for r in kept for p in r.points)
    assert same_patients([replace(r) for r in runs[:1]])[1] == 0
