"""Replies that must stay at a site: an honest one, changed in every way that a handler might try."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from gate_support import CASE, CLASSES, IMAGE, MASK, PATH, PATIENT, PIXELS, SAM, UPDATE, Named
from numpy.typing import NDArray

from strategies.wire import ANNOTATE, ASSESS, JOIN, PROTOCOL, TRAIN, pack_weights

Change = Callable[[RecordDict], None]


def put(name: str, record: ArrayRecord | MetricRecord | ConfigRecord) -> Change:
    """Add or replace a record."""
    return lambda content: content.__setitem__(name, record)


def drop(name: str, key: str | None = None) -> Change:
    def change(content: RecordDict) -> None:
        if key is None:
            del content[name]
        else:
            del content[name][key]

    return change


def force(name: str, key: Any, value: Any) -> Change:
    """Set a value behind the back of Flower's own type checks."""
    return lambda content: content[name].__dict__["_data"].__setitem__(key, value)


def arrays(**changed: Array | NDArray[Any]) -> Change:
    """Replace arrays of the update; `__` stands for a dot."""

    def change(content: RecordDict) -> None:
        for key, array in changed.items():
            content.array_records["update"][key.replace("__", ".")] = array if isinstance(array, Array) else Array(array)

    return change


def tampered(key: str, **fields: Any) -> Change:
    """An honest array of the update with fields set to something else."""

    def change(content: RecordDict) -> None:
        array = content["update"][key]
        for name, value in fields.items():
            setattr(array, name, value)

    return change


def npy(array: NDArray[Any], header: str | None = None, *, version: tuple[int, int] = (1, 0)) -> bytes:
    """Numpy's file format with a header of one's own."""
    if header is None:
        out = io.BytesIO()
        np.lib.format.write_array(out, array, version=version)
        return out.getvalue()
    text = header.encode("latin-1").ljust(246) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + array.tobytes()


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (16, 1, 3, 3), }"
COMMENTED = npy(UPDATE["conv.weight"], f"{HEADER} # {PATIENT}")
TWICE = npy(UPDATE["conv.weight"], HEADER.replace("{", f"{{'descr': '{PATIENT}', "))


def pickled() -> bytes:
    payload = pickle.dumps(np.array([PATIENT], object), protocol=3)
    return npy(np.zeros(0, np.uint8), "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }") + payload


WEIGHT = UPDATE["conv.weight"]
INFINITE = WEIGHT.copy()
INFINITE[3, 0, 1, 1] = np.inf
NOT_A_NUMBER = UPDATE["conv.bias"].copy()
NOT_A_NUMBER[-1] = np.nan


class Packed(Array):
    """An array with something besides."""

    secret = PATIENT


