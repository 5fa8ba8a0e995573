"""DICOM, as other code imports it: series in, RTSTRUCT and SEG in, and all three out.

pydicom and highdicom are known to this module and its `dicom_*` neighbours alone, and identifying tags stop here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset
from pydicom.uid import UID, RTStructureSetStorage, SegmentationStorage

from client.formats.dicom_files import open_dicom
from client.formats.dicom_rtstruct import read_rtstruct, write_rtstruct
from client.formats.dicom_seg import read_seg, write_mask
from client.formats.dicom_series import read_image, series_files
from client.formats.dicom_write import write_image
from client.formats.image import Classes, FormatError, Image, check_same_grid

__all__ = ["read_image", "read_mask", "write_image", "write_mask", "write_rtstruct"]


def read_mask(path: Path, image: Image, *, classes: Classes, slice_axis: int = 2) -> NDArray[np.uint8]:
    """Read the labels of `image` from a structure set or a segmentation, whichever the file is.

    Args:
        path: an RTSTRUCT or SEG file that was drawn on the series `image.source`.
        image: as `read_image` gave it.
        classes: class name to the name patterns of its ROI or segment; shell wildcards, case-sensitive.
        slice_axis: not used, as in `read_image`.

    Returns:
        (slices, rows, cols) uint8 on the image's grid, 0..C in the order of `classes`; the later class wins an overlap.

    Raises:
        FormatError: another kind of file; another frame of reference than the image's; names that match no or two
            structures (lists the names found); structures that do not lie on the image.
    """
    if image.affine is None:
        raise FormatError(f"{image.source} has no place in patient space, so {path} can't be laid over it: use a DICOM series")
    dataset = open_dicom(path, pixels=True)
    kind = UID(dataset.SOPClassUID)
    if kind not in (RTStructureSetStorage, SegmentationStorage):
        raise FormatError(f"{path} is a {kind.name}, not a structure set (RTSTRUCT) or a segmentation (SEG): name the right file")
    try:
        _check_same_frame(dataset, path, image)
        read = read_rtstruct if kind == RTStructureSetStorage else read_seg
        mask = read(dataset, path, image, classes=classes)
    except FormatError:
        raise
    except Exception as error:  # damage deep in a file shows wherever it is first looked at
        raise FormatError(
            f"{path} is corrupt: a part it needs is missing or damaged ({type(error).__name__}). Export it again"
        ) from error
    check_same_grid(mask.shape, path, image)
    return mask


def _check_same_frame(dataset: FileDataset, path: Path, image: Image) -> None:
    """Coordinates mean the same place only within one frame of reference; also a guard against a wrong file."""
    rois = dataset.get("StructureSetROISequence") or []
    frames = dataset.get("ReferencedFrameOfReferenceSequence") or []
    named = {str(one.get("ReferencedFrameOfReferenceUID") or "") for one in rois}
    named |= {str(one.get("FrameOfReferenceUID") or "") for one in [*frames, dataset]}
    named.discard("")
    frame = str(open_dicom(series_files(image.source)[0], pixels=False).get("FrameOfReferenceUID") or "")
    if frame and named and frame not in named:
        raise FormatError(
            f"{path} was drawn in another frame of reference than {image.source}, so its coordinates mean other "
            "places: "
            "pair each image with the mask that was drawn on it"
        )
