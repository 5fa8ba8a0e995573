"""How good a SAM is when it is told exactly where to look, beside answers that need no SAM.

Every slice with at least 20 pixels of a structure is prompted with the tight box of the truth; Dice is taken on the
slice's own grid. Beside it, from the same boxes in the same run: the box itself, and the ellipse in it. A SAM below
the ellipse knows less about the image than the box does. No SAM shipped here has ever learned from these images; but how
the shipped one is trained and asked was chosen while looking at every fifth and every sixth case, so that with all cases
the figures of the others stand beside ("untouched").

Every slice comes to SAM at the 128 px of the small one, whatever its size: an official SAM of 1024 px sees that picture
enlarged, as it does in a federation that works at that size.

    WARDROUND_DATA=... python benchmarks/sam_quality.py [--checkpoint small] [--every 1] [--multimask] [--device auto]

The last line is one JSON object: name, figures, goal, met.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.formats import dicom, nifti
from client.formats.image import Image
from client.formats.index import read_index
from client.preprocess import from_network, geometry, to_network
from client.sam import Sam, load_sam
from strategies.semi.prompts import Prompts

MIN_PIXELS = 20
LOOKED_AT = (5, 6)
"""Every fifth and every sixth case, from the first on, was looked at while the shipped SAM was made."""

SIZE_PX = 128


@dataclass(frozen=True)
class Structure:
    """What is measured: the classes `meant` (1-based) of a data set's `classes`, as one."""

    name: str
    folder: str
    format: str
    classes: dict[str, int | list[str]]
    meant: tuple[int, ...]


HEART: dict[str, int | list[str]] = {"rv": 1, "myocardium": 2, "lv": 3}


STRUCTURES = (
    Structure("acdc_lv", "acdc", "nifti", HEART, (3,)),
    Structure("acdc_rv", "acdc", "nifti", HEART, (1,)),
    Structure("acdc_myocardium", "acdc", "nifti", HEART, (2,)),
    Structure("hippocampus", "hippocampus", "nifti", {"anterior": 1, "posterior": 2}, (1, 2)),
    Structure("sts_tumour", "sts_mr_dicom", "dicom", {"tumour": ["GTV_Mass*"]}, (1,)),
)

BEATS_BOTH, BEATS_BOX = ("acdc_rv", "hippocampus", "sts_tumour"), ("acdc_lv",)
GOAL = (
    "above the box and the ellipse in it for RV, hippocampus and tumour, above the box for LV, on all cases and on untouched ones"
)


def dice(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """2·|M ∩ T| / (|M| + |T|); truth is not empty."""
    return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))


