"""Lists on the command line as people write them: `--seeds 0 1 2`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LISTS = {"compare": ("--query", "--seeds")}
"""Command to its options that take several values after one name."""


def spread(arguments: Sequence[str]) -> list[str]:
    """Arguments with the name of a list repeated before each of its values, which is what the parser takes.

    A list ends at the next argument that begins with a hyphen.
    """
    if not arguments or arguments[0] not in LISTS:
        return list(arguments)
    return list(_spread(arguments, LISTS[arguments[0]]))


def _spread(arguments: Iterable[str], lists: Sequence[str]) -> Iterable[str]:
    name, first = "", False
    for argument in arguments:
        if argument in lists:
            name, first = argument, True
        elif argument.startswith("-"):
            name = ""
        elif name and not first:
            yield name
        yield argument
        first = argument in lists
