"""The site's durable state: patients' images, cases, requests, labels and grants, in SQLite (or any SQLAlchemy URL).

A case moves `unlabelled → requested → labelled` (or `skipped`, with a reason) and never back; `validation` and `test`
cases stay what they are. Every movement is one transaction, so a kill at any line leaves a consistent pool, and
`client/conserved.py` states what must always hold. Label masks lie in the database itself: a label and its case's state
change together or not at all.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session, defer

from client.conserved import check
from client.database import mendable, open_engine
from client.faults import SiteFault
from client.tables import (
    OLDER,
    SCHEMA,
    CaseTable,
    DiceTable,
    GrantTable,
    ImageTable,
    LabelTable,
    MetaTable,
    RequestTable,
    bring_up,
)
from strategies.records import Case, Choice

STOPPED = "stopped"
"""The key under which the reason stands why the site stopped."""

LABELS_AT_ONCE = 64
"""So many labels are read with one query."""


@dataclass(frozen=True)
class ImageRow:
    """One image of the site. `truth` is the mask's path for held-out patients and empty for the pool."""

    id: str
    patient: str
    path: str
    role: str
    truth: str
    slices: int


@dataclass(frozen=True)
class Told:
    """The labels of a run whose cost may be told in sums: their cases, in the order in which they came, and `minutes` in all.

    `patients` are the fewest behind a difference of two sums that were told, the first one included.
    """

    cases: list[Case]
    minutes: float
    patients: int


@dataclass(frozen=True)
class Request:
    """An open question to the experts: which case, since when, why, and what was wrong with the last answer.

    `proposed` says whether what the expert begins with is kept already.
    """

    case: Case
    number: int
    tick: int
    rank: int
    score: float
    reason: str
    problem: str
    proposed: bool


