"""The tables of a site's database (`store.py` reads and writes them)."""

from __future__ import annotations

from sqlalchemy import ForeignKey, LargeBinary, UniqueConstraint, text
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = 2

CHANGES = {
    "1": (
        "ALTER TABLE labels ADD COLUMN minutes FLOAT",
        "ALTER TABLE requests ADD COLUMN proposal BLOB",
    ),
}
"""From each older schema to the next one, as SQL; new tables are made anyway."""


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


def bring_up(engine: Engine, *, found: str) -> bool:
    """Change a database of an older schema to this one; False where there is no way from it."""
    if found not in CHANGES:
        return found == str(SCHEMA)
    with engine.begin() as connection:
        for number in range(int(found), SCHEMA):
            for change in CHANGES[str(number)]:
                connection.execute(text(change))
        connection.execute(text("UPDATE meta SET value = :schema WHERE key = 'schema'"), {"schema": str(SCHEMA)})
    return True
