"""Who imports whom, which foreign library comes in by which door, and configurations that load: walked, not trusted.

A violation is told as `file:line imports what`, with the rule that it breaks.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from configs.load import load

ROOT = Path(__file__).parent.parent
FOLDERS = ("configs", "strategies", "client", "server", "simulation")

MAY_IMPORT = {
    "configs": {"configs"},
    "strategies": {"strategies"},
    "client": {"client", "strategies", "configs"},
    "server": {"server", "strategies", "configs"},
    "simulation": {"simulation", "client", "server", "strategies", "configs"},
    "wardround": {"wardround", "simulation", "client", "server", "strategies", "configs"},
}
"""Folder to the folders that it may import. Server and client never see each other; strategies see nobody."""

TABLES = {"configs": {"strategies.semi", "strategies.query"}}
"""Folder to the tables of names that it may read besides. A table imports nothing, so that settings stay quick to check."""

DOORS = {
    "pydicom": r"client/formats/dicom\w*\.py",
    "highdicom": r"client/formats/dicom\w*\.py",
    "segment_anything": r"strategies/sam_parts\.py",
    "nibabel": r"client/formats/nifti\.py",
    "PIL": r"client/formats/picture\.py|server/report\w*\.py",
    "flwr": r"(client|server)/app\.py|server/(rounds|sites)\.py|client/(gate|allowed)\.py|strategies/(wire|aggregate)\.py"
    r"|simulation/(inline|cluster)\.py",
    "ray": r"simulation/cluster\.py",
    "sqlalchemy": r"client/(store|conserved|database|tables)\.py",
}
"""Foreign library to the files, as a pattern, that may import it."""

ONE_FILE = ("opacus",)
"""Foreign libraries that one file alone may import, whichever it is."""

KEPT_OUT_OF_STRATEGIES = {
    *("pathlib", "os", "io", "shutil", "tempfile", "glob", "fileinput", "sqlite3", "csv", "pickle", "shelve"),
    *("socket", "ssl", "http", "urllib", "ftplib", "smtplib", "asyncio", "subprocess", "multiprocessing"),
    *("requests", "httpx", "aiohttp", "urllib3", "grpc", "sqlalchemy", "safetensors", "filelock", "tomllib", "tomlkit"),
    *("pydantic", "typer", "rich", "matplotlib", "jinja2"),
}
"""No disk, no network, no configuration, no terminal: strategies are arrays and records in, arrays and records out."""

NO_STRATEGY = {"strategies/torchvision_ops.py": {"pathlib"}}
"""Files of the folder that are no strategy, and what they need: this one loads torchvision's own compiled operators."""


