"""A comparison's records: read as they were written, and told apart by what they were run with."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import tomlkit

from configs.load import dump, load
from simulation.compare.record import Point, Ran, differences, read, settings_of, write


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read(tmp_path / "record.json") is None
    ran = Ran(
        "entropy", 3, (Point(4, 2.5, 0.1, {"s/p": 0.5}, {"s/q": 0.4}, 0.4, 99),), 12.5, fold=1, settings="x = 1", commit="c"
    )
    write(tmp_path / "record.json", ran)
    assert read(tmp_path / "record.json") == ran


def test_what_differs_is_named_and_where_data_lies_is_not(tiny_config: Callable[..., Path]) -> None:
    path = tiny_config()
    run = load(path)
    ran = Ran("random", 0, (), 0.0, settings=settings_of(run))
    assert run.data.root
    assert run.data.root not in ran.settings
    assert differences(ran, run) == []
    assert differences(ran, load(path, ["data.root=/elsewhere"])) == []
    assert differences(ran, load(path, ["network.dropout=0.3", "seed=7"])) == ["seed = 3", "network.dropout = 0.0"]


def test_a_record_from_before_a_key_existed_has_its_default(tiny_config: Callable[..., Path]) -> None:
    run = load(tiny_config())
    older = tomllib.loads(dump(run))
    del older["split"]["folds"]
    assert differences(Ran("random", 0, (), 0.0, settings=tomlkit.dumps(older)), run) == []
    older["split"]["gone"] = 1
    assert differences(Ran("random", 0, (), 0.0, settings=tomlkit.dumps(older)), run) != []


def test_the_order_of_classes_and_a_class_more_are_told(tiny_config: Callable[..., Path]) -> None:
    run = load(tiny_config())
    (first, one), (second, other) = run.classes.items()
    swapped = run.model_copy(update={"classes": {second: other, first: one}})
    fewer = run.model_copy(update={"classes": {first: one}})
    stored = Ran("random", 0, (), 0.0, settings=settings_of(run))
    assert differences(stored, swapped) == [f"the classes {first}, {second}"]
    assert differences(stored, fewer) == [f"classes.{second} = {other}", f"the classes {first}, {second}"]
    assert f"classes.{second} = null" in differences(Ran("random", 0, (), 0.0, settings=settings_of(fewer)), run)
