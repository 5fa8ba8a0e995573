"""Example predictions of a run as crisp overlays: the image once as PNG, contours of truth and prediction as paths.

Only pictures that a simulation wrote for the purpose are read; a hospital's images are never here.
"""

from __future__ import annotations

import base64
import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import approximate_polygon, find_contours

from server.report_data import natural, plain

MOST = 8
"""Examples shown in all."""

_TOLERANCE_PX = 0.2
_TIGHTEST = 0.45


@dataclass(frozen=True)
class Outline:
    """Contours of one class in one label map: SVG path data in pixels, and the class counted from 0."""

    c: int
    path: str


@dataclass(frozen=True)
class View:
    """An image as one cycle saw it. `dice` is the mean over classes of this slice alone, None where it is empty."""

    cycle: int
    dice: float | None
    prediction: tuple[Outline, ...]


@dataclass(frozen=True)
class Example:
    """One image of a site with its truth and how the first and the last cycle predicted it (one view if they are one).

    Attributes:
        png: the image as base64 of a PNG.
        width, height: of the image, in pixels.
        crop: what of it is shown, as an SVG viewBox.
    """

    site: str
    png: str
    width: int
    height: int
    crop: str
    truth: tuple[Outline, ...]
    views: tuple[View, ...]


@dataclass(frozen=True)
class _Pictures:
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]


def examples(run_dir: Path, *, first_site: str | None = None) -> tuple[list[Example], list[str]]:
    """At most `MOST` examples, spread over sites beginning with `first_site`, and notes on files that can't be read.

    Slices with foreground come first; the same image is looked for in the first and in the last cycle.
    """
    notes: list[str] = []
    folders = sorted(run_dir.glob("sites/*/pictures"), key=lambda folder: natural(folder.parent.name))
    folders.sort(key=lambda folder: folder.parent.name != first_site)
    by_site: list[list[Example]] = []
    for folder in folders:
        files = sorted(
            (int(found[1]), path) for path in folder.iterdir() if (found := re.fullmatch(r"cycle_(\d+)\.npz", path.name))
        )
        ends = [files[0], files[-1]] if len(files) > 1 else files
        read: list[tuple[int, _Pictures]] = []
        for cycle, path in ends:
            try:
                read.append((cycle, _read(path)))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                notes.append(
                    f"Pictures of site {plain(folder.parent.name)}, cycle {cycle}, can't be shown ({plain(error)}): "
                    f"{path.name} is not what the simulation writes, perhaps cut short by a kill."
                )
        if read:
            by_site.append(_site_examples(plain(folder.parent.name), read))
    each = max(1, MOST // len(by_site)) if by_site else 0
    chosen = [example for site in by_site for example in site[:each]]
    return chosen[:MOST], notes


def slice_dice(truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> float | None:
    """Mean over foreground classes of the Dice of one slice; a class in neither map is left out, None if all are."""
    values = []
    for c in sorted(set(np.unique(truth)) | set(np.unique(prediction)) - {0}):
        if c == 0:
            continue
        a, b = truth == c, prediction == c
        values.append(2.0 * float((a & b).sum()) / float(a.sum() + b.sum()))
    return float(np.mean(values)) if values else None


def outlines(labels: NDArray[np.uint8]) -> tuple[Outline, ...]:
    """Contours between pixels of every foreground class of a (rows, cols) label map; holes are paths of their own."""
    found = []
    for value in np.unique(labels):
        if value == 0:
            continue
        rings = find_contours(  # type: ignore[no-untyped-call]
            np.pad(labels == value, 1).astype(np.float32), 0.5
        )
        parts = []
        for ring in rings:
            corners = approximate_polygon(ring, _TOLERANCE_PX)[:-1]  # type: ignore[no-untyped-call]
            corners = corners - 0.5  # less the pad's pixel, plus half a pixel: its middle lies at .5
            parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for y, x in corners) + "Z")
        found.append(Outline(int(value) - 1, "".join(parts)))
    return tuple(found)


def _site_examples(site: str, read: Sequence[tuple[int, _Pictures]]) -> list[Example]:
    _, newest = read[-1]
    order = sorted(range(len(newest.image)), key=lambda k: not newest.truth[k].any())
    found = []
    for k in order:
        views = []
        labels = [newest.truth[k]]
        for cycle, pictures in read:
            same = [j for j in range(len(pictures.image)) if np.array_equal(pictures.image[j], newest.image[k])]
            if same:
                prediction = pictures.prediction[k if k in same else same[0]]
                labels.append(prediction)
                views.append(View(cycle, slice_dice(newest.truth[k], prediction), outlines(prediction)))
        height, width = newest.truth[k].shape
        found.append(Example(site, _png(newest.image[k]), width, height, _crop(labels), outlines(newest.truth[k]), tuple(views)))
    return found


def _read(path: Path) -> _Pictures:
    with np.load(path, allow_pickle=False) as arrays:
        image, truth, prediction = (np.asarray(arrays[name]) for name in ("image", "truth", "prediction"))
    fits = truth.ndim == 3 and truth.shape == prediction.shape == image.shape[:3] and image.shape[3:] in ((), (3,))
    if not fits or not image.dtype == truth.dtype == prediction.dtype == np.uint8:
        raise ValueError(f"image {image.shape}, truth {truth.shape} and prediction {prediction.shape} do not go together")
    return _Pictures(image, truth, prediction)


def _png(image: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _crop(labels: Sequence[NDArray[np.uint8]]) -> str:
    """A viewBox around everything outlined, as square as the image allows, never so tight that the place is lost."""
    height, width = labels[0].shape
    rows, cols = np.nonzero(np.any([label > 0 for label in labels], axis=0))
    if not len(rows):
        return f"0 0 {width} {height}"
    extent = max(int(np.ptp(rows)), int(np.ptp(cols))) + 1
    side = min(max(1.35 * extent, _TIGHTEST * max(height, width)), max(height, width))
    box_width, box_height = min(side, width), min(side, height)
    x = min(max((cols.min() + cols.max() + 1) / 2 - box_width / 2, 0), width - box_width)
    y = min(max((rows.min() + rows.max() + 1) / 2 - box_height / 2, 0), height - box_height)
    return f"{x:.1f} {y:.1f} {box_width:.1f} {box_height:.1f}"
