"""The pool adds up, and what was there once is not gone; each way of breaking that stops the site and names a case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text
from store_support import choices, filled

from client.faults import SiteFault
from client.store import Store


def asked(path: Path) -> Store:
    """A site that adds up: two of its cases were requested, and the second is labelled."""
    store = filled(path)
    first, second, *_ = [case.id for case in store.cases("unlabelled")]
    store.request("run", 0, cases=2, choices=choices(first, second), tick=1)
    store.add_label(second, np.ones((2, 3), np.uint8), run="run", cycle=0, tick=1, annotator="oracle")
    store.check_conserved()
    return store


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE cases SET state = 'unlabelled' WHERE state = 'test'", r"case q\.h\.0000 is unlabelled, .* of role test"),
        ("UPDATE cases SET state = 'test' WHERE id = 'p1.i1.0002'", r"case p1\.i1\.0002 is test, .* of role pool"),
        ("UPDATE images SET role = 'validation' WHERE id = 'h'", r"case q\.h\.0000 is test, .* of role validation"),
        (
            "UPDATE labels SET \"case\" = (SELECT id FROM cases WHERE state = 'requested')",
            r"case p0\.i0\.0000 is requested, has a label",
        ),
        ("UPDATE requests SET \"case\" = 'p1.i1.0002' WHERE \"case\" = 'p0.i0.0000'", r"is requested, .* was not requested"),
        ("DELETE FROM cases WHERE state = 'test'", "slices of all images"),
        ("UPDATE cases SET state = 'labelled' WHERE state = 'requested'", "labels stored"),
        ("UPDATE cases SET state = 'unlabelled' WHERE state = 'requested'", "requests made"),
    ],
)
def test_a_pool_that_does_not_add_up_is_found(tmp_path: Path, statement: str, told: str) -> None:
    store = asked(tmp_path / "site.db")
    with store._engine.begin() as connection:
        connection.execute(text(statement))
    with pytest.raises(SiteFault, match=told):
        store.check_conserved()


OF_A_PATIENT = "\"case\" IN (SELECT id FROM cases WHERE patient = 'p0')"


@pytest.mark.parametrize(
    ("statements", "told"),
    [
        (
            [
                f"DELETE FROM labels WHERE {OF_A_PATIENT}",
                f"DELETE FROM requests WHERE {OF_A_PATIENT}",
                "DELETE FROM cases WHERE patient = 'p0'",
                "DELETE FROM images WHERE patient = 'p0'",
            ],
            "3 images were stored, and 2 are left",
        ),
        (
            ["DELETE FROM cases WHERE id = 'p1.i1.0002'", "UPDATE images SET slices = 2 WHERE id = 'i1'"],
            "7 cases were stored, and 6 are left",
        ),
        (
            [
                f"DELETE FROM labels WHERE {OF_A_PATIENT}",
                f"DELETE FROM requests WHERE {OF_A_PATIENT}",
                "UPDATE cases SET state = 'unlabelled' WHERE patient = 'p0'",
            ],
            "2 requests were stored, and 0 are left",
        ),
        (
            ["DELETE FROM labels", "UPDATE cases SET state = 'requested' WHERE state = 'labelled'"],
            "1 labels were stored, and 0 are left",
        ),
        (
            ["UPDATE cases SET state = 'skipped' WHERE state = 'unlabelled'"],
            r"case p0\.i0\.0002 is skipped, and nothing says why",
        ),
    ],
    ids=["an image with all that speaks of it", "a slice", "a request and its label", "a label", "cases skipped for no reason"],
)
@pytest.mark.parametrize("before", [True, False], ids=["kept", "of a run that began before"])
def test_what_is_gone_is_missed_though_the_rest_adds_up(
    tmp_path: Path, statements: list[str], told: str, *, before: bool
) -> None:
    store = asked(tmp_path / "site.db")
    with store._engine.begin() as connection:
        if not before:
            connection.execute(text("DELETE FROM meta WHERE key LIKE 'kept %'"))
        for statement in statements:
            connection.execute(text(statement))
    if before or "skipped" in told:
        with pytest.raises(SiteFault, match=told):
            store.check_conserved()
        with pytest.raises(SiteFault, match=told):
            Store.at(tmp_path / "site.db").check_conserved()
    else:
        store.check_conserved()  # nobody knows, and from now on this is what there is