class Store:
    """The site's database. Methods are transactions: a kill at any line leaves all or nothing of one."""

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        with mendable(self._engine):
            found = bring_up(self._engine)
        if found not in ("", str(SCHEMA), *OLDER):
            raise SiteFault(
                "storage",
                f"the site's database has schema {found}, this wardround reads schema {SCHEMA}: "
                "install the version that wrote it, or start a new workspace",
            )

    @classmethod
    def at(cls, path: Path) -> Store:
        """The SQLite database in file `path`, made when absent."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{path}")

    @classmethod
    def found_in(cls, workspace: Path) -> Store:
        """The database of a workspace that has one, for people who look into it.

        Raises:
            SiteFault: the workspace has no database yet.
        """
        path = workspace / "site.db"
        if not path.exists():
            raise SiteFault("bad-request", f"{workspace} holds no site.db: it is no workspace, or its site has joined no run yet")
        return cls.at(path)

    def close(self) -> None:
        self._engine.dispose()

    # -------------------------------------------------------------------------------------------------------- images

    def add_image(self, image: ImageRow, cases: Sequence[Case]) -> None:
        """Take an image and its cases into the pool (or the held-out sets); an image already there is left alone."""
        state = "unlabelled" if image.role == "pool" else image.role
        with self._session() as session:
            if session.get(ImageTable, image.id) is not None:
                return
            session.add(ImageTable(**vars(image)))
            session.flush()
            session.add_all(CaseTable(id=c.id, patient=c.patient, image=c.image, index=c.index, state=state) for c in cases)

    def move_image(self, image_id: str, *, path: str, truth: str) -> None:
        """The image's files lie elsewhere now; its cases and labels stay."""
        with self._session() as session:
            session.execute(update(ImageTable).where(ImageTable.id == image_id).values(path=path, truth=truth))

    def images(self, *roles: str) -> list[ImageRow]:
        """Images with one of the roles (all when none is given), by id."""
        query = select(ImageTable).order_by(ImageTable.id)
        if roles:
            query = query.where(ImageTable.role.in_(roles))
        with self._session() as session:
            return [
                ImageRow(id=i.id, patient=i.patient, path=i.path, role=i.role, truth=i.truth, slices=i.slices)
                for i in session.scalars(query)
            ]

    def cases(self, *states: str) -> list[Case]:
        """Cases in one of the states (all when none is given), by id."""
        query = select(CaseTable).order_by(CaseTable.id)
        if states:
            query = query.where(CaseTable.state.in_(states))
        with self._session() as session:
            return [_case(c) for c in session.scalars(query)]

    def counts(self) -> dict[str, int]:
        """State to number of cases."""
        with self._session() as session:
            return dict(session.execute(select(CaseTable.state, func.count()).group_by(CaseTable.state)).tuples().all())

    def skip(self, case_ids: Iterable[str], *, reason: str) -> None:
        """Set unlabelled cases aside for a stated reason; they are never scored or asked for again."""
        with self._session() as session:
            session.execute(
                update(CaseTable)
                .where(CaseTable.id.in_(list(case_ids)), CaseTable.state == "unlabelled")
                .values(state="skipped", reason=reason)
            )

    # ------------------------------------------------------------------------------------------------------ requests

    def granted(self, run: str, number: int) -> int | None:
        """How many cases were requested under a grant, or None while it has not been carried out."""
        with self._session() as session:
            grant = session.get(GrantTable, (run, number))
            return None if grant is None else grant.requested

    def request(self, run: str, number: int, *, cases: int, choices: Sequence[Choice], tick: int) -> int:
        """Carry out a grant once: its choices become requests and its cases `requested`. Repeats change nothing."""
        with self._session() as session:
            grant = session.get(GrantTable, (run, number))
            if grant is not None:
                return grant.requested
            for rank, choice in enumerate(choices, start=1):
                moved = session.execute(
                    update(CaseTable)
                    .where(CaseTable.id == choice.case_id, CaseTable.state == "unlabelled")
                    .values(state="requested")
                    .returning(CaseTable.id)
                ).all()
                if len(moved) != 1:
                    raise SiteFault("invariant-broken", f"case {choice.case_id} was chosen but is not unlabelled")
                session.add(
                    RequestTable(
                        case=choice.case_id,
                        run=run,
                        number=number,
                        tick=tick,
                        rank=rank,
                        score=choice.score,
                        reason=choice.reason,
                    )
                )
            session.add(GrantTable(run=run, number=number, cases=cases, requested=len(choices)))
            return len(choices)

    def open_requests(self) -> list[Request]:
        """Requests without a label yet, oldest and best first."""
        query = (
            select(RequestTable, CaseTable)
            .join(CaseTable, CaseTable.id == RequestTable.case)
            .where(CaseTable.state == "requested")
            .order_by(RequestTable.id)
        )
        with self._session() as session:
            return [
                Request(_case(c), r.number, r.tick, r.rank, r.score, r.reason, r.problem, r.proposal is not None)
                for r, c in session.execute(query).tuples()
            ]

    def is_requested(self, case_id: str) -> bool:
        with self._session() as session:
            case = session.get(CaseTable, case_id)
            return case is not None and case.state == "requested"

    def set_problem(self, case_id: str, problem: str) -> None:
        """Note what was wrong with an answer; an empty text clears it. The request stays open."""
        with self._session() as session:
            session.execute(update(RequestTable).where(RequestTable.case == case_id).values(problem=problem))

    # -------------------------------------------------------------------------------------------------------- labels

    def set_proposal(self, case_id: str, mask: NDArray[np.uint8]) -> None:
        """Keep what the expert begins with, (rows, columns) uint8; the first one stays."""
        packed = zlib.compress(np.ascontiguousarray(mask, dtype=np.uint8).tobytes())
        with self._session() as session:
            session.execute(
                update(RequestTable).where(RequestTable.case == case_id, RequestTable.proposal.is_(None)).values(proposal=packed)
            )

    def proposal(self, case_id: str, *, shape: tuple[int, int]) -> NDArray[np.uint8] | None:
        """What the expert began with; None for an empty slice."""
        with self._session() as session:
            packed = session.scalar(select(RequestTable.proposal).where(RequestTable.case == case_id))
        return None if packed is None else np.frombuffer(zlib.decompress(packed), dtype=np.uint8).reshape(shape).copy()

    def opens_image(self, case_id: str) -> bool:
        """Whether a requested case is the first of its image under its grant: the expert opens the image for it."""
        with self._session() as session:
            mine = session.scalars(select(RequestTable).where(RequestTable.case == case_id)).one()
            image = session.scalars(select(CaseTable.image).where(CaseTable.id == case_id)).one()
            before = (
                select(func.count())
                .select_from(RequestTable)
                .join(CaseTable, CaseTable.id == RequestTable.case)
                .where(
                    RequestTable.run == mine.run,
                    RequestTable.number == mine.number,
                    RequestTable.id < mine.id,
                    CaseTable.image == image,
                )
            )
            return not session.scalar(before)

    def tell(self, run: str, *, tick: int, min_patients: int) -> Told | None:
        """Which of a run's labels a reply at `tick` may tell sums of: those that were told of before, and the others once they
        are of `min_patients` patients together, or a difference of two replies would be what fewer cost.

        Kept with the labels, so a reply that told of some is the same when it is given again, whatever came since. (One that told
        of none may tell of some then: of `min_patients` patients, as any other.) Labels of before the cost was kept count 0
        minutes. None where nothing may be told.
        """
        of_run = (
            select(LabelTable, CaseTable)
            .join(CaseTable, CaseTable.id == LabelTable.case)
            .options(defer(LabelTable.mask))
            .where(LabelTable.run == run)
            .order_by(LabelTable.tick, LabelTable.case)
        )
        with self._session() as session:
            rows = session.execute(of_run).tuples().all()
            fresh = [(label, case) for label, case in rows if label.told is None and label.tick <= tick]
            answered = any(label.told is not None and label.told >= tick for label, _ in rows)
            if not answered and len({case.patient for _, case in fresh}) >= min_patients:
                for label, _ in fresh:
                    label.told = tick
            behind: dict[int, set[str]] = {}
            told = [(label, case) for label, case in rows if label.told is not None and label.told <= tick]
            for label, case in told:
                behind.setdefault(label.told or 0, set()).add(case.patient)
            fewest = min(map(len, behind.values()), default=0)
            if fewest < min_patients:  # nothing was told, or the site has raised the bar since
                return None
            return Told([_case(case) for _, case in told], sum(label.minutes or 0.0 for label, _ in told), fewest)

    def add_label(
        self,
        case_id: str,
        mask: NDArray[np.uint8],
        *,
        run: str,
        cycle: int,
        tick: int,
        annotator: str,
        minutes: float | None = None,
    ) -> None:
        """Store a label, (rows, columns) uint8, and move its case to `labelled`, together.

        `minutes` is what it cost the expert, by the run's model of effort.

        Raises:
            SiteFault: the case was never requested; taking it would let a label in that nobody granted.
        """
        with self._session() as session:
            case = session.get(CaseTable, case_id)
            if case is None or case.state != "requested":
                raise SiteFault(
                    "invariant-broken", f"a label came for case {case_id}, which is {case.state if case else 'unknown'}"
                )
            case.state = "labelled"
            rows, columns = mask.shape
            session.add(
                LabelTable(
                    case=case_id,
                    run=run,
                    cycle=cycle,
                    tick=tick,
                    annotator=annotator,
                    minutes=minutes,
                    rows=rows,
                    columns=columns,
                    mask=zlib.compress(np.ascontiguousarray(mask, dtype=np.uint8).tobytes()),
                )
            )
            session.execute(update(RequestTable).where(RequestTable.case == case_id).values(problem=""))

    def label(self, case_id: str) -> NDArray[np.uint8]:
        """The expert's mask of a labelled case, (rows, columns), on the original grid."""
        return next(self.labels([case_id]))

    def labels(self, case_ids: Sequence[str]) -> Iterator[NDArray[np.uint8]]:
        """The experts' masks of labelled cases, in their order; some are read together, never all.

        Raises:
            KeyError: a case has no label.
        """
        for start in range(0, len(case_ids), LABELS_AT_ONCE):
            some = case_ids[start : start + LABELS_AT_ONCE]
            with self._session() as session:
                rows = {row.case: row for row in session.scalars(select(LabelTable).where(LabelTable.case.in_(some)))}
                masks = [_unpacked(rows[case_id]) for case_id in some]
            yield from masks

    def costs(self) -> list[tuple[str, float]]:
        """Each label's case and what it cost in minutes, in the order in which they came; 0 where that is not known."""
        query = select(LabelTable.case, LabelTable.minutes).order_by(LabelTable.tick, LabelTable.case)
        with self._session() as session:
            return [(case, minutes or 0.0) for case, minutes in session.execute(query).tuples()]

    def requested_patients(self) -> list[str]:
        """Patients whom an expert was asked about, in the order of their first request: only ever extended."""
        first = func.min(RequestTable.id)
        query = (
            select(CaseTable.patient)
            .join(RequestTable, RequestTable.case == CaseTable.id)
            .group_by(CaseTable.patient)
            .order_by(first)
        )
        with self._session() as session:
            return list(session.scalars(query))

    def received(self, run: str, cycle: int, *, tick: int) -> int:
        """Labels that arrived while the run was in `cycle`, up to `tick`: a sum, so asking again gives the same."""
        with self._session() as session:
            mine = (LabelTable.run == run, LabelTable.cycle == cycle, LabelTable.tick <= tick)
            return int(session.scalar(select(func.count()).select_from(LabelTable).where(*mine)) or 0)

    def received_after(self, run: str, *, tick: int) -> int:
        """Labels of this run that came after `tick`: those that an answer given again must not know of yet."""
        with self._session() as session:
            later = (LabelTable.run == run, LabelTable.tick > tick)
            return int(session.scalar(select(func.count()).select_from(LabelTable).where(*later)) or 0)

    # ---------------------------------------------------------------------------------------------------------- dice

    def set_dice(self, run: str, cycle: int, dice: Mapping[str, Sequence[float]]) -> None:
        """Keep the Dice by class of held-out volumes in a cycle, image id to (C,); NaN, where a class counts not, is left out."""
        with self._session() as session:
            for image, by_class in dice.items():
                for class_, value in enumerate(by_class, start=1):
                    if np.isfinite(value):
                        session.merge(DiceTable(run=run, cycle=cycle, image=image, class_=class_, dice=float(value)))

    def dice(self, cycle: int, role: str) -> dict[str, float]:
        """Patient to mean Dice in a cycle over classes, then over the volumes of the patient, of a held-out role."""
        query = (
            select(ImageTable.patient, DiceTable.image, func.avg(DiceTable.dice))
            .join(ImageTable, ImageTable.id == DiceTable.image)
            .where(DiceTable.cycle == cycle, ImageTable.role == role)
            .group_by(ImageTable.patient, DiceTable.image)
        )
        volumes: dict[str, list[float]] = {}
        with self._session() as session:
            for patient, _, mean in session.execute(query).tuples():
                volumes.setdefault(patient, []).append(float(mean))
        return {patient: sum(dice) / len(dice) for patient, dice in sorted(volumes.items())}

    # ---------------------------------------------------------------------------------------------------- invariants

    def check_conserved(self) -> None:
        """The pool adds up, and nothing that was there at an earlier check is gone.

        Raises:
            SiteFault: with code `invariant-broken`, the numbers that disagree and a case that they disagree about.
        """
        with self._session() as session:
            check(session)

    def stop(self, reason: str) -> None:
        """Remember that the site has stopped, and why; the first reason stays until a person clears it."""
        with self._session() as session:
            if session.get(MetaTable, STOPPED) is None:
                session.add(MetaTable(key=STOPPED, value=reason))

    @property
    def stopped(self) -> str | None:
        """Why the site has stopped, or None while it goes on."""
        with self._session() as session:
            found = session.get(MetaTable, STOPPED)
            return None if found is None else found.value

    def clear(self) -> None:
        """The site goes on."""
        with self._session() as session:
            session.execute(delete(MetaTable).where(MetaTable.key == STOPPED))

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with mendable(self._engine), Session(self._engine) as session, session.begin():
            yield session


def _case(row: CaseTable) -> Case:
    return Case(id=row.id, patient=row.patient, image=row.image, index=row.index)


def _unpacked(label: LabelTable) -> NDArray[np.uint8]:
    return np.frombuffer(zlib.decompress(label.mask), dtype=np.uint8).reshape(label.rows, label.columns).copy()
