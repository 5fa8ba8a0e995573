"""Configurations from TOML and back: `load` tells all faults of a file at once, `dump` writes what `load` reads.

Values in double quotes may hold `${NAME}`: the environment variable of that name, so that data roots differ between
machines and configurations do not. `--set train.local_steps=5` overrides one key.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import tomlkit
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from configs.faults import ConfigError, Fault, Key, dotted, faults_of, nearest, shown, tables_of
from configs.schema import Run, Settings, Site

__all__ = ["ConfigError", "Fault", "Row", "dump", "explain", "load", "load_site", "shipped"]

AnySettings = TypeVar("AnySettings", bound=Settings)

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_STAND_IN = {"classes": {"class": 1}}
"""Fills a missing required key while looking for further faults; never part of a result."""


def load(path: Path, overrides: Sequence[str] = ()) -> Run:
    """The settings of a run.

    Args:
        path: a TOML file.
        overrides: `key=value` with a dotted key; the value is TOML, a bare word is text.

    Raises:
        ConfigError: with every fault of the file and the overrides.
    """
    return _load(Run, path, overrides)


def load_site(path: Path) -> Site:
    """The settings of one hospital, from `site.toml` of its workspace.

    Raises:
        ConfigError: with every fault of the file. The value of `key` is never part of the message.
    """
    return _load(Site, path, ())


def dump(settings: Settings) -> str:
    """Settings as TOML that loads to an equal value; keys that are None are left out."""
    return tomlkit.dumps(settings.model_dump(mode="json", exclude_none=True))


def shipped() -> list[Path]:
    """The configurations that come with wardround."""
    return sorted(Path(__file__).parent.rglob("*.toml"))


@dataclass(frozen=True)
class Row:
    """One key, explained.

    Attributes:
        key: dotted, e.g. `train.local_steps`.
        type: what values it takes, in words.
        default: as written in TOML; "required" where there is none, "none" where the key may be left out.
        description: what it does.
    """

    key: str
    type: str
    default: str
    description: str


def explain(model: type[Settings] = Run) -> list[Row]:
    """All keys of a configuration in the order of the schema, for `wardround check --explain`."""
    return [
        Row(
            key=dotted((*table, name)),
            type=_kind(field.annotation, field.metadata),
            default=_default(field),
            description=field.description or "",
        )
        for table, fields in tables_of(model).items()
        for name, field in fields.items()
        if (*table, name) not in tables_of(model)
    ]


# ------------------------------------------------------------------------------------------------------------- loading


def _load(model: type[AnySettings], path: Path, overrides: Sequence[str]) -> AnySettings:
    written = _read(path)
    faults, overridden = _override(written, overrides)
    data = _resolve(written, (), faults)
    faults = [_marked(fault, overridden) for fault in faults]
    try:
        settings = _validate(model, data)
    except ValidationError as error:
        faults = _merged(faults, faults_of(error.errors(), data=data, tables=tables_of(model), overridden=overridden))
        faults = _merged(faults, _deeper(model, data, faults, overridden))
    if faults:
        raise ConfigError(str(path), faults)
    return settings


def _validate(model: type[AnySettings], data: Mapping[str, Any]) -> AnySettings:
    # Strict, through JSON: "3" is not a number and true is not 1, but a list is a tuple and 2 is a real number.
    return model.model_validate_json(json.dumps(data, default=str), strict=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        names = [_relative(config) for config in shipped()]
        close = nearest(str(path), names)
        hint = f"; did you mean {close}?" if close else ""
        have = f". Shipped configurations: {', '.join(names)}" if names else ""
        raise ConfigError(str(path), [Fault((), f"there is no such file{hint}{have}")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [Fault((), f"is not UTF-8 text (byte {error.start}): save it as UTF-8")]) from None
    except OSError as error:
        raise ConfigError(str(path), [Fault((), f"cannot be read: {error.strerror}")]) from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), [Fault((), _syntax(str(error), text))]) from None


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _syntax(message: str, text: str) -> str:
    found = re.search(r"\(at line (\d+), column (\d+)\)", message)
    if not found:
        return f"is not valid TOML: {message}"
    line, column = int(found[1]), int(found[2])
    what = message[: found.start()].strip()
    lines = text.splitlines()
    quoted = f": {lines[line - 1].strip()[:80]}" if line <= len(lines) else ""
    return f"is not valid TOML at line {line}, column {column} ({what[:1].lower()}{what[1:]}){quoted}"


def _override(data: dict[str, Any], overrides: Sequence[str]) -> tuple[list[Fault], frozenset[Key]]:
    """Put overrides into `data` (ours, freshly read); the faults, and the keys that were set."""
    faults: list[Fault] = []
    keys: set[Key] = set()
    for text in overrides:
        name, equals, value = text.partition("=")
        key = _parse_key(name)
        if not equals or not key:
            faults.append(Fault((), f"--set {text}: write it as --set key=value, e.g. --set train.local_steps=5"))
            continue
        try:
            parsed = _parse_value(value)
        except ValueError as error:
            faults.append(Fault(key, f"is not a TOML value: {error}", value.strip(), True))
            continue
        table: Any = data
        for depth, part in enumerate(key[:-1]):
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                problem = f"{dotted(key[: depth + 1])} is a single value, not a table"
                faults.append(Fault(key, problem, value.strip(), True))
                break
        else:
            table[key[-1]] = parsed
            keys.add(key)
    return faults, frozenset(keys)


def _parse_key(text: str) -> tuple[str, ...]:
    """A dotted key, parts in quotes where they need them; empty when it is not one."""
    try:
        table: Any = tomllib.loads(f"{text.strip()} = 0") if "\n" not in text.strip() else {}
    except tomllib.TOMLDecodeError:
        return ()
    parts: list[str] = []
    while isinstance(table, dict) and len(table) == 1:
        part = next(iter(table))
        parts.append(part)
        table = table[part]
    return tuple(parts)


def _parse_value(text: str) -> Any:
    """A TOML value, or the text itself where it is a bare word.

    Raises:
        ValueError: it starts like a list, a table or a quoted text and is not one.
    """
    text = text.strip()
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text.startswith(("[", "{", '"', "'")):
            raise ValueError(str(error).partition(" (at ")[0]) from None
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def _resolve(value: Any, key: Key, faults: list[Fault]) -> Any:
    """A copy with environment variables filled in; values that TOML allows and no setting does become faults."""
    if isinstance(value, dict):
        return {name: _resolve(item, (*key, name), faults) for name, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, (*key, place), faults) for place, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        faults.append(Fault(key, "must be a finite number", str(value)))
    if isinstance(value, datetime.date | datetime.time):
        faults.append(Fault(key, "is a date or a time: put text in quotes", str(value)))
    if not isinstance(value, str):
        return value
    for variable in dict.fromkeys(_VARIABLE.findall(value)):
        if not os.environ.get(variable):
            faults.append(
                Fault(
                    key,
                    f"the environment variable {variable} is not set: point it at the folder that holds the data, "
                    f"e.g. export {variable}=/path/to/data",
                    shown(key, value),
                )
            )
    return _VARIABLE.sub(lambda found: os.environ.get(found[1]) or found[0], value)


def _deeper(model: type[Settings], data: dict[str, Any], faults: list[Fault], overridden: frozenset[Key]) -> list[Fault]:
    """Faults that only show once those already found are out of the way: pydantic checks a table as a whole only when
    each of its values is right. A cross-check that speaks of a key already at fault is left out: it judged a default.
    """
    tables = tables_of(model)
    blamed = {[part for part in fault.key if isinstance(part, str)][-1] for fault in faults if fault.key}
    found: list[Fault] = []
    keys = [fault.key for fault in faults if fault.key]
    while keys:
        data = _without(data, keys)
        try:
            _validate(model, data)
            break
        except ValidationError as error:
            errors = [detail for detail in error.errors() if detail["type"] == "value_error"]
        checks = faults_of(errors, data=data, tables=tables, overridden=overridden)
        found += [fault for fault in checks if not blamed & set(re.findall(r"\w+", fault.problem))]
        keys = [fault.key for fault in checks if fault.key]
    return found


def _without(data: Mapping[str, Any], keys: Sequence[Key]) -> dict[str, Any]:
    """A deep copy without `keys`; a required key gets its stand-in. An item of a list takes the whole list with it."""
    copy: dict[str, Any] = json.loads(json.dumps(data, default=str))
    for key in keys:
        names = [part for part in key if isinstance(part, str)]
        table: Any = copy
        for name in names[:-1]:
            table = table.get(name, {}) if isinstance(table, dict) else {}
        if isinstance(table, dict):
            table.pop(names[-1], None)
    return copy | {name: value for name, value in _STAND_IN.items() if not copy.get(name)}


def _merged(first: list[Fault], second: list[Fault]) -> list[Fault]:
    """Both lists without saying twice that a key is wrong; a table may have several faults."""
    known = {fault.key for fault in first if fault.given is not None}
    return first + [fault for fault in second if fault.key not in known and fault not in first]


def _marked(fault: Fault, overridden: frozenset[Key]) -> Fault:
    from_set = fault.overridden or any(fault.key[: len(key)] == key for key in overridden)
    return Fault(fault.key, fault.problem, fault.given, from_set)


# ----------------------------------------------------------------------------------------------------------- explaining


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "none"}
_BOUNDS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"), ("multiple_of", "a multiple of"))


def _kind(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in words: `Annotated[int, Field(ge=1)]` is "whole number, at least 1"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [extra.metadata if isinstance(extra, FieldInfo) else [extra] for extra in arguments[1:]]
        return _kind(arguments[0], [*itertools.chain(*inner), *metadata])
    if origin is Literal:
        text = " | ".join(str(argument) for argument in arguments)
    elif origin in (Union, UnionType):
        text = " or ".join(_kind(argument) for argument in arguments if argument is not type(None))
    elif origin is list:
        text = f"list of {_kind(arguments[0])}"
    elif origin is tuple:
        text = f"[{', '.join(_kind(argument) for argument in arguments)}]"
    elif origin is dict:
        text = f"table: name = {_kind(arguments[1])}"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        text = "table"
    else:
        text = _NAMES.get(annotation, str(annotation))
    bounds = [
        f"{word} {getattr(item, name):g}" for item in metadata for name, word in _BOUNDS if getattr(item, name, None) is not None
    ]
    return ", ".join([text, *bounds])
