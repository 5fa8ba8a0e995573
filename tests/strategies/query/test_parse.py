"""Names of strategies: what each needs, and what a wrong one is told."""

from __future__ import annotations

import pytest
import torch

from strategies.query import STRATEGIES, parse_query, query_names


def test_every_name_parses_to_itself() -> None:
    for name in query_names():
        assert parse_query(name).name == name


def test_both_randoms_come_first() -> None:
    assert list(STRATEGIES)[:2] == ["random", "random_fg"]


@pytest.mark.parametrize(
    ("name", "passes", "pixel", "features", "foreground"),
    [
        ("random", 1, False, False, False),
        ("random_fg", 1, False, False, True),
        ("entropy", 1, True, False, False),
        ("entropy+power", 1, True, False, False),
        ("bald", 5, True, False, False),
        ("bald+stochastic", 5, True, False, False),
        ("coreset", 1, False, True, False),
    ],
)
def test_needs(name: str, passes: int, pixel: bool, features: bool, foreground: bool) -> None:
    strategy = parse_query(name, passes=5)
    assert strategy.passes == passes
    assert (strategy.pixel is not None, strategy.features, strategy.foreground) == (pixel, features, foreground)
    assert strategy.needs_model == (name != "random")


def test_maps_become_scores() -> None:
    strategy = parse_query("bald", passes=2)
    assert strategy.pixel is not None
    probabilities = torch.softmax(torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)), dim=2)
    maps = strategy.pixel(probabilities)
    assert strategy.reduce(maps).tolist() == pytest.approx(maps.mean(dim=(1, 2)).tolist())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("entorpy", "did you mean 'entropy'"),
        ("random-fg", "did you mean 'random_fg'"),
        ("bald+powr", r"did you mean 'bald\+power'"),
        ("random+power", "power chooses by a score, and random has none"),
        ("coreset+stochastic", "stochastic chooses by a score, and coreset has none"),
        ("entropy+power+stochastic", "unknown query strategy"),
        ("", "unknown query strategy"),
        ("+power", "unknown query strategy"),
    ],
)
def test_unknown_names_are_told_the_nearest_and_the_list(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_query(text)
    assert ", ".join(query_names()) in str(caught.value)


@pytest.mark.parametrize("passes", [1, 0, -3])
def test_too_few_passes_are_refused(passes: int) -> None:
    with pytest.raises(ValueError, match=r"query\.passes"):
        parse_query("bald", passes=passes)
