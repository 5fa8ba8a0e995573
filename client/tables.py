"""The tables of a site's database (`store.py` reads and writes them)."""

from __future__ import annotations

from sqlalchemy import ForeignKey, LargeBinary, UniqueConstraint, inspect, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

SCHEMA = 2

OLDER = ("1",)
"""Schemas that `bring_up` knows the way from: what is new since then are tables, and columns that may be empty."""


class Base(DeclarativeBase):
    pass


class MetaTable(Base):
    __tablename__ = "meta"
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class ImageTable(Base):
    __tablename__ = "images"
    id: Mapped[str] = mapped_column(primary_key=True)
    patient: Mapped[str] = mapped_column(index=True)
    path: Mapped[str]
    role: Mapped[str]
    truth: Mapped[str]
    slices: Mapped[int]


class CaseTable(Base):
    __tablename__ = "cases"
    id: Mapped[str] = mapped_column(primary_key=True)
    patient: Mapped[str] = mapped_column(index=True)
    image: Mapped[str] = mapped_column(ForeignKey("images.id"), index=True)
    index: Mapped[int]
    state: Mapped[str] = mapped_column(index=True)
    reason: Mapped[str] = mapped_column(default="")


class GrantTable(Base):
    __tablename__ = "grants"
    run: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    cases: Mapped[int]
    requested: Mapped[int]


class RequestTable(Base):
    __tablename__ = "requests"
    __table_args__ = (UniqueConstraint("case"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    case: Mapped[str] = mapped_column(ForeignKey("cases.id"))
    run: Mapped[str]
    number: Mapped[int]
    tick: Mapped[int]
    rank: Mapped[int]
    score: Mapped[float]
    reason: Mapped[str]
    problem: Mapped[str] = mapped_column(default="")
    proposal: Mapped[bytes | None] = mapped_column(LargeBinary, default=None)


class LabelTable(Base):
    __tablename__ = "labels"
    case: Mapped[str] = mapped_column(ForeignKey("cases.id"), primary_key=True)
    run: Mapped[str]
    cycle: Mapped[int]
    tick: Mapped[int]
    annotator: Mapped[str]
    minutes: Mapped[float | None] = mapped_column(default=None)
    told: Mapped[int | None] = mapped_column(default=None)
    """The tick of the reply with which what it cost was first told in a sum; None while it waits for labels of more patients."""
    rows: Mapped[int]
    columns: Mapped[int]
    mask: Mapped[bytes] = mapped_column(LargeBinary)


class DiceTable(Base):
    """Dice of the global model on held-out volumes: one row a cycle, image and foreground class (1-based)."""

    __tablename__ = "dice"
    run: Mapped[str] = mapped_column(primary_key=True)
    cycle: Mapped[int] = mapped_column(primary_key=True)
    image: Mapped[str] = mapped_column(ForeignKey("images.id"), primary_key=True)
    class_: Mapped[int] = mapped_column(primary_key=True)
    dice: Mapped[float]


def bring_up(engine: Engine) -> str:
    """Make the tables, or bring those of an older schema up to this one; gives the schema that was found.

    One that is neither is left as it is. A kill anywhere leaves a database that the next call goes on with, and two processes may
    call it at once: what is there is looked at, and who comes second to a column finds it.
    """
    found = _found(engine)
    if found not in ("", str(SCHEMA), *OLDER):
        return found
    Base.metadata.create_all(engine)
    there = inspect(engine)
    for table in Base.metadata.sorted_tables:
        known = {column["name"] for column in there.get_columns(table.name)}
        for column in table.columns:
            if column.name not in known:
                kind = column.type.compile(engine.dialect)
                try:
                    with engine.begin() as connection:
                        connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"))
                except DatabaseError:
                    if column.name not in {column["name"] for column in inspect(engine).get_columns(table.name)}:
                        raise
    with Session(engine) as session, session.begin():
        session.merge(MetaTable(key="schema", value=str(SCHEMA)))
    return found


def _found(engine: Engine) -> str:
    """The schema of a database; none where it is new."""
    if not inspect(engine).has_table(MetaTable.__tablename__):
        return ""
    with Session(engine) as session:
        meta = session.get(MetaTable, "schema")
        return "" if meta is None else meta.value
