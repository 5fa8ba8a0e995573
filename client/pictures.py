"""Example predictions for the report, written only where the site allows it: synthetic or public images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.site import Site
from client.store import ImageRow
from client.upright import upright
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
        turn = upright(read.affine)
        self._kept.append(tuple(turn.plane(plane) for plane in (shown.astype(np.uint8), truth[index], prediction[index])))

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


def _pad(plane: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    return np.pad(plane, ((0, rows - plane.shape[0]), (0, columns - plane.shape[1])))
