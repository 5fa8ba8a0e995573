"""The keyed hash, the checks every format shares, and the table of formats."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path

import numpy as np
import pytest

from client.formats import FORMATS, classes_as_written
from client.formats.image import FormatError, keyed_hash, to_class_map


def test_the_hash_is_hmac_sha256_written_out() -> None:
    key, text = "k" * 40, "patient 7"
    padded = key.encode().ljust(64, b"\0")
    inner = hashlib.sha256(bytes(one ^ 0x36 for one in padded) + text.encode()).digest()
    outer = hashlib.sha256(bytes(one ^ 0x5C for one in padded) + inner).hexdigest()
    assert keyed_hash(text, key=key) == outer[:16]
    assert keyed_hash(text, key=key) != keyed_hash(text, key="l" * 40)


def test_every_format_is_called_alike() -> None:
    reference = FORMATS["dicom"]
    for name, module in FORMATS.items():
        for function in ("read_image", "read_mask"):
            assert inspect.signature(getattr(module, function)) == inspect.signature(getattr(reference, function)), name
        for function in ("write_image", "write_mask"):
            ours = inspect.signature(getattr(module, function)).parameters
            common = (
                {"path", "voxels", "affine", "patient"}
                if function == "write_image"
                else {"path", "mask", "image", "class_names", "slice_axis"}
            )
            assert common <= set(ours), (name, function)


def test_label_values_become_classes_in_the_order_of_the_configuration() -> None:
    labels = np.array([[0, 7, 3], [3, 0, 1]])
    mapped = to_class_map(labels, Path("m"), classes={"c": 3, "a": 7, "b": 1})
    np.testing.assert_array_equal(mapped, [[0, 2, 1], [1, 0, 3]])
    assert mapped.dtype == np.uint8


@pytest.mark.parametrize("stranger", [2, 255, -1, 0.5, np.nan])
def test_values_that_are_no_class_are_listed(stranger: float) -> None:
    with pytest.raises(FormatError) as caught:
        to_class_map(np.array([0, 1, 7, stranger]), Path("there/m.nii"), classes={"rv": 1, "lv": 7})
    message = str(caught.value)
    assert "there/m.nii" in message
    assert f"{stranger:g}" in message
    assert "rv = 1, lv = 7" in message
    assert "[classes]" in message


def test_classes_that_do_not_fit_label_values() -> None:
    with pytest.raises(FormatError, match=r"m is a mask of label values, but classes.t = \['GTV'\] lists ROI names"):
        to_class_map(np.zeros(3), Path("m"), classes={"t": ["GTV"]})
    with pytest.raises(FormatError, match=r"classes.a and classes.b both claim the label value 2"):
        to_class_map(np.zeros(3), Path("m"), classes={"a": 2, "b": 2})
    with pytest.raises(FormatError, match=r"classes.a = 0 .*from 1 to 254"):
        to_class_map(np.zeros(3), Path("m"), classes={"a": 0})


def test_our_own_masks_are_read_by_our_own_names_or_numbers() -> None:
    assert classes_as_written("nifti", ["b", "a"]) == {"b": 1, "a": 2}
    assert classes_as_written("dicom", ["b*", "a"]) == {"b*": ["b[*]"], "a": ["a"]}
