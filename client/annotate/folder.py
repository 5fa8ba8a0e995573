"""Hand-over through a folder: requested cases are put where people find them, masks that come back are checked and taken.

    worklist/worklist.csv            what waits, why, and what was wrong with an answer
    worklist/<case>/image…           the slice: a DICOM series in image/, image.nii.gz or image.png
    worklist/<case>/proposal…        this site's model's mask, once it has one; correct it rather than start anew
    worklist/<case>/mask…            the answer, put there by a person: mask.dcm (SEG or RTSTRUCT), mask.nii.gz or mask.png
    worklist/<case>/README.txt       this, for the person

A wrong answer stays where it is; the worklist says what is wrong with it, and the request stays open.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.annotate.proposal import Proposals
from client.formats import FORMATS, classes_as_written
from client.formats.image import FormatError, Image
from client.plan import Plan
from client.site import Site
from client.store import Request
from configs.files import write_text

NAMES = {"dicom": ("image", "dcm"), "nifti": ("image.nii.gz", "nii.gz"), "picture": ("image.png", "png")}
"""Format to the name of the exported image and the ending of masks."""


class Folder:
    """Requests in a folder of the workspace."""

    name = "folder"

    def __init__(self, site: Site, plan: Plan, *, run: str) -> None:
        self._site = site
        self._proposals = Proposals(site, plan, run=run)
        self._format = FORMATS[site.settings.format]
        self._image_name, self._ending = NAMES[site.settings.format]
        self._root = site.workspace / "worklist"
        self._images = {image.id: image for image in site.store.images("pool")}
        self._class_names = list(site.settings.classes)
        # Masks of people use the run's class numbers, or class names where the format has names.
        self._classes = classes_as_written(site.settings.format, self._class_names)

    def publish(self, requests: Sequence[Request]) -> None:
        """Export cases that are not in the folder yet, and write the list; what people put there is never touched."""
        for request in requests:
            folder = self._root / request.case.id
            if not (folder / "README.txt").exists():
                self._export(request, folder)
        self._write_list(requests)

    def answers(self, requests: Sequence[Request], *, cycle: int, tick: int) -> list[tuple[Request, NDArray[np.uint8] | str]]:
        """The masks that lie in the case folders, each checked against its slice; a text where one can't be used."""
        found: list[tuple[Request, NDArray[np.uint8] | str]] = []
        for request in requests:
            path = self._root / request.case.id / f"mask.{self._ending}"
            if path.exists():
                found.append((request, self._read(path, request)))
        return found

    def _read(self, path: Path, request: Request) -> NDArray[np.uint8] | str:
        try:
            exported = self._exported(path.parent)
            mask: NDArray[np.uint8] = self._format.read_mask(path, exported, classes=self._classes, slice_axis=2)
        except FormatError as error:
            return str(error)
        slice_mask: NDArray[np.uint8] = mask[0]
        return slice_mask

    def _exported(self, folder: Path) -> Image:
        image: Image = self._format.read_image(
            folder / self._image_name, key=self._site.settings.key, patient="exported", slice_axis=2
        )
        return image

    def _export(self, request: Request, folder: Path) -> None:
        row = self._images[request.case.image]
        image, index = self._site.read(Path(row.path), windowed=False), request.case.index
        affine = None
        if image.affine is not None:
            affine = image.affine.copy()
            affine[:3, 3] = (image.affine @ [index, 0, 0, 1])[:3]
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / self._image_name).exists():
            self._format.write_image(
                folder / self._image_name, image.voxels[index : index + 1], affine=affine, patient=image.patient
            )
        proposal = self._proposals.of(request)
        if proposal is not None:
            exported = self._exported(folder)
            path = folder / f"proposal.{self._ending}"
            self._format.write_mask(path, proposal[None], exported, class_names=self._class_names)
        write_text(folder / "README.txt", self._readme(request, has_proposal=proposal is not None))

    def _readme(self, request: Request, *, has_proposal: bool) -> str:
        if self._site.settings.format == "dicom":
            numbers = "segments or ROIs named " + ", ".join(self._class_names)
        else:
            numbers = "0 background, " + ", ".join(f"{i} {name}" for i, name in enumerate(self._class_names, start=1))
        lines = [
            f"Case {request.case.id}, requested at place {request.rank} of its grant.",
            f"Why: {request.reason}",
            "",
            f"Draw every structure on {self._image_name} and save the mask here as mask.{self._ending}: {numbers}.",
            "It must have the image's size. If nothing is to be seen, save an empty mask.",
        ]
        if has_proposal:
            lines.append(f"proposal.{self._ending} is the model's mask: correcting it is usually quicker.")
        lines.append("The mask is taken in at the next exchange; ../worklist.csv says when something is wrong with it.")
        return "\n".join(lines) + "\n"

    def _write_list(self, requests: Sequence[Request]) -> None:
        buffer = io.StringIO()
        table = csv.writer(buffer)
        table.writerow(["case", "grant", "place", "score", "reason", "problem"])
        for r in requests:
            table.writerow([r.case.id, r.number, r.rank, f"{r.score:.6g}", r.reason, r.problem])
        write_text(self._root / "worklist.csv", buffer.getvalue())
