"""Nothing leaves a site but what the protocol lists: handlers try to send everything else, by every way there is."""

from __future__ import annotations

import io
import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from forbidden import COMMENTED, NOT_ALLOWED, TWICE, WEIGHT, npy
from gate_support import (
    CLASSES,
    IMAGE,
    MESSAGES,
    PIXELS,
    SAM,
    UPDATE,
    WEIGHTS,
    Bench,
    answer,
    ask,
    assert_refused,
    honest,
    serialised,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from client import egress
from client.allowed import Allowed
from strategies.records import Annotation, SiteUpdate, Weights
from strategies.wire import (
    ANNOTATE,
    ASSESS,
    JOIN,
    KINDS,
    LOSSES,
    PROTOCOL,
    QUANTILES,
    TRAIN,
    pack_annotation,
    pack_kinds,
    pack_update,
    pack_weights,
    replies,
    unpack_refused,
)

pytestmark = pytest.mark.usefixtures("flower_runtime")


def to_digits(digits: int, value: float) -> float:
    return float(f"{value:.{digits}g}")


@st.composite
def allowed_replies(draw: st.DrawFn) -> tuple[str, RecordDict]:
    """Any reply that the list allows: some records, in any order, with any numbers in range."""
    kind = draw(st.sampled_from(MESSAGES))
    spec = replies(len(CLASSES))[kind]
    site: dict[str, Any] = {"name": "A"}
    if kind == JOIN:
        site |= {"protocol": PROTOCOL, "classes": list(CLASSES), "sam": draw(st.sampled_from(["", SAM]))}
    site = dict(draw(st.permutations(list(site.items()))))
    records: list[tuple[str, Any]] = [("site", ConfigRecord(site))]
    if spec.update:
        names = draw(st.permutations(list(WEIGHTS)))
        generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        arrays = {n: (generator.normal(size=WEIGHTS[n].shape) * 9).astype(WEIGHTS[n].dtype) for n in names}
        records.append(("update", pack_weights(arrays)))
    told = draw(st.lists(st.sampled_from(list(spec.metrics)), unique=True))
    for name in list(spec.metrics) if spec.sums else told:
        values: dict[str, Any] = {}
        for key, number in spec.metrics[name].items():
            if number.optional and draw(st.booleans()):
                continue
            low = 5 if key == "patients" else number.low
            scalar: st.SearchStrategy[Any]
            if number.whole:
                scalar = st.integers(math.ceil(low), int(number.high))
            else:
                scalar = st.floats(low, number.high, allow_nan=False)
            if number.digits is not None:
                scalar = scalar.map(partial(to_digits, number.digits))
            values[key] = draw(scalar if number.length is None else st.lists(scalar, min_size=2, max_size=2))
            if number.length == QUANTILES:
                values[key] = draw(st.lists(scalar, min_size=QUANTILES, max_size=QUANTILES))
        records.append((name, MetricRecord(values)))
    return kind, RecordDict(dict(draw(st.permutations(records))))


@settings(max_examples=60, deadline=None)
@given(allowed_replies())
def test_the_gate_is_the_identity_on_all_that_is_allowed(reply: tuple[str, RecordDict]) -> None:
    kind, content = reply
    before = serialised(content)
    with tempfile.TemporaryDirectory() as folder:
        sent = Bench(Path(folder)).send(ask(kind), answer(content))
    assert serialised(sent.content) == before
    assert serialised(content) == before  # and the handler's own is left as it was


@settings(max_examples=60, deadline=None)
@given(allowed_replies(), st.data())
def test_any_other_key_or_record_is_refused(reply: tuple[str, RecordDict], data: st.DataObject) -> None:
    kind, content = reply
    records: dict[str, Any] = dict(content.items())
    of = data.draw(st.sampled_from([None, *content]))
    known = set(content) | set(replies(2)[kind].metrics) | {"update"} if of is None else set(content[of])
    if of in replies(2)[kind].metrics:
        known |= set(replies(2)[kind].metrics[of])
    key = data.draw(st.text(st.characters(codec="utf-8"), max_size=20).filter(lambda text: text not in known))
    if of is None:
        extra: list[Any] = [MetricRecord({"x": 1}), ConfigRecord({}), pack_weights({"x": IMAGE})]
        content[key] = data.draw(st.sampled_from(extra))
    else:
        records[of][key] = Array(IMAGE) if isinstance(content[of], ArrayRecord) else 1
    with tempfile.TemporaryDirectory() as folder:
        bench, message = Bench(Path(folder)), ask(kind)
        said = assert_refused(bench, message, bench.send(message, answer(content)), code="reply-not-allowed")
    assert ("it has a record" if of is None else f"record {of} has a key") in said


@pytest.mark.parametrize("name", NOT_ALLOWED)
def test_what_is_not_on_the_list_stays(bench: Bench, name: str) -> None:
    kind, change, why = NOT_ALLOWED[name]
    content = honest(kind)
    change(content)
    message = ask(kind)
    said = assert_refused(bench, message, bench.send(message, answer(content)), code="reply-not-allowed")
    assert why in said
    withheld = egress.read(bench.path)[-1].withheld
    assert withheld is not None
    assert withheld.records == len(content)


def test_numpy_would_have_read_what_the_header_hides() -> None:
    """The attacks on numpy's header are real: numpy itself reads these arrays without a complaint."""
    for data in (COMMENTED, TWICE, npy(WEIGHT) + PIXELS.tobytes()):
        np.testing.assert_array_equal(np.load(io.BytesIO(data)), WEIGHT)


def test_the_site_decides_how_many_patients_are_enough(tmp_path: Path) -> None:
    for least, code in ((9, None), (10, "reply-not-allowed")):
        bench = Bench(tmp_path, min_patients=least)
        refused = unpack_refused(bench.send(ask(ASSESS), answer(honest(ASSESS))).content)
        assert (refused and refused.code) == code


@pytest.mark.parametrize(
    ("kind", "record"), [(kind, record) for kind in MESSAGES if kind != KINDS for record in replies(2)[kind].metrics]
)
def test_a_site_that_shares_updates_lets_no_number_out(tmp_path: Path, kind: str, record: str) -> None:
    bench = Bench(tmp_path, share="updates")
    content = honest(kind)
    for name in list(content.metric_records):
        if name != record:
            del content[name]
    said = assert_refused(bench, message := ask(kind), bench.send(message, answer(content)), code="reply-not-allowed")
    assert f"it has a record {record}, but this site shares updates only" in said


def test_a_site_that_shares_updates_lets_no_sums_out(tmp_path: Path) -> None:
    bench = Bench(tmp_path, share="updates")
    said = assert_refused(bench, message := ask(KINDS), bench.send(message, answer(honest(KINDS))), code="reply-not-allowed")
    assert "it has sums over cases, but this site shares updates only" in said


def test_sums_leave_with_the_number_of_their_patients_alone(bench: Bench) -> None:
    content = honest(KINDS)
    del content["behind"]
    said = assert_refused(bench, message := ask(KINDS), bench.send(message, answer(content)), code="reply-not-allowed")
    assert "it has no record behind" in said


@pytest.mark.parametrize(("kind", "record"), [(KINDS, "behind"), (ANNOTATE, "effort"), (TRAIN, "effort")])
def test_what_few_patients_stand_behind_stays(bench: Bench, kind: str, record: str) -> None:
    content = honest(kind)
    content.metric_records[record]["patients"] = 4
    said = assert_refused(bench, message := ask(kind), bench.send(message, answer(content)), code="reply-not-allowed")
    assert f"record {record} is over 4 patients, fewer than 5" in said


def test_zeros_leave_with_nobody_behind_them_and_nothing_else_does(bench: Bench) -> None:
    zeros = {name: np.zeros_like(array) for name, array in UPDATE.items()}
    honest_zeros = pack_kinds("A", zeros, patients=0)
    assert serialised(bench.send(ask(KINDS), answer(honest_zeros)).content) == serialised(honest_zeros)
    one = {**zeros, "conv.bias": np.eye(1, 16, 7)[0]}
    content = pack_kinds("A", one, patients=0)
    said = assert_refused(bench, message := ask(KINDS), bench.send(message, answer(content)), code="reply-not-allowed")
    assert "array conv.bias is not all 0, but no patients are behind it" in said


def test_a_site_that_shares_updates_takes_part(tmp_path: Path) -> None:
    bench = Bench(tmp_path, share="updates")
    for content, kind in ((pack_update(SiteUpdate("A", UPDATE)), TRAIN), (pack_annotation(Annotation("A")), ANNOTATE)):
        assert serialised(bench.send(ask(kind), answer(content)).content) == serialised(content)


def test_the_number_of_losses_is_that_of_the_protocol(bench: Bench) -> None:
    content = honest(TRAIN)
    content["losses"] = MetricRecord({**dict.fromkeys(LOSSES, 1.0), "patients": 5})
    assert unpack_refused(bench.send(ask(TRAIN), answer(content)).content) is None


@pytest.mark.parametrize("kind", MESSAGES)
def test_the_bound_on_the_weight_lets_every_honest_reply_through(bench: Bench, kind: str) -> None:
    many = {"classes": [f"class {number} of a great many" for number in range(5000)]}
    large: Weights = {f"layer.{number}": np.zeros(100, np.float32) for number in range(1000)}
    message = ask(kind, settings=many, weights=large)
    allowed = Allowed.by(message, name="A", share="updates+sums", min_patients=5, sam=str)
    update = sum(len(name) + len(Array(array).data) for name, array in large.items()) if kind in (TRAIN, KINDS) else 0
    numbers = sum(8 * (number.length or 1) for keys in allowed.reply.metrics.values() for number in keys.values())
    honest_at_most = update + numbers + sum(len(name) for name in many["classes"])
    assert honest_at_most < allowed.bytes < honest_at_most + 2**19
