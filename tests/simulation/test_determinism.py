"""The same configuration gives the same history and weights, whatever in it is random; another seed gives others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests_support import timeless

from simulation.run import simulate

Config = Callable[..., Path]

CHANCE = ("network.dropout=0.3", 'query.strategy="entropy+stochastic"')
SAM = ("sam.enabled=true", 'sam.adapt="decoder"', "sam.adapt_steps=1", "sam.min_iou=0.0", "sam.min_agreement=0.0")


@pytest.mark.parametrize(
    ("options", "weights"),
    [((), ["best", "final"]), ((*CHANCE, *SAM), ["best", "best_sam", "final", "final_sam"])],
    ids=["plain", "dropout, a choice by chance and a SAM that learns"],
)
def test_the_same_seed_twice_gives_the_same_history(
    tiny_config: Config, tmp_path: Path, options: Sequence[str], weights: list[str]
) -> None:
    config = tiny_config(rounds_per_cycle=1)
    one, two = (simulate(config, options, out=tmp_path / name) for name in ("one", "two"))
    assert timeless(one) == timeless(two)
    assert sorted(path.stem for path in (one / "weights").iterdir()) == weights
    for path in (one / "weights").iterdir():
        assert path.read_bytes() == (two / "weights" / path.name).read_bytes(), path.stem


def test_another_seed_gives_another_history(tiny_config: Config, tmp_path: Path) -> None:
    dice = []
    for seed in (3, 4):
        folder = simulate(tiny_config(seed=seed, cycles=1, rounds_per_cycle=1), out=tmp_path / str(seed))
        dice.append(next(event["sites"] for event in timeless(folder) if event["event"] == "assess"))
    assert dice[0] != dice[1]