class Import(NamedTuple):
    file: str
    line: int
    module: str

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def imports_in(text: str, file: str) -> list[Import]:
    """Every import of a file, also those inside functions and by `importlib.import_module("…")`."""
    found = []
    for node in ast.walk(ast.parse(text, file)):
        if isinstance(node, ast.Import):
            found += [Import(file, node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import; write it from the root"
            found.append(Import(file, node.lineno, str(node.module)))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                found.append(Import(file, node.lineno, str(node.args[0].value)))
    return found


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def code() -> list[Import]:
    """All imports of the product, tests not included."""
    files = [*sources(*FOLDERS), ROOT / "wardround.py"]
    return [found for file in files for found in imports_in(file.read_text(), file.relative_to(ROOT).as_posix())]


def layer_of(file: str) -> str:
    return file.removesuffix(".py").partition("/")[0]


def layer_violations(imports: list[Import]) -> list[str]:
    return [
        f"{found}: {layer_of(found.file)} may import {', '.join(sorted(MAY_IMPORT[layer_of(found.file)]))}"
        for found in imports
        if found.top in MAY_IMPORT
        and found.top not in MAY_IMPORT[layer_of(found.file)]
        and found.module not in TABLES.get(layer_of(found.file), set())
    ]


def door_violations(imports: list[Import]) -> list[str]:
    wrong = [
        f"{found}: only {DOORS[found.top]} may"
        for found in imports
        if found.top in DOORS and not re.fullmatch(DOORS[found.top], found.file)
    ]
    for library in ONE_FILE:
        files = sorted({found.file for found in imports if found.top == library})
        wrong += [f"{library} is imported by {', '.join(files)}: one file alone may"] if len(files) > 1 else []
    return wrong


def strategy_violations(imports: list[Import]) -> list[str]:
    return [
        f"{found}: strategies are pure"
        for found in imports
        if layer_of(found.file) == "strategies" and found.top in KEPT_OUT_OF_STRATEGIES - NO_STRATEGY.get(found.file, set())
    ]


def told(violations: list[str]) -> str:
    return "\n" + "\n".join(violations)


def test_who_imports_whom() -> None:
    assert not (wrong := layer_violations(code())), told(wrong)


def test_foreign_libraries_have_few_doors() -> None:
    assert not (wrong := door_violations(code())), told(wrong)


def test_strategies_touch_no_disk_no_network_and_no_configuration() -> None:
    assert not (wrong := strategy_violations(code())), told(wrong)


def test_nothing_imports_the_tests() -> None:
    everything = [*sources(*FOLDERS, "benchmarks", "tests"), ROOT / "wardround.py"]
    found = [i for file in everything for i in imports_in(file.read_text(), file.relative_to(ROOT).as_posix())]
    wrong = [str(one) for one in found if one.top in ("tests", "benchmarks", "conftest")]
    assert not wrong, told(wrong)


def test_every_folder_of_code_is_a_package() -> None:
    bare = {file.parent.relative_to(ROOT).as_posix() for file in sources(*FOLDERS) if not (file.parent / "__init__.py").exists()}
    assert not bare, f"without __init__.py: {sorted(bare)}"


def test_tests_have_the_shape_of_the_code() -> None:
    strays = [
        folder.relative_to(ROOT).as_posix()
        for folder in sorted((ROOT / "tests").rglob("*"))
        if folder.is_dir() and any(folder.glob("test_*.py")) and not (ROOT / folder.relative_to(ROOT / "tests")).is_dir()
    ]
    assert not strays, f"no folder of code has these tests: {strays}"
    packages = [file.relative_to(ROOT).as_posix() for file in (ROOT / "tests").rglob("__init__.py")]
    assert not packages, "tests are not packages: pytest imports them by path"


@pytest.mark.parametrize(
    ("file", "text", "rule"),
    [
        ("server/rounds.py", "from client.site import Site", layer_violations),
        ("client/site.py", "import server.history", layer_violations),
        ("strategies/wire.py", "def f():\n    from configs.schema import Run", layer_violations),
        ("client/app.py", "import importlib\nimportlib.import_module('simulation.inline')", layer_violations),
        ("configs/load.py", "import strategies.records", layer_violations),
        ("configs/schema.py", "from strategies.semi.batch import Batch", layer_violations),
        ("client/site.py", "import pydicom.uid", door_violations),
        ("strategies/networks.py", "from segment_anything.modeling import Sam", door_violations),
        ("client/train.py", "from flwr.app import Message", door_violations),
        ("strategies/metrics.py", "import os.path", strategy_violations),
        ("strategies/metrics.py", "from requests import get", strategy_violations),
    ],
)
def test_the_walk_finds_what_it_is_for(file: str, text: str, rule: object) -> None:
    assert callable(rule)
    assert len(rule(imports_in(text, file))) == 1


def test_the_walk_lets_through_what_is_right() -> None:
    fine = [
        *imports_in("from client.site import Site\nfrom server.app import coordinate", "simulation/run.py"),
        *imports_in("import pydicom", "client/formats/dicom_seg.py"),
        *imports_in("from strategies.records import Case\nimport sqlalchemy", "client/store.py"),
        *imports_in("from strategies.semi import FRAMEWORKS", "configs/schema.py"),
    ]
    assert not layer_violations(fine) + door_violations(fine) + strategy_violations(fine)
    two = [Import("client/train.py", 1, "opacus"), Import("client/dp.py", 1, "opacus.accountants")]
    assert len(door_violations(two)) == 1


# ------------------------------------------------------------------------------------------------------ configurations

CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_shipped_configurations_load_and_say_how_they_are_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARDROUND_DATA", str(tmp_path))
    run = load(path)
    assert run.data.format == "phantom" or run.data.root.startswith(str(tmp_path)), "data roots follow WARDROUND_DATA"
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    command = f"wardround simulate {path.relative_to(ROOT).as_posix()}"
    assert path.read_text().startswith("#"), "a configuration opens with a comment"
    assert command in comments[0] or "make " in comments[0], f"the first comment is the command that runs it: {command}"


def test_configurations_are_shipped() -> None:
    assert CONFIGS, "configs/ holds no configuration"
