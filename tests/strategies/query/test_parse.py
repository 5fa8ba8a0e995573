"""Names of strategies: what each needs, and what a wrong one is told."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from strategies import query
from strategies.query import BEFORE_TRAINING, STRATEGIES, query_names
from strategies.query.parse import parse_query
from strategies.query.strategy import Model, Seen
from strategies.records import Scores


def test_every_name_parses_to_itself() -> None:
    for name in query_names():
        assert parse_query(name).name == name


def test_both_randoms_come_first() -> None:
    assert list(STRATEGIES)[:2] == ["random", "random_fg"]


@pytest.mark.parametrize(
    ("name", "passes", "columns"),
    [
        ("random_fg", 1, {"foreground"}),
        ("entropy", 1, {"values"}),
        ("entropy+power", 1, {"values"}),
        ("bald", 5, {"values"}),
        ("vote_entropy+stochastic", 5, {"values"}),
        ("entropy+balanced", 1, {"values", "predicted_pixels"}),
        ("coreset", 1, {"features"}),
        ("badge+cap", 1, {"features"}),
        ("clasp_pe", 1, {"values", "by_class"}),
        ("feal", 1, {"values", "features"}),
        ("logo", 1, {"values", "features"}),
        ("kafal", 1, {"values"}),
        ("typiclust", 1, {"features"}),
        ("probcover", 1, {"features"}),
    ],
)
def test_what_is_seen_becomes_what_is_chosen_by(name: str, passes: int, columns: set[str]) -> None:
    strategy = parse_query(name, passes=5)
    assert strategy.passes == passes
    assert strategy.look is not None
    generator = torch.Generator().manual_seed(0)
    models: tuple[Model, ...] = ("global", "local", "local_only")
    seen = Seen(
        inside=torch.ones(3, 8, 8, dtype=torch.bool),
        logits={model: torch.rand(passes, 3, 4, 8, 8, generator=generator) for model in models},
        features={model: torch.randn(3, 6, generator=generator) for model in models},
        taken={model: torch.randn(3, 2, 8, 8, generator=generator) for model in models},
        labelled_pixels=(100.0, 5.0, 2.0, 0.0),
        embedding=torch.randn(3, 7, generator=generator),
    )
    found = strategy.finish(strategy.look(seen))
    assert set(found) == columns
    scores = Scores(["a", "b", "c"], ["p", "p", "q"], **found)
    assert len(strategy.choose(scores, 2, np.random.default_rng(0)).choices) == 2


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_table_says_what_the_strategy_asks_for(name: str) -> None:
    entry, strategy = STRATEGIES[name], parse_query(name)
    assert strategy.name == name
    assert entry.scored == bool(strategy.why)
    assert ("model" in entry.needs) == strategy.needs_model
    assert ("dropout" in entry.needs) == (strategy.passes > 1)
    assert ("local model" in entry.needs) == ("local" in strategy.models)
    assert ("training alone" in entry.needs) == ("local_only" in strategy.models)
    assert ("evidential head" in entry.needs) == strategy.evidential
    assert ("embeddings" in entry.needs) == strategy.embeds
    assert entry.source
    assert entry.rule


def test_before_training_no_model_is_asked() -> None:
    assert {name for name in STRATEGIES if not parse_query(name).needs_model} == set(BEFORE_TRAINING)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("entorpy", "did you mean 'entropy'"),
        ("random-fg", "did you mean 'random_fg'"),
        ("bald+powr", r"did you mean 'bald\+power'"),
        ("random+power", "power chooses by a score, and random gives its cases none"),
        ("coreset+stochastic", "stochastic chooses by a score, and coreset gives its cases none"),
        ("entropy+power+stochastic", "unknown query strategy"),
        ("entropy,badge", "names stand apart by spaces, not commas"),
        ("", "unknown query strategy"),
        ("+power", "unknown query strategy"),
    ],
)
def test_unknown_names_are_told_the_nearest_and_the_list(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_query(text)
    assert ", ".join(STRATEGIES) in str(caught.value)


def test_the_cap_comes_last() -> None:
    with pytest.raises(ValueError, match=r"\+cap comes last, as in 'entropy\+power\+cap'"):
        parse_query("entropy+cap+power")


def test_one_pass_each_compares_models_without_dropout() -> None:
    assert parse_query("bald", passes=1).passes == 1


@pytest.mark.parametrize("passes", [0, -3])
def test_too_few_passes_are_refused(passes: int) -> None:
    with pytest.raises(ValueError, match=r"query\.passes"):
        parse_query("bald", passes=passes)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import nothing_of_that_name", r"can't be imported: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("1 / 0", r"can't be imported: ZeroDivisionError"),
        ("OTHER = 1", r"must hold MY_OWN = Strategy\(\.\.\.\); it holds none"),
        ("MY_OWN = 1", r"must hold MY_OWN = Strategy\(\.\.\.\); it holds int"),
    ],
)
def test_a_file_that_holds_no_strategy_is_told(text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of somebody's own strategy: in the table, and not quite right yet."""
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setattr(query, "__path__", [*query.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "strategies.query.mine", raising=False)
    monkeypatch.setitem(query.STRATEGIES, "my-own", query.Entry("mine", "nobody", "none"))
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match=rf"strategies/query/mine\.py, where .* my-own is, {told}"):
        parse_query("my-own+cap")