def box_of(truth: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a mask's tight box; right and bottom are the first column and row beyond it."""
    rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def filled(box: tuple[int, int, int, int], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The box as a mask."""
    left, top, right, bottom = box
    mask = np.zeros(shape, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def ellipse(box: tuple[int, int, int, int], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The ellipse that touches the box's four sides, as a mask."""
    left, top, right, bottom = box
    y, x = np.ogrid[: shape[0], : shape[1]]
    across = (x + 0.5 - (left + right) / 2) / ((right - left) / 2)
    along = (y + 0.5 - (top + bottom) / 2) / ((bottom - top) / 2)
    mask: NDArray[np.bool_] = across**2 + along**2 <= 1
    return mask


def answers(sam: Sam, image: Image, truth: NDArray[np.bool_], *, multimask: bool) -> NDArray[np.bool_]:
    """SAM's masks (S, rows, columns) for slices (S, rows, columns) prompted with the tight boxes of their truth."""
    spacing = image.spacing_mm
    place = geometry(
        rows=truth.shape[1],
        columns=truth.shape[2],
        in_plane_mm=None if spacing is None else (spacing[1], spacing[2]),
        spacing_mm=None,
        size_px=SIZE_PX,
    )
    planes = to_network(image.voxels, place, channels=1, low_percentile=0.5, high_percentile=99.5)
    scale = np.array([place.width / place.columns, place.height / place.rows] * 2)
    offset = np.array([place.left, place.top] * 2)
    boxes = np.array([box_of(plane) for plane in truth]) * scale + offset
    count = len(truth)
    prompts = Prompts(
        image_index=torch.arange(count),
        class_index=torch.ones(count, dtype=torch.int64),
        boxes=torch.from_numpy(boxes).float(),
        points=torch.zeros(count, 3, 2),
        point_labels=torch.full((count, 3), -1),
        components=torch.zeros(count, SIZE_PX, SIZE_PX, dtype=torch.bool),
    )
    logits, _ = sam.decode(sam.encode(torch.from_numpy(planes)), prompts, size=(SIZE_PX, SIZE_PX), multimask=multimask)
    masks: NDArray[np.bool_] = (from_network(logits[:, None].cpu(), place)[:, 0] > 0).numpy()
    return masks


def volumes(root: Path, structure: Structure, every: int) -> Iterator[tuple[Image, NDArray[np.bool_], bool]]:
    """Slices of every `every`-th case that hold enough of the structure, their truth, and whether they are untouched."""
    reader = {"nifti": nifti, "dicom": dicom}[structure.format]
    for number, entry in enumerate(read_index(root / structure.folder, format=structure.format)):
        if number % every:
            continue
        assert entry.label is not None
        image = reader.read_image(entry.image, key="benchmark")
        truth = np.isin(reader.read_mask(entry.label, image, classes=structure.classes), structure.meant)
        shown = truth.sum((1, 2)) >= MIN_PIXELS
        if shown.any():
            kept = Image(image.voxels[shown], image.affine, image.spacing_mm, image.patient, image.source)
            yield kept, truth[shown], all(number % step for step in LOOKED_AT)


def measure(sam: Sam, root: Path, structure: Structure, *, every: int, multimask: bool) -> dict[str, dict[str, float]]:
    """Mean Dice over slices of the box, the ellipse and SAM, and the number of slices: of "all", and of "untouched" cases."""
    scores: dict[str, list[float]] = {"box": [], "ellipse": [], "sam": []}
    untouched: list[bool] = []
    for image, truth, fresh in volumes(root, structure, every):
        untouched += [fresh] * len(truth)
        for mask, plane in zip(answers(sam, image, truth, multimask=multimask), truth, strict=True):
            box = box_of(plane)
            scores["box"].append(dice(filled(box, plane.shape), plane))
            scores["ellipse"].append(dice(ellipse(box, plane.shape), plane))
            scores["sam"].append(dice(mask, plane))
    found = {}
    for group, chosen in (("all", np.ones(len(untouched), dtype=bool)), ("untouched", np.array(untouched))):
        if chosen.any():
            means = {name: round(float(np.mean(np.array(values)[chosen])), 4) for name, values in scores.items()}
            found[group] = means | {"slices": int(chosen.sum())}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="small", help='"small" or the path of a checkpoint')
    parser.add_argument("--every", type=int, default=1, help="take every n-th case only")
    parser.add_argument("--multimask", action="store_true", help="take the best rated of the three masks")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA when it is there")
    options = parser.parse_args()
    data = os.environ.get("WARDROUND_DATA")
    if not data:
        sys.exit("WARDROUND_DATA is not set: it names the folder that holds acdc/, hippocampus/ and sts_mr_dicom/")
    torch.set_num_threads(options.threads)
    gpu = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    sam = load_sam(options.checkpoint, device="cuda" if gpu else "cpu")
    print(f"{'structure':<18}{'slices':>8}{'box':>8}{'ellipse':>9}{'SAM':>8}")
    figures = {}
    for structure in STRUCTURES:
        found = measure(sam, Path(data), structure, every=options.every, multimask=options.multimask)
        figures[structure.name] = found["all"]
        if "untouched" in found:
            figures[structure.name + "_untouched"] = found["untouched"]
        for group, means in found.items():
            name = structure.name if group == "all" else "  " + group
            print(f"{name:<18}{means['slices']:>8}{means['box']:>8.3f}{means['ellipse']:>9.3f}{means['sam']:>8.3f}", flush=True)
    met = all(
        of["sam"] > (max(of["box"], of["ellipse"]) if name.startswith(BEATS_BOTH) else of["box"])
        for name, of in figures.items()
        if name.startswith((*BEATS_BOTH, *BEATS_BOX))
    )
    print(json.dumps({"name": "sam_quality", **figures, "every": options.every, "goal": GOAL, "met": met}))


if __name__ == "__main__":
    main()
