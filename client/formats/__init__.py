"""Files to images and masks, and back. One module a format, all with the same functions; FORMATS picks by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import ModuleType

from client.formats import dicom, nifti, picture
from client.formats.image import Classes

FORMATS: dict[str, ModuleType] = {"dicom": dicom, "nifti": nifti, "picture": picture}
MASK_SUFFIX = {"dicom": ".dcm", "nifti": ".nii.gz", "picture": ".png"}
"""How the name of a mask file ends that `write_mask` writes."""

__all__ = ["FORMATS", "MASK_SUFFIX", "classes_as_written"]


def classes_as_written(format: str, class_names: Sequence[str]) -> Classes:
    """The `classes` with which `read_mask` reads what `write_mask` wrote: its own names or numbers, not a hospital's.

    >>> classes_as_written("nifti", ["liver", "spleen"])
    {'liver': 1, 'spleen': 2}
    >>> classes_as_written("dicom", ["liver"])
    {'liver': ['liver']}
    """
    if format == "dicom":
        return {name: [re.sub(r"([*?[])", r"[\1]", name)] for name in class_names}  # wildcards in a name mean themselves
    return {name: number for number, name in enumerate(class_names, start=1)}
