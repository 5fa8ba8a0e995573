"""What must always hold of a site's database: the pool adds up, and nothing that was there is gone.

A violation stops the site, since labels that went missing, or came in unasked, would be trained on or paid for unseen.
"""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from client.faults import SiteFault
from client.tables import CaseTable, ImageTable, LabelTable, MetaTable, RequestTable

KEPT = "kept"
"""How many rows of a table were there at the last check stands under this and the table's name."""

HELD_OUT = ("validation", "test")
"""Roles of images that are states of their cases too; those of the role `pool` have the others."""


def check(session: Session) -> None:
    """Every case has one state, which fits its image's role, its request and its label; nothing is gone.

    Case by case, beside the counts: two that are wrong in opposite ways leave every count as it was. What was there at an
    earlier check is kept as a number, since what is lost together with all that speaks of it leaves a smaller pool that adds
    up; a database of before these were kept begins with what it holds.

    Raises:
        SiteFault: with code `invariant-broken`, the numbers that disagree and a case that they disagree about.
    """
    slices = int(session.scalar(select(func.coalesce(func.sum(ImageTable.slices), 0))) or 0)
    cases = int(session.scalar(select(func.count()).select_from(CaseTable)) or 0)
    by_state = dict(session.execute(select(CaseTable.state, func.count()).group_by(CaseTable.state)).tuples().all())
    labels = int(session.scalar(select(func.count()).select_from(LabelTable)) or 0)
    requests = int(session.scalar(select(func.count()).select_from(RequestTable)) or 0)
    asked = by_state.get("requested", 0) + by_state.get("labelled", 0)
    for what, left, right in (
        ("slices of all images and cases", slices, cases),
        ("labels stored and cases labelled", labels, by_state.get("labelled", 0)),
        ("requests made and cases requested or labelled", requests, asked),
    ):
        if left != right:
            told = f"the pool does not add up: {what} are {left} and {right}{_at_odds(session)}"
            raise SiteFault("invariant-broken", told)
    if odd := _at_odds(session):
        raise SiteFault("invariant-broken", f"the pool does not add up{odd}")
    _none_lost(session)


def _at_odds(session: Session) -> str:
    """Names the first case whose state says something else than its image, or the tables of labels and requests.

    Empty where there is none; a lost case has no name.
    """
    found = session.execute(select(CaseTable.id, CaseTable.state, ImageTable.role).join(ImageTable)).tuples().all()
    state_of = {case: state for case, state, _ in found}
    labelled, asked = (set(session.scalars(select(table.case))) for table in (LabelTable, RequestTable))
    for case in sorted({*state_of, *labelled, *asked}):
        state = state_of.get(case, "unknown")
        if (state == "labelled") != (case in labelled) or (state in ("requested", "labelled")) != (case in asked):
            return f"; case {case} is {state}, {'has a' if case in labelled else 'has no'} label, and was " + (
                "requested" if case in asked else "not requested"
            )
    unexplained = session.scalar(select(func.min(CaseTable.id)).where(CaseTable.state == "skipped", CaseTable.reason == ""))
    if unexplained is not None:
        return f"; case {unexplained} is skipped, and nothing says why"
    for case, state, role in sorted(found):
        if state != role and (role != "pool" or state in HELD_OUT):
            return f"; case {case} is {state}, and its image is of role {role}"
    return ""


def _none_lost(session: Session) -> None:
    """Compares what is stored with what was there at the last check, and remembers it.

    Raises:
        SiteFault: with code `invariant-broken`: of images, cases, requests or labels there are fewer.
    """
    for table in (ImageTable, CaseTable, RequestTable, LabelTable):
        now = int(session.scalar(select(func.count()).select_from(table)) or 0)
        kept = session.get(MetaTable, key := f"{KEPT} {table.__tablename__}")
        if kept is None:
            session.add(MetaTable(key=key, value=str(now)))
        elif now < int(kept.value):
            told = f"the pool has lost what it held: {kept.value} {table.__tablename__} were stored, and {now} are left"
            raise SiteFault("invariant-broken", told)
        elif now > int(kept.value):
            kept.value = str(now)
