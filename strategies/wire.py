"""Records to Flower's RecordDict and back. The key names on the wire live here, once.

`REPLIES` says, for each message, exactly what a reply may carry; `client/gate.py` enforces it at the site and the
coordinator relies on nothing else. Arrays are allowed in one record only (`update`), with the names, dtypes and shapes
of the weights that came with the request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from strategies.records import Annotation, Assessment, Demand, Joined, Refused, SiteUpdate, Sums, Weights

PROTOCOL = 7

JOIN, TRAIN, ASSESS, ANNOTATE, KINDS = "query.join", "train", "query.assess", "query.annotate", "query.kinds"

CODES = (
    "protocol-mismatch",  # the coordinator speaks another version
    "classes-mismatch",  # the site's classes are not the run's
    "nothing-labelled",  # no label to train on
    "not-finite",  # NaN or Inf in an image, a loss, a score or an update
    "bad-data",  # a file could not be read or does not fit
    "bad-request",  # the request makes no sense here
    "invariant-broken",  # the pool did not add up; the site stopped
    "sam-unavailable",  # the checkpoint is missing or not one
    "storage",  # disk full, read-only or locked
    "reply-not-allowed",  # the gate found something in the reply that may not leave
    "internal",  # anything else; the site's log has it
)
"""Every reason a site may give. Nothing else about a failure leaves the site."""

LOSSES = ("total", "supervised", "consistency", "sam", "proximal", "adapter")
"""Loss terms whose means may be reported; a framework's own names map to these."""

QUANTILES = 5

CASES_A_QUANTILE = 4
"""Of a site's scores; of fewer it tells no quantiles."""

DIGITS = 2
"""Significant digits of a quantile that leaves. Not decimal places: some strategies' scores are all near a thousandth."""


@dataclass(frozen=True)
class Number:
    """What a metric may be: a scalar or a list of `length` numbers, whole or real, from `low` to `high`.

    `digits` is how many significant digits it may have; None where it may have all.
    """

    whole: bool
    low: float = 0.0
    high: float = 1e9
    length: int | None = None
    optional: bool = False
    digits: int | None = None


@dataclass(frozen=True)
class Reply:
    """What one kind of reply may carry, beside the `site` record that every reply has.

    Attributes:
        update: whether the `update` arrays are part of it.
        metrics: record name to key to number; records are left out, not filled with zeros, when withheld.
        patients: records in which the key `patients` must be at least the site's `min_patients`.
        sums: whether the `update` is of sums over cases, which leave only where the site shares sums.
    """

    update: bool
    metrics: Mapping[str, Mapping[str, Number]]
    patients: tuple[str, ...] = ()
    sums: bool = False


COUNT = Number(whole=True, high=1e7)
SECONDS = Number(whole=False, high=1e7, optional=True)
REAL = Number(whole=False, low=-1e6, high=1e6, optional=True)


def replies(classes: int) -> dict[str, Reply]:
    """The allow-list for a run with `classes` foreground classes: message type to what its reply may carry."""
    sums = {
        "dice": Number(whole=False, high=1e7, length=classes),
        "counts": Number(whole=True, high=1e7, length=classes),
        "patients": COUNT,
    }
    scores = {
        "quantiles": Number(whole=False, low=-1e6, high=1e6, length=QUANTILES, digits=DIGITS),
        "cases": Number(whole=True, low=CASES_A_QUANTILE * QUANTILES, high=1e7),
        "patients": COUNT,
    }
    return {
        JOIN: Reply(update=False, metrics={"pool": {"cases": COUNT, "labelled": COUNT, "unlabelled": COUNT}}),
        TRAIN: Reply(
            update=True,
            metrics={
                "training": {"labelled": COUNT, "labels_trained": COUNT, "unlabelled": COUNT, "seconds": SECONDS},
                "sam": {"trust": Number(whole=False, high=1.0, length=classes), "patients": COUNT},
                "losses": {**dict.fromkeys(LOSSES, REAL), "patients": COUNT},
                "effort": {"minutes": COUNT, "patients": COUNT},
            },
            patients=("sam", "losses", "effort"),
        ),
        ASSESS: Reply(
            update=False,
            metrics={
                "validation": sums,
                "test": sums,
                "demand": {"unlabelled": COUNT, "units": COUNT},
                "scores": scores,
                "assessing": {"seconds": SECONDS},
            },
            patients=("validation", "test", "scores"),
        ),
        KINDS: Reply(update=True, metrics={"behind": {"patients": COUNT}}, patients=("behind",), sums=True),
        ANNOTATE: Reply(
            update=False,
            metrics={
                "labels": {
                    **dict.fromkeys(("granted", "received", "outstanding", "labelled", "unlabelled", "skipped"), COUNT),
                    "seconds": SECONDS,
                },
                "effort": {
                    "minutes": COUNT,
                    "balance": Number(whole=False, high=1.0, optional=True),
                    "patients": COUNT,
                },
            },
            patients=("effort",),
        ),
    }


