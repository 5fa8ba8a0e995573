"""What a run did, added up from its events: labels, bytes, losses, refusals, time. Functions of a record, no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from server.report_data import Record, moment, natural, number, per_site, plain, whole

MEANINGS: Mapping[str, str] = {
    "protocol-mismatch": "The site runs a version that speaks another protocol.",
    "classes-mismatch": "The site's classes are not those of the run.",
    "nothing-labelled": "The site had no label to train on.",
    "not-finite": "NaN or infinity in an image, a loss, a score or an update.",
    "bad-data": "A file at the site could not be read, or does not fit.",
    "bad-request": "The request made no sense at that point.",
    "invariant-broken": "The site's pool did not add up, so it stopped.",
    "sam-unavailable": "The site has no usable SAM checkpoint.",
    "storage": "The site's disk was full, read-only or locked.",
    "reply-not-allowed": "The gate found something in the reply that may not leave the site.",
    "internal": "Something else went wrong at the site.",
}
"""Code of a refusal to what it means in plain language; the codes are those of `strategies/wire.py`."""

SLICE = "slice"
"""What grants count unless they say otherwise, and labels always."""

LATE = "No reply within the time allowed; the run went on without this site."


@dataclass(frozen=True)
class Status:
    """How far a run came: whether it ended, how often it was resumed, and where its last line stands."""

    ended: bool
    resumed: int
    cycle: int
    round: int
    step: str


@dataclass(frozen=True)
class Cell:
    """Slices of one site in one cycle, asked for and labelled; None is withheld or not recorded."""

    granted: int | None
    received: int | None


@dataclass(frozen=True)
class Traffic:
    """Bytes of one site or step, serialised: up is from the site to the coordinator."""

    up: int = 0
    down: int = 0


@dataclass(frozen=True)
class RoundLoss:
    """Losses of one training round: term to site to mean loss; None is withheld."""

    cycle: int
    round: int
    terms: Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class Problem:
    """A refusal, or a late reply (`code` is None)."""

    cycle: int
    round: int
    step: str
    site: str
    code: str | None
    reference: str

    @property
    def is_fault(self) -> bool:
        """Something was wrong at the site; to wait for a first label is nothing wrong, and late replies are counted apart."""
        return self.code not in (None, "nothing-labelled")

    @property
    def meaning(self) -> str:
        if self.code is None:
            return LATE
        return MEANINGS.get(self.code, "A code that this version does not know.")


def status(record: Record) -> Status:
    """Where the run stands; all zeros when nothing was recorded."""
    last = record.events[-1] if record.events else {}
    return Status(
        ended=record.end is not None,
        resumed=sum(1 for _ in record.of("resume")),
        cycle=whole(last.get("cycle")) or 0,
        round=whole(last.get("round")) or 0,
        step=plain(last.get("event", "")),
    )


def seconds(record: Record) -> float | None:
    """How long the run worked; None where that is not known.

    What `end` says where the run ended without a stop, for it knows its last process only; else the time between lines,
    less the pauses before a resume.
    """
    resumed = any(True for _ in record.of("resume"))
    told = number(record.end.get("seconds")) if record.end and not resumed else None
    if told is not None:
        return told
    total, before, known = 0.0, None, False
    for event in record.events:
        now = moment(event)
        if now is None:
            continue
        aware_alike = before is not None and (before.tzinfo is None) == (now.tzinfo is None)
        if before is not None and aware_alike and event.get("event") != "resume":
            total += max(0.0, (now - before).total_seconds())
            known = True
        before = now
    return total if known else None


def cases(record: Record) -> dict[str, int | None]:
    """Site to the number of cases in its pool when it joined; None is withheld."""
    return {name: whole(values.get("cases")) for event in record.of("join") for name, values in per_site(event).items()}


def total(values: Mapping[str, int | None]) -> int | None:
    """The sum, or None when there is none to give: nothing known, or one of the parts withheld."""
    told = [value for value in values.values() if value is not None]
    return sum(told) if told and len(told) == len(values) else None


def labels(record: Record) -> dict[tuple[str, int], Cell]:
    """(site, cycle) to labels granted and received; cycle 0 is the cold start.

    Grants of slices are the coordinator's own and always known. How many slices a grant of volumes or patients became is what
    the site told, since labels count slices. `received` counts all labels of the cycle so far, so the last answer in a cycle
    counts.
    """
    granted: dict[tuple[str, int], int | None] = {}
    asked: dict[tuple[str, int], int | None] = {}
    received: dict[tuple[str, int], int | None] = {}
    for event in record.of("grant", "annotate"):
        cycle = whole(event.get("cycle")) or 0
        for name, values in per_site(event).items():
            if event["event"] == "grant" and event.get("unit", SLICE) != SLICE:
                asked.setdefault((name, cycle), None)
            elif event["event"] == "grant":
                granted[name, cycle] = whole(values.get("granted"))
            else:
                asked[name, cycle] = whole(values.get("granted"))
                received[name, cycle] = whole(values.get("received"))
    keys = sorted(granted.keys() | asked.keys(), key=lambda key: (natural(key[0]), key[1]))
    return {key: Cell(granted.get(key, asked.get(key)), received.get(key)) for key in keys}


def granted_total(record: Record) -> int:
    """What the coordinator granted, all sites and cycles together, in units of `unit_of_grants`."""
    by_cycle = {whole(event.get("cycle")): per_site(event) for event in record.of("grant")}  # the later of two counts
    return sum(whole(values.get("granted")) or 0 for sites in by_cycle.values() for values in sites.values())


def unit_of_grants(record: Record) -> str:
    """What grants of this run count: slice, volume or patient."""
    return next((plain(event.get("unit", SLICE)) for event in record.of("grant")), SLICE)


def traffic(record: Record) -> dict[str, Traffic]:
    """Site to its bytes, every site of the run."""
    sums = {name: Traffic() for name in record.sites}
    for event in record.events:
        for name, values in per_site(event).items():
            sums[name] = _more(sums[name], values.get("bytes_up"), values.get("bytes_down"))
    return sums


def traffic_by_step(record: Record) -> dict[str, Traffic]:
    """Kind of event to the bytes of all sites, in the order of first appearance; kinds without bytes are left out."""
    sums: dict[str, Traffic] = {}
    for event in record.events:
        kind = plain(event["event"])
        for values in per_site(event).values():
            sums[kind] = _more(sums.get(kind, Traffic()), values.get("bytes_up"), values.get("bytes_down"))
    return {kind: bytes_ for kind, bytes_ in sums.items() if bytes_.up or bytes_.down}


def losses(record: Record) -> list[RoundLoss]:
    """Losses by training round, in order; where a round ran twice (a resumed run) the later one counts."""
    return _by_round(record, "losses", withheld={"total": None})


def trusts(record: Record) -> list[RoundLoss]:
    """How much SAM counted, by class in place of a loss term, as `losses`; empty where no site told it."""
    return _by_round(record, "sam_trust", withheld={})


def _by_round(record: Record, key: str, *, withheld: Mapping[str, None]) -> list[RoundLoss]:
    """What sites told of each training round under `key`; `withheld` stands for a site that told nothing."""
    by_round: dict[tuple[int, int], RoundLoss] = {}
    for event in record.of("train"):
        place = whole(event.get("cycle")) or 0, whole(event.get("round")) or 0
        terms: dict[str, dict[str, float | None]] = {}
        for name, values in per_site(event).items():
            given = values.get(key)
            for term, value in (given if isinstance(given, dict) else withheld).items():
                terms.setdefault(plain(term), {})[name] = number(value)
        by_round[place] = RoundLoss(*place, terms)
    return [by_round[place] for place in sorted(by_round)]


def problems(record: Record) -> list[Problem]:
    """Refusals and late replies, in order."""
    return [
        Problem(
            cycle=whole(event.get("cycle")) or 0,
            round=whole(event.get("round")) or 0,
            step=plain(event.get("step") or ""),
            site=name,
            code=plain(values.get("code") or "internal") if event["event"] == "refused" else None,
            reference=plain(values.get("reference") or ""),
        )
        for event in record.of("refused", "late")
        for name, values in per_site(event).items()
    ]


def _more(sums: Traffic, up: object, down: object) -> Traffic:
    return Traffic(sums.up + (whole(up) or 0), sums.down + (whole(down) or 0))
