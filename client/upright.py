"""Which way up a plane is shown to people; files order their axes as they like."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Turn(NamedTuple):
    """How a plane is turned to be looked at: rows and columns change places first, then their order is reversed."""

    swap: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def plane(self, plane: NDArray[Any]) -> NDArray[Any]:
        """(rows, columns, ...) turned; a view."""
        plane = plane.swapaxes(0, 1) if self.swap else plane
        return plane[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def points(self, xy: NDArray[np.float32], *, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Positions (N, 2), x to the right and y down in pixels that cover [i, i + 1], of a plane (rows, columns) turned."""
        rows, columns = shape[::-1] if self.swap else shape
        x, y = xy.T[::-1] if self.swap else xy.T
        return np.stack([columns - x if self.flip_columns else x, rows - y if self.flip_rows else y], axis=1)


def upright(affine: NDArray[np.float64] | None) -> Turn:
    """How a (rows, columns) plane is turned for a radiologist: by quarters and mirrored, never resampled.

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
        return Turn()
    down, across = affine[:3, 1], affine[:3, 2]
    normal = int(np.abs(np.cross(down, across)).argmax())
    x, y, z = np.eye(3)
    to_right = y if normal == 0 else x
    to_bottom = y if normal == 2 else -z
    swap = bool(abs(down @ to_right) + abs(across @ to_bottom) > abs(across @ to_right) + abs(down @ to_bottom))
    if swap:
        down, across = across, down
    return Turn(swap, bool(down @ to_bottom < 0), bool(across @ to_right < 0))