def size(content: RecordDict) -> int:
    """Bytes that the content takes on the wire."""
    return int(recorddict_to_proto(content).ByteSize())


# ---------------------------------------------------------------------------------------------------------------- down


@dataclass(frozen=True)
class Request:
    """What the coordinator asks, in one record `request`; the weights travel beside it in `weights`.

    Attributes:
        cycle, round: where the run is; `round` counts within the cycle.
        tick: rounds and polls so far; simulated experts count their delays in it.
        step: local steps that a site has taken before this round: time 0 of every ramp is the start of the run.
        total_steps: local steps of the whole run, the T of every ramp.
        fresh: whether training starts anew from the given weights (the teacher too), as `restart = "initial"` asks.
        grant: for `query.annotate`: how many cases this site may ask for, in all, under `cycle`.
        progress: of the run's queries, 0 at the first to 1 at the last.
        mean_balance: how level classes are in what the sites have annotated, in [0, 1] (`fairfal.balance`); below 0 where no
            site tells.
        kinds: for `query.annotate`: numbers of the centroids in `weights` that the site is to choose by, one a case; none where
            sites choose without each other.
        run: random name of the run; a site keeps what it learned under it apart from other runs.
        settings: the run's settings that sites need: classes, preprocess, network, train, sam, query, seed.
    """

    cycle: int = 0
    round: int = 0
    tick: int = 0
    step: int = 0
    total_steps: int = 1
    fresh: bool = False
    grant: int = 0
    progress: float = 0.0
    mean_balance: float = -1.0
    kinds: tuple[int, ...] = ()
    run: str = ""
    protocol: int = PROTOCOL
    settings: Mapping[str, Any] | None = None


def pack_request(request: Request, weights: ArrayRecord | None = None) -> RecordDict:
    """A request as a RecordDict; `weights` is shared, not copied, so that many sites can be asked at once."""
    record = ConfigRecord(
        {
            "cycle": request.cycle,
            "round": request.round,
            "tick": request.tick,
            "step": request.step,
            "total_steps": request.total_steps,
            "fresh": request.fresh,
            "grant": request.grant,
            "progress": request.progress,
            "mean_balance": request.mean_balance,
            "kinds": list(request.kinds),
            "run": request.run,
            "protocol": request.protocol,
            "settings": json.dumps(request.settings, sort_keys=True),
        }
    )
    content = RecordDict({"request": record})
    if weights is not None:
        content["weights"] = weights
    return content


