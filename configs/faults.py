"""What can be wrong with a configuration, said so that the reader knows what to change.

A fault is one line: the dotted key, the value given, what is wrong, and where it can be told the nearest valid name.
`ConfigError` carries all faults of a file at once.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

Key = tuple[str | int, ...]
Tables = dict[tuple[str, ...], dict[str, FieldInfo]]

SECRETS = frozenset({"key"})
"""Keys whose values are never shown: the hash key of a site."""

_MUST = {
    "missing": "is missing and has no default",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text, in quotes",
    "bool_type": "must be true or false",
    "list_type": "must be a list, e.g. [1, 2]",
    "tuple_type": "must be a list, e.g. [1, 2]",
    "dict_type": "must be a table",
    "model_type": "must be a table of settings, not a single value",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "string_too_short": "must have at least {min_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
}
"""Pydantic's error types in the words of a person who writes TOML; others keep pydantic's own sentence."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        key: where it is, e.g. `("train", "local_steps")`; empty where it concerns the whole file.
        problem: what is wrong, and what to do about it.
        given: the value as written, shortened; None where there is none to show.
        overridden: whether the value came from `--set`.
    """

    key: Key
    problem: str
    given: str | None = None
    overridden: bool = False

    def __str__(self) -> str:
        line = dotted(self.key)
        if self.given is not None:
            line += f" = {self.given}"
        if self.overridden:
            line += " (from --set)"
        return f"{line}: {self.problem}" if line else self.problem


class ConfigError(ValueError):
    """A configuration that cannot be used.

    Attributes:
        source: the file, as the user named it.
        faults: everything that is wrong with it.
    """

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        if len(self.faults) == 1 and not self.faults[0].key:
            text = f"{source}: {self.faults[0]}"
        else:
            count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
            text = "\n".join([f"{source} has {count}:", *(f"  {fault}" for fault in self.faults)])
        super().__init__(text)


def dotted(key: Key) -> str:
    """`("data", "phantom", "patients", 1)` as `data.phantom.patients[1]`; names that need quotes get them."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part, ensure_ascii=False)
            text += f".{name}" if text else name
    return text


def shown(key: Key, value: Any, *, longest: int = 60) -> str:
    """A value as a user would write it, cut at `longest` characters; secrets are replaced."""
    if key and key[-1] in SECRETS:
        return "(not shown)"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def tables_of(model: type[BaseModel], at: tuple[str, ...] = ()) -> Tables:
    """All tables of a settings model: path of the table to its keys; `()` is the top of the file."""
    tables: Tables = {at: dict(model.model_fields)}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            tables |= tables_of(kind, (*at, name))
    return tables


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The valid name most like `name`, or None where nothing is close."""
    close = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.6)
    return close[0] if close else None


def advice_on_unknown(key: Key, tables: Tables) -> str:
    """What to do about a key that does not exist: where it belongs, or the name that was probably meant."""
    *path, name = [str(part) for part in key]
    table = tuple(path)
    homes = sorted(path for path, keys in tables.items() if name in keys and path != table)
    if homes:
        top = "at the top of the file, above the first [table]"
        return f"unknown key: {name} belongs {' or '.join(f'in [{dotted(home)}]' if home else top for home in homes)}"
    here = list(tables.get(table, ()))
    if (close := nearest(name, here)) is not None:
        return f"unknown key: did you mean {dotted((*table, close))}?"
    everywhere = {leaf: path for path, keys in tables.items() for leaf in keys}
    if (close := nearest(name, list(everywhere))) is not None:
        return f"unknown key: did you mean {dotted((*everywhere[close], close))}?"
    return f"unknown key: valid here are {', '.join(here)}"


def faults_of(
    errors: Sequence[ErrorDetails], *, data: Mapping[str, Any], tables: Tables, overridden: frozenset[Key] = frozenset()
) -> list[Fault]:
    """Pydantic's errors as faults, one per key: the branches of a union are joined with "or".

    Args:
        errors: from `ValidationError.errors()`.
        data: what was validated; it tells keys from the tags pydantic puts in a location.
        overridden: keys that came from `--set`.
    """
    problems: dict[Key, list[str]] = {}
    for error in errors:
        key = _key_in(error["loc"], data)
        known = problems.setdefault(key, [])
        known += [problem for problem in _problems(error, key, tables) if problem not in known]
    faults = []
    for key, texts in problems.items():
        value = _value_at(key, data)
        single = not isinstance(value, Mapping) and value is not _ABSENT
        given = shown(key, value) if key and single else None
        # Several problems of one table are separate cross-checks; those of one value are the branches of a union.
        for text in [" or ".join([texts[0], *(t.removeprefix("must be ") for t in texts[1:])])] if single else texts:
            faults.append(Fault(key, text, given, any(key[: len(o)] == o for o in overridden)))
    return faults


_ABSENT = object()


def _problems(error: ErrorDetails, key: Key, tables: Tables) -> list[str]:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return [advice_on_unknown(key, tables)]
    if kind == "value_error":  # our own validators; each line is a fault of its own
        return str(context.get("error", error["msg"])).splitlines()
    if kind == "literal_error":
        options = [option.strip("' ") for option in re.split(r", | or ", context["expected"])]
        close = nearest(str(error["input"]), options)
        return [f"must be one of {', '.join(options)}" + (f"; did you mean {close}?" if close else "")]
    if kind in _MUST:
        return [_MUST[kind].format(**{name: _plain(value) for name, value in context.items()})]
    return [error["msg"][:1].lower() + error["msg"][1:]]


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _key_in(location: tuple[int | str, ...], data: Any) -> Key:
    """The part of a pydantic location that is in the data; one more for a key that is missing from a table."""
    key: Key = ()
    for part in location:
        if isinstance(data, Mapping):
            key = (*key, part)
            if part not in data:
                break
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            key, data = (*key, part), data[part]
        else:
            break
    return key


def _value_at(key: Key, data: Any) -> Any:
    for part in key:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return _ABSENT
    return data
