"""Example predictions for the report, written only where the site allows it: synthetic or public images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.site import Site
from client.store import ImageRow
from configs.files import write_bytes

MOST = 3


class Pictures:
    """Collects the slice with the most foreground of the first few test images, then writes one file per cycle."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._kept: list[tuple[NDArray[np.uint8], ...]] = []  # image, truth, prediction

    def see(self, image: ImageRow, truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> None:
        """Keep a slice of this image when there is room; matches `evaluate.Seen`."""
        if len(self._kept) == MOST:
            return
        index = int((truth > 0).sum(axis=(1, 2)).argmax())
        read = self._site.read(Path(image.path))
        plane = read.voxels[index]
        grey = plane if plane.ndim == 2 else plane.mean(axis=-1)
        low, high = np.percentile(grey, (0.5, 99.5))
        shown = np.clip((grey - low) / max(high - low, 1e-6), 0, 1) * 255
        planes = (upright(plane, read.affine) for plane in (shown.astype(np.uint8), truth[index], prediction[index]))
        self._kept.append(tuple(planes))

    def write(self, cycle: int) -> None:
        """`pictures/cycle_001.npz` with image, truth and prediction, each (K, rows, columns) uint8, padded to one size."""
        if not self._kept:
            return
        rows = max(kept[0].shape[0] for kept in self._kept)
        columns = max(kept[0].shape[1] for kept in self._kept)
        image, truth, prediction = (
            np.stack([_pad(kept[position], rows, columns) for kept in self._kept]) for position in range(3)
        )
        buffer = io.BytesIO()
        np.savez_compressed(buffer, image=image, truth=truth, prediction=prediction)
        write_bytes(self._site.workspace / "pictures" / f"cycle_{cycle:03d}.npz", buffer.getvalue())


def upright(plane: NDArray[np.uint8], affine: NDArray[np.float64] | None) -> NDArray[np.uint8]:
    """A (rows, columns) plane as a radiologist looks at it; turned by quarters and mirrored, never resampled.

    ```
    plane nearest to   right on the page   up on the page
    axial              patient's left      anterior
    coronal            patient's left      head
    sagittal           posterior           head
    ```

    Args:
        affine: of the plane's image, (slice, row, column) to LPS millimetres; None, nothing known, leaves the plane as it is.

    Whatever the file's order of axes (NIfTI's planes are mostly x by y, DICOM's y by x), the same place of a patient
    comes out on the same side. Pixels are not made square: a plane's spacing does not matter here.
    """
    if affine is None:
        return plane
    down, across = affine[:3, 1], affine[:3, 2]
    normal = int(np.abs(np.cross(down, across)).argmax())
    x, y, z = np.eye(3)
    to_right = y if normal == 0 else x
    to_bottom = y if normal == 2 else -z
    if abs(down @ to_right) + abs(across @ to_bottom) > abs(across @ to_right) + abs(down @ to_bottom):
        plane, down, across = plane.T, across, down
    return plane[:: -1 if down @ to_bottom < 0 else 1, :: -1 if across @ to_right < 0 else 1]


def _pad(plane: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    return np.pad(plane, ((0, rows - plane.shape[0]), (0, columns - plane.shape[1])))