def unpack_request(content: RecordDict) -> Request:
    """Raises ValueError when the record is not a request."""
    try:
        fields: dict[str, Any] = dict(content.config_records["request"])
        fields["settings"] = json.loads(str(fields["settings"]))
        fields["kinds"] = tuple(fields["kinds"])
        return Request(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a wardround request: {error}") from error


def pack_weights(weights: Weights) -> ArrayRecord:
    """Named arrays as an ArrayRecord, names and order kept."""
    return ArrayRecord({name: Array(np.ascontiguousarray(array)) for name, array in weights.items()})


def unpack_weights(record: ArrayRecord) -> Weights:
    return {name: array.numpy() for name, array in record.items()}


# ------------------------------------------------------------------------------------------------------------------ up


def _site(name: str) -> ConfigRecord:
    return ConfigRecord({"name": name})


def _numbers(**values: Any) -> MetricRecord | None:
    """The given numbers without the Nones; None when nothing is left."""
    present = {key: value for key, value in values.items() if value is not None}
    return MetricRecord(present) if present else None


def _content(name: str, **records: MetricRecord | ArrayRecord | None) -> RecordDict:
    return RecordDict({"site": _site(name), **{key: record for key, record in records.items() if record is not None}})


def pack_joined(joined: Joined) -> RecordDict:
    content = _content(joined.name, pool=_numbers(cases=joined.cases, labelled=joined.labelled, unlabelled=joined.unlabelled))
    content.config_records["site"]["protocol"] = joined.protocol
    content.config_records["site"]["classes"] = list(joined.classes)
    content.config_records["site"]["sam"] = joined.sam
    return content


def unpack_joined(content: RecordDict) -> Joined:
    site, pool = content.config_records["site"], _metrics(content, "pool")
    return Joined(
        name=str(site["name"]),
        protocol=int(site["protocol"]),  # type: ignore[arg-type]
        classes=tuple(site["classes"]),  # type: ignore[arg-type]
        sam=str(site["sam"]),
        cases=pool.get("cases"),
        labelled=pool.get("labelled"),
        unlabelled=pool.get("unlabelled"),
    )


def pack_update(update: SiteUpdate) -> RecordDict:
    return _content(
        update.name,
        update=pack_weights(update.update),
        training=_numbers(
            labelled=update.labelled,
            labels_trained=update.labels_trained,
            unlabelled=update.unlabelled,
            seconds=update.seconds,
        ),
        sam=None if update.trust is None else _numbers(trust=list(update.trust), patients=update.trust_patients),
        losses=_numbers(**update.losses, patients=update.losses_patients) if update.losses else None,
        effort=None if update.minutes is None else _numbers(minutes=update.minutes, patients=update.patients),
    )


def unpack_update(content: RecordDict) -> SiteUpdate:
    training = _metrics(content, "training")
    sam, losses = _metrics(content, "sam"), _metrics(content, "losses")
    trust, losses_patients = sam.get("trust"), losses.pop("patients", None)
    return SiteUpdate(
        name=_name(content),
        update=unpack_weights(content.array_records["update"]),
        labelled=training.get("labelled"),
        labels_trained=training.get("labels_trained"),
        unlabelled=training.get("unlabelled"),
        losses=losses,
        losses_patients=losses_patients,
        trust=None if trust is None else tuple(trust),
        trust_patients=sam.get("patients"),
        seconds=training.get("seconds"),
        **_metrics(content, "effort"),
    )


def pack_assessment(assessment: Assessment) -> RecordDict:
    demand = assessment.demand
    return _content(
        assessment.name,
        validation=_pack_sums(assessment.validation),
        test=_pack_sums(assessment.test),
        demand=None if demand is None else _numbers(unlabelled=demand.unlabelled, units=demand.units),
        scores=None
        if demand is None or not demand.quantiles
        else _numbers(quantiles=list(demand.quantiles), cases=demand.unlabelled, patients=demand.patients),
        assessing=_numbers(seconds=assessment.seconds),
    )


def unpack_assessment(content: RecordDict) -> Assessment:
    demand, scores = _metrics(content, "demand"), _metrics(content, "scores")
    return Assessment(
        name=_name(content),
        validation=_unpack_sums(content, "validation"),
        test=_unpack_sums(content, "test"),
        demand=Demand(demand["unlabelled"], demand["units"], tuple(scores.get("quantiles", ())), scores.get("patients"))
        if demand
        else None,
        seconds=_metrics(content, "assessing").get("seconds"),
    )


def pack_annotation(annotation: Annotation) -> RecordDict:
    return _content(
        annotation.name,
        labels=_numbers(
            granted=annotation.granted,
            received=annotation.received,
            outstanding=annotation.outstanding,
            labelled=annotation.labelled,
            unlabelled=annotation.unlabelled,
            skipped=annotation.skipped,
            seconds=annotation.seconds,
        ),
        effort=None
        if annotation.minutes is None
        else _numbers(minutes=annotation.minutes, balance=annotation.balance, patients=annotation.patients),
    )


def unpack_annotation(content: RecordDict) -> Annotation:
    return Annotation(name=_name(content), **_metrics(content, "labels"), **_metrics(content, "effort"))


def pack_kinds(name: str, sums: Weights, *, patients: int) -> RecordDict:
    """Sums, and the fewest patients behind one of them."""
    return _content(name, update=pack_weights(sums), behind=_numbers(patients=patients))


def unpack_kinds(content: RecordDict) -> Weights:
    return unpack_weights(content.array_records["update"])


def pack_refused(refused: Refused) -> RecordDict:
    record = ConfigRecord({"name": refused.name, "code": refused.code, "reference": refused.reference})
    return RecordDict({"refused": record})


def unpack_refused(content: RecordDict) -> Refused | None:
    """The refusal in a reply, or None where there is none."""
    record = content.config_records.get("refused")
    if record is None:
        return None
    return Refused(str(record.get("name", "")), str(record.get("code", "internal")), str(record.get("reference", "")))


def _name(content: RecordDict) -> str:
    return str(content.config_records["site"]["name"])


def _metrics(content: RecordDict, record: str) -> dict[str, Any]:
    return dict(content.metric_records.get(record) or {})


def _pack_sums(sums: Sums | None) -> MetricRecord | None:
    if sums is None:
        return None
    return MetricRecord({"dice": list(sums.dice), "counts": list(sums.counts), "patients": sums.patients})


def _unpack_sums(content: RecordDict, record: str) -> Sums | None:
    sums = _metrics(content, record)
    return Sums(tuple(sums["dice"]), tuple(sums["counts"]), sums["patients"]) if sums else None
