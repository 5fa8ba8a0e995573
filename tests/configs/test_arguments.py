"""Lists on the command line, as people write them."""

from __future__ import annotations

import pytest

from configs.arguments import spread


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("compare c.toml --query a b --seeds 0 1 2", "compare c.toml --query a --query b --seeds 0 --seeds 1 --seeds 2"),
        ("compare c.toml --query a --query b", "compare c.toml --query a --query b"),
        ("compare --seeds 0 1 --out x c.toml", "compare --seeds 0 --seeds 1 --out x c.toml"),
        ("compare c.toml --query", "compare c.toml --query"),
        ("simulate c.toml --query a b", "simulate c.toml --query a b"),
        ("", ""),
    ],
)
def test_each_value_of_a_list_gets_its_name(given: str, expected: str) -> None:
    assert spread(given.split()) == expected.split()
