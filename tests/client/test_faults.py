"""Any exception becomes one code of the fixed list, by its class alone."""

from __future__ import annotations

import importlib
import sqlite3

import pytest
import sqlalchemy.exc

from client.faults import CODE_OF_TYPE, SiteFault, code_of
from client.formats.image import FormatError
from configs.files import FolderInUse, StorageFault
from strategies.wire import CODES


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SiteFault("nothing-labelled", "no label yet"), "nothing-labelled"),
        (FormatError("a.dcm is no image"), "bad-data"),
        (StorageFault(28, "the disk is full"), "storage"),
        (FolderInUse("in use"), "storage"),
        (PermissionError(13, "denied", "/data/x"), "storage"),
        (sqlite3.OperationalError("database is locked"), "storage"),
        (sqlalchemy.exc.OperationalError("select", {}, Exception("disk I/O")), "storage"),
        (FloatingPointError("NaN"), "not-finite"),
        (ZeroDivisionError("x"), "internal"),
        (ValueError("x"), "internal"),
        (KeyError("patient"), "internal"),
        (ExceptionGroup("many", [OSError()]), "internal"),
        (type("Odd", (BaseException,), {})(), "internal"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_each_exception_has_its_code(error: BaseException, code: str) -> None:
    assert code_of(error) == code


def test_the_table_names_classes_that_exist_and_codes_that_may_leave() -> None:
    for name, code in CODE_OF_TYPE.items():
        module, _, cls = name.rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), cls), BaseException), name
        assert code in CODES


def test_the_nearest_class_decides() -> None:
    class Both(FloatingPointError, OSError):
        """Inherits from two classes of the table."""

    assert code_of(Both()) == "not-finite"


def test_a_site_fault_with_another_code_is_our_slip() -> None:
    with pytest.raises(ValueError, match=r"MEIER.*bad-data"):
        SiteFault("MEIER", "x")


@pytest.mark.parametrize("smuggled", ["MEIER", None, ["bad-data"], b"bad-data"])
def test_a_code_that_was_assigned_later_does_not_get_out(smuggled: object) -> None:
    fault = SiteFault("bad-data", "x")
    fault.code = smuggled  # type: ignore[assignment]
    assert code_of(fault) == "internal"


def test_the_code_is_the_lists_own_string() -> None:
    class Tagged(str):
        """Equal to a code, with something more on it."""

    fault = SiteFault(Tagged("bad-data"), "x")
    assert type(code_of(fault)) is str
