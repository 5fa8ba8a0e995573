"""What compare.html says of records that are small enough to judge by eye."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import client.app
from configs.load import load
from simulation.compare.arms import ALL_LABELS, TWIN, arms_of
from simulation.compare.page import write_page
from simulation.compare.record import Point, Ran, read
from simulation.compare.run import compare
from simulation.run import show_curve


@pytest.fixture
def page(tiny_config: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """The page of arms whose Dice, of validation and of test patients alike, is flat; with some overrides and seeds."""
    config = tiny_config()

    def write(dice: Mapping[str, float], *, seeds: int = 3, folds: int = 0) -> str:
        overrides = [f"split.folds={folds}"] if folds else []
        arms = arms_of(config, overrides, [arm for arm in dice if arm not in ("random", "random_fg", TWIN)])
        runs = [
            Ran(arm, seed, tuple(flat(labels, level + 0.001 * seed * n, fold=fold) for labels in (8, 16)), seconds=1.0, fold=fold)
            for n, (arm, level) in enumerate(dice.items())
            for seed in range(seeds)
            for fold in range(max(1, folds))
        ]
        write_page(tmp_path, load(config, overrides), arms, runs, seeds=seeds, command="wardround compare")
        return (tmp_path / "compare.html").read_text()

    return write


def flat(labels: int, dice: float, *, fold: int) -> Point:
    patients = {f"site_{site}/p{fold}{n}": dice + 0.01 * n for site, many in (("a", 3), ("b", 1)) for n in range(many)}
    return Point(labels, float(labels), labels / 100, patients, patients, dice, 100)


def test_the_strategy_to_choose_is_ahead_of_chance_by_validation(page: Callable[..., str]) -> None:
    told = page({"random": 0.5, "random_fg": 0.6, "entropy": 0.7, "margin": 0.65})
    assert "By validation patients entropy is the strategy to choose" in told
    assert "entropy is better than random_fg." in told


def test_none_is_recommended_where_chance_is_ahead(page: Callable[..., str]) -> None:
    told = page({"random": 0.5, "random_fg": 0.7, "entropy": 0.6})
    assert "no strategy is ahead of random_fg; the best of those compared is entropy" in told
    assert "to choose." not in told.split("</header>")[0]


def test_a_head_is_no_merit_of_the_strategy_that_needs_it(page: Callable[..., str]) -> None:
    """feal has the highest Dice of the strategies, and chance with its head a higher one."""
    told = page({"random": 0.5, "random_fg": 0.5, "feal": 0.7, "entropy": 0.55, TWIN: 0.75})
    assert "By validation patients entropy is the strategy to choose" in told
    assert f"feal: against {TWIN}, which has the same head." in told


def test_faults_of_sites_are_told(tiny_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that can't score asks by chance; where one tells no Dice the run does not count, as it has other patients."""
    config = tiny_config(cycles=2, rounds_per_cycle=1, local_steps=1)
    assess, dice = vars(client.app)["score"], vars(client.app)["evaluate"]

    def fails(site: Any, plan: Any, strategy: Any, *args: Any, **more: Any) -> Any:
        if site.name == "south" and strategy.name == "entropy":
            raise OSError("the disk is away")
        return assess(site, plan, strategy, *args, **more)

    def tells_none(site: Any, *args: Any, **more: Any) -> Any:
        if site.name == "west" and "random_fg-seed0" in str(site.workspace):
            raise OSError("the disk is away")
        return dice(site, *args, **more)

    monkeypatch.setattr("client.app.score", fails)
    monkeypatch.setattr("client.app.evaluate", tells_none)
    folder = compare(config, [], queries=["entropy"], seeds=[0], out=tmp_path / "compare")
    told = {name: read(folder / "runs" / f"{name}-seed0" / "record.json") for name in ("entropy", "random_fg", "random")}
    assert {name: ran.refused for name, ran in told.items() if ran} == {"entropy": 2, "random_fg": 2, "random": 0}
    away = {name: [list(point.unassessed) for point in ran.points] for name, ran in told.items() if ran}
    assert away == {"entropy": [[], []], "random_fg": [["west"], ["west"]], "random": [[], []]}
    page = (folder / "compare.html").read_text()
    assert "Sites had faults in 1 run (entropy, seed 0)" in page
    assert "1 run left out, since a site told no Dice in some cycle, because of a fault: random_fg, seed 0 (west)" in page
    faults = "Faults of sites: south at assess in cycle 1 (storage), south at assess in cycle 2 (storage)."
    assert faults in on_console(folder / "runs" / "entropy-seed0" / "all")
    assert "Faults" not in on_console(folder / "runs" / "random-seed0" / "all")


def test_where_nobody_held_out_has_a_dice_the_page_says_so(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    config = tiny_config()
    point = flat(8, 0.5, fold=0)
    for lacking, told in (
        (replace(point, test={}), "there is no test patient"),
        (replace(point, validation={}), "there is no validation patient"),
        (replace(point, test={}, validation={}), "there is no validation and no test patient"),
    ):
        runs = [Ran("random", 0, (point,), seconds=1.0), Ran("random_fg", 0, (lacking,), seconds=1.0)]
        arms = arms_of(config, [], [])
        write_page(tmp_path, load(config, []), arms, runs, seeds=1, command="wardround compare")
        assert told in (tmp_path / "compare.html").read_text()


def on_console(folder: Path) -> str:
    """What stands beneath a run's learning curve."""
    text = io.StringIO()
    show_curve(folder, Console(file=text, width=200))
    return text.getvalue()


def test_budgets_that_leave_nothing_to_choose_are_told(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    """All is annotated in the second cycle of one of three arms; both randoms chose alike."""
    config = tiny_config()
    points = [flat(labels, 0.5, fold=0) for labels in (8, 16)]
    whole = [points[0], replace(points[1], foreground=1.0)]
    runs = [Ran(arm, 0, tuple(points), seconds=1.0) for arm in ("random", "random_fg")]
    write_page(
        tmp_path,
        load(config, []),
        arms_of(config, [], ["entropy"]),
        [*runs, Ran("entropy", 0, tuple(whole), seconds=1.0), Ran(ALL_LABELS, 0, tuple(whole), seconds=1.0)],
        seeds=1,
        command="wardround compare",
    )
    told = (tmp_path / "compare.html").read_text()
    assert "In 1 run everything is annotated from cycle 2 on, where there is nothing left to choose" in told
    assert "random and random_fg chose the same in every run" in told


def test_what_the_numbers_are_over_is_told(page: Callable[..., str]) -> None:
    told = page({"random": 0.5, "random_fg": 0.6, "entropy": 0.7}, seeds=1)
    assert "<dd>8 to 16 labels</dd>" in told
    assert "<dd>4, 3 of them at site_a</dd>" in told
    assert "Intervals are those over patients alone" in told
    assert "paired by seed and test patient" in told
    folds = page({"random": 0.5, "random_fg": 0.6, "entropy": 0.7}, seeds=1, folds=3)
    assert "paired by fold" in folds
    assert "bootstrapped" not in folds
    assert "Nadeau and Bengio" in folds
    assert "Intervals are those over patients alone" not in folds