# name: kind of message, what the handler does to its honest reply, what the site's log must say of it
NOT_ALLOWED: Mapping[str, tuple[str, Change, str]] = {
    # pixels
    "image as one more float array": (TRAIN, arrays(image=IMAGE), "record update has a key 'image'"),
    "image as one more uint8 array": (TRAIN, arrays(image=PIXELS), "record update has a key 'image'"),
    "image in a record of its own": (TRAIN, put("image", pack_weights({"x": IMAGE})), "has a record 'image'"),
    "image in place of a weight": (TRAIN, arrays(conv__bias=IMAGE), "array conv.bias is 'float32' (16, 16)"),
    "image behind an honest header": (
        TRAIN,
        arrays(conv__weight=Array("float32", (16, 1, 3, 3), "numpy.ndarray", npy(IMAGE))),
        "conv.weight has a header",
    ),
    "image as trailing bytes": (
        TRAIN,
        tampered("conv.weight", data=npy(WEIGHT) + PIXELS.tobytes()),
        "conv.weight has 960 bytes of data, not 704",
    ),
    "image as numbers": (TRAIN, put("pixels", MetricRecord({"x": IMAGE.ravel().tolist()})), "has a record 'pixels'"),
    "image as a metric": (
        ASSESS,
        force("scores", "quantiles", IMAGE.ravel().tolist()),
        "scores.quantiles is [",
    ),
    "image as a scalar metric": (ASSESS, force("assessing", "seconds", IMAGE[3].tolist()), "assessing.seconds is ["),
    "image as bytes": (ANNOTATE, put("labels", ConfigRecord({"x": PIXELS.tobytes()})), "labels is a ConfigRecord"),
    "image as bytes in the site record": (JOIN, force("site", "image", PIXELS.tobytes()), "site has a key 'image'"),
    "image where no update is asked for": (ASSESS, put("update", pack_weights({"x": IMAGE})), "a record 'update'"),
    # a mask
    "mask as an array": (TRAIN, arrays(mask=MASK), "record update has a key 'mask'"),
    "mask as counts": (ASSESS, force("test", "counts", MASK.ravel().tolist()), "test.counts is ["),
    "mask as another dtype of a weight": (
        TRAIN,
        arrays(conv__bias=MASK.ravel()[:16].astype(np.uint8)),
        "array conv.bias is 'uint8' (16,)",
    ),
    # ids and paths
    "id as a record": (ANNOTATE, put(CASE, MetricRecord({"x": 1})), f"a record '{CASE}'"),
    "id as a metric's key": (ANNOTATE, force("labels", PATIENT, 1), f"labels has a key '{PATIENT}'"),
    "id as an array's key": (TRAIN, force("update", CASE, Array(WEIGHT)), f"update has a key '{CASE}'"),
    "id as a key of the site record": (TRAIN, force("site", PATIENT, 1), f"site has a key '{PATIENT}'"),
    "id as the site's name": (ASSESS, force("site", "name", PATIENT), f"site has name '{PATIENT}'"),
    "id behind the site's name": (ASSESS, force("site", "name", f"A {CASE}"), "site has name 'A "),
    "id as bytes for the name": (ASSESS, force("site", "name", b"A"), "site has name b'A'"),
    "path as a value of the site record": (JOIN, force("site", "file", PATH), "site has a key 'file'"),
    "path as a config record": (TRAIN, put("notes", ConfigRecord({"file": PATH})), "has a record 'notes'"),
    "path as a metric": (ANNOTATE, force("labels", "granted", PATH), f"labels.granted is '{PATH}'"),
    "id as a class": (JOIN, force("site", "classes", ["liver", PATIENT]), "site has classes ['liver', "),
    "id as one more class": (JOIN, force("site", "classes", [*CLASSES, CASE]), "site has classes ["),
    "classes in another order": (JOIN, force("site", "classes", ["spleen", "liver"]), "has classes ["),
    "classes where none are asked for": (
        TRAIN,
        force("site", "classes", list(CLASSES)),
        "key 'classes'",
    ),
    "id as an array's dtype": (TRAIN, tampered("conv.weight", dtype=PATIENT), f"array conv.weight is '{PATIENT}'"),
    "dtype that is only another name": (TRAIN, tampered("conv.weight", dtype="<f4"), "conv.weight is '<f4'"),
    "id as an array's stype": (TRAIN, tampered("conv.weight", stype=PATH), f"array conv.weight has stype '{PATH}'"),
    "id as an array's shape": (
        TRAIN,
        tampered("conv.weight", shape=tuple(PATIENT.encode())),
        "array conv.weight is 'float32' (73, ",
    ),
    "id as trailing bytes": (
        TRAIN,
        tampered("steps", data=npy(UPDATE["steps"]) + CASE.encode()),
        "array steps has 174",
    ),
    "id as a comment in numpy's header": (TRAIN, tampered("conv.weight", data=COMMENTED), "a header"),
    "id in numpy's header twice": (
        TRAIN,
        tampered("conv.weight", data=TWICE),
        "conv.weight has a header",
    ),
    "id as a pickle": (TRAIN, tampered("conv.weight", data=pickled()), "conv.weight has a header"),
    "id as attribute of a key": (
        ANNOTATE,
        lambda c: (c["labels"].pop("granted"), force("labels", Named("granted"), 4)(c))[1],
        "labels has a key 'granted'",
    ),
    "id as attribute of a record's name": (
        ANNOTATE,
        lambda c: c.__dict__.update(_data={Named(key): record for key, record in c.items()}),
        "a record named by a Named",
    ),
    # arrays
    "an array is missing": (TRAIN, drop("update", "conv.bias"), "record update has no key conv.bias"),
    "the update is missing": (TRAIN, drop("update"), "has no record update"),
    "the update is something else": (TRAIN, put("update", ConfigRecord({"w": b"x"})), "update is a ConfigRecord"),
    "a wrong shape": (TRAIN, arrays(conv__weight=WEIGHT.reshape(1, 16, 3, 3)), "(1, 16, 3, 3), not float32 (16, 1,"),
    "an oversized array": (TRAIN, arrays(conv__weight=np.zeros((300, 300), np.float32)), "it weighs 36"),
    "a wrong precision": (TRAIN, arrays(conv__weight=WEIGHT.astype(np.float64)), "array conv.weight is 'float64'"),
    "other bytes order": (TRAIN, tampered("conv.weight", data=npy(WEIGHT.astype(">f4"))), "conv.weight has a header"),
    "columns first": (
        TRAIN,
        tampered("conv.weight", data=npy(np.asfortranarray(WEIGHT))),
        "conv.weight has a header",
    ),
    "another version of numpy's header": (
        TRAIN,
        tampered("conv.weight", data=npy(WEIGHT, version=(2, 0))),
        "conv.weight has a header",
    ),
    "too few bytes": (TRAIN, tampered("conv.weight", data=npy(WEIGHT)[:-4]), "has 700 bytes of data, not 704"),
    "data that is no bytes": (TRAIN, tampered("conv.weight", data=bytearray(npy(WEIGHT))), "is no Array of bytes"),
    "an array that is none": (TRAIN, force("update", "conv.bias", IMAGE), "array conv.bias is no Array"),
    "an array of another class": (
        TRAIN,
        force("update", "conv.bias", Packed(UPDATE["conv.bias"])),
        "array conv.bias is no Array of bytes",
    ),
    "Inf in an update": (TRAIN, arrays(conv__weight=INFINITE), "array conv.weight is not finite"),
    "NaN in an update": (TRAIN, arrays(conv__bias=NOT_A_NUMBER), "array conv.bias is not finite"),
    # numbers
    "a bool for a count": (ANNOTATE, force("labels", "granted", True), "labels.granted is True, not a whole number"),
    "a bool for a real": (TRAIN, force("losses", "total", True), "losses.total is True"),
    "a real for a count": (ANNOTATE, force("labels", "granted", 4.0), "labels.granted is 4.0, not a whole number"),
    "bytes for a number": (ANNOTATE, force("labels", "granted", b"\x01"), r"labels.granted is b'\x01'"),
    "None for a number": (ANNOTATE, force("labels", "granted", None), "labels.granted is None"),
    "a giant integer": (
        ANNOTATE,
        force("labels", "granted", 2**63 - 1),
        "labels.granted is 9223372036854775807, not from",
    ),
    "an integer that no proto holds": (ANNOTATE, force("labels", "granted", 10**30), "labels.granted is 1000000"),
    "a negative count": (ANNOTATE, force("labels", "granted", -1), "labels.granted is -1, not from 0"),
    "a giant real": (TRAIN, force("losses", "total", 1e7), "losses.total is 10000000.0, not from"),
    "a giant negative real": (TRAIN, force("losses", "total", -1e7), "losses.total is -10000000.0, not from"),
    "NaN for a number": (TRAIN, force("losses", "total", math.nan), "losses.total is nan, not from"),
    "Inf for a number": (TRAIN, force("losses", "total", math.inf), "losses.total is inf, not from"),
    "NaN in a list": (ASSESS, force("test", "dice", [math.nan, 1.0]), "test.dice is nan, not from"),
    "text in a list": (ASSESS, force("test", "counts", [PATIENT, 1]), f"test.counts is '{PATIENT}'"),
    "a list for a number": (ANNOTATE, force("labels", "granted", [4]), "labels.granted is [4]"),
    "a number for a list": (ASSESS, force("test", "dice", 1.5), "test.dice is 1.5, not a list of 2"),
    "a tuple for a list": (ASSESS, force("test", "dice", (1.5, 0.5)), "test.dice is (1.5, 0.5), not a list of 2"),
    "a list that is too long": (ASSESS, force("test", "dice", [1.5, 0.5, 0.5]), "not a list of 2"),
    "a list that is too short": (ASSESS, force("test", "counts", [1]), "not a list of 2"),
    "trust beyond certainty": (TRAIN, force("sam", "trust", [0.5, 1.5]), "sam.trust is 1.5, not from 0"),
    "trust in more than the classes": (TRAIN, force("sam", "trust", [0.5, 0.5, 0.5]), "not a list of 2"),
    "a loss of another name": (TRAIN, force("losses", "hd95", 1.0), "record losses has a key 'hd95'"),
    "a key of another record": (TRAIN, force("losses", "labelled", 1), "record losses has a key 'labelled'"),
    "a record of another reply": (TRAIN, put("labels", MetricRecord({"granted": 1})), "has a record 'labels'"),
    "a metric that lacks a number": (ASSESS, drop("test", "counts"), "record test has no key counts"),
    "a metric of another kind": (ASSESS, put("test", ConfigRecord({"patients": 9})), "record test is a ConfigRecord"),
    # patients
    "validation over too few": (
        ASSESS,
        force("validation", "patients", 4),
        "validation is over 4 patients, fewer than 5",
    ),
    "test over too few": (ASSESS, force("test", "patients", 4), "record test is over 4 patients, fewer than 5"),
    "test over how many": (ASSESS, drop("test", "patients"), "record test has no key patients"),
    "quantiles over too few": (ASSESS, force("scores", "patients", 4), "record scores is over 4 patients, fewer than 5"),
    "quantiles over how many": (ASSESS, drop("scores", "patients"), "record scores has no key patients"),
    "quantiles of too few cases": (ASSESS, force("scores", "cases", 19), "scores.cases is 19, not from 20"),
    "quantiles of how many cases": (ASSESS, drop("scores", "cases"), "record scores has no key cases"),
    "quantiles that are scores": (
        ASSESS,
        force("scores", "quantiles", [0.123456789012345] * 5),
        "scores.quantiles is 0.123456789012345, which has more than 2 significant digits",
    ),
    "quantiles of three digits": (ASSESS, force("scores", "quantiles", [0.1, 0.2, 0.3, 0.4, 0.501]), "is 0.501, which has"),
    "quantiles beside the counts": (ASSESS, force("demand", "quantiles", [0.1] * 5), "record demand has a key 'quantiles'"),
    "losses over too few": (TRAIN, force("losses", "patients", 4), "record losses is over 4 patients, fewer than 5"),
    "losses over how many": (TRAIN, drop("losses", "patients"), "record losses has no key patients"),
    "trust by too few": (TRAIN, force("sam", "patients", 4), "record sam is over 4 patients, fewer than 5"),
    "trust by how many": (TRAIN, drop("sam", "patients"), "record sam has no key patients"),
    # the site record
    "no site record": (ASSESS, drop("site"), "has no record site"),
    "no name": (ASSESS, drop("site", "name"), "record site has no key name"),
    "a site record of numbers": (ANNOTATE, put("site", MetricRecord({"name": 1})), "record site is a MetricRecord"),
    "another protocol": (JOIN, force("site", "protocol", PROTOCOL + 1), f"site has protocol {PROTOCOL + 1}"),
    "a bool for the protocol": (JOIN, force("site", "protocol", True), "site has protocol True"),
    "no protocol": (JOIN, drop("site", "protocol"), "record site has no key protocol"),
    "another SAM": (JOIN, force("site", "sam", CASE[:16]), f"site has sam '{CASE[:16]}', not '{SAM}'"),
    "a SAM in capitals": (JOIN, force("site", "sam", SAM.upper()), "site has sam"),
    "a number for the SAM": (JOIN, force("site", "sam", 5), "site has sam 5"),
    "no SAM": (JOIN, drop("site", "sam"), "record site has no key sam"),
    "no classes": (JOIN, drop("site", "classes"), "record site has no key classes"),
    "a refusal of the handler's own": (
        TRAIN,
        put("refused", ConfigRecord({"name": "A", "code": PATIENT, "reference": CASE})),
        "has a record 'refused'",
    ),
    "far too much of something": (ANNOTATE, put("x", ConfigRecord({"x": "y" * 70000})), "it weighs 7"),
}
