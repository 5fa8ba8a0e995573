"""The images a simulated run starts from, each with its truth: phantoms it writes, or the files an index lists."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from client.formats import FORMATS
from client.formats.image import Image
from client.formats.index import read_index
from configs.schema import Run
from simulation.phantom import Hospital, hospitals, write_hospital
from simulation.split import DataFault
from simulation.styles import Style, restyle
from strategies.randomness import numpy_rng

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done and how many there are."""


@dataclass(frozen=True)
class Source:
    """One image with its truth.

    Attributes:
        case: name of the image, unique in the data.
        patient: identity; one patient may have several images.
        site: the site that the data names, if it does.
        image: absolute path of the image file, or of the folder with its series.
        label: absolute path of the mask file.
    """

    case: str
    patient: str
    site: str | None
    image: Path
    label: Path


def file_format(run: Run) -> Literal["dicom", "nifti", "picture"]:
    """Phantoms are DICOM; everything else is what it is."""
    return "dicom" if run.data.format == "phantom" else run.data.format


def truth(run: Run, source: Source) -> NDArray[np.uint8]:
    """The true mask of an image, (slices, rows, columns) uint8, 0..C in the order of `[classes]`.

    Raises:
        FormatError: the image or the mask cannot be read or do not fit.
    """
    mask: NDArray[np.uint8] = FORMATS[file_format(run)].read_mask(
        source.label, _read(run, source), classes=run.classes, slice_axis=run.data.slice_axis
    )
    return mask


def phantoms(run: Run, data: Path, tell: Progress) -> list[Source]:
    """Write the phantom hospitals that are not in `data` yet; all their images.

    Raises:
        DataFault: `data.phantom.patients` does not fit the number of hospitals.
    """
    phantom, seed = run.data.phantom, run.split.split_seed
    if len(phantom.patients) not in (1, phantom.hospitals):
        raise DataFault(
            f"data.phantom.patients lists {len(phantom.patients)} numbers for {phantom.hospitals} hospitals: "
            "give one number for all, or one for each"
        )
    counts = phantom.patients * phantom.hospitals if len(phantom.patients) == 1 else phantom.patients
    made = hospitals(phantom.hospitals, seed=seed)
    sources: list[Source] = []
    for done, (hospital, count) in enumerate(zip(made, counts, strict=True)):
        tell(f"writing the studies of {hospital.name}", done, len(made))
        folder = data / hospital.name
        make_folder(folder, partial(_write_phantoms, run=run, hospital=hospital, patients=count))
        sources += _listed(folder, "dicom", "index.csv")
    return sources


def indexed(run: Run) -> list[Source]:
    """The images of the index under `data.root`, each with its label.

    Raises:
        FormatError: the index is missing, empty or wrong, or a file that it promises is not there.
    """
    return _listed(Path(run.data.root).resolve(), file_format(run), run.data.index)


def restyled(run: Run, folder: Path, sources: Iterable[Source], style: Style) -> list[Source]:
    """Copies of images below `folder` as a site's scanner shows them; grid and place stay, so the labels fit."""
    own = list(sources)
    make_folder(folder, partial(_write_restyled, run=run, sources=own, style=style))
    return [replace(source, image=folder / _copy_name(run, source)) for source in own]


def make_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Fill a folder under another name and rename it: it is there complete or not at all."""
    if folder.exists():
        return
    part = folder.with_name(f".{folder.name}.part")
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    write(part)
    part.rename(folder)


def _listed(root: Path, kind: str, index: str) -> list[Source]:
    sources = []
    for entry in read_index(root, format=kind, index=index):
        assert entry.label is not None, "read_index was asked for labels"
        sources.append(Source(entry.case, entry.patient, entry.site, entry.image, entry.label))
    return sources


def _read(run: Run, source: Source) -> Image:
    image: Image = FORMATS[file_format(run)].read_image(
        source.image, key="", patient=source.patient, slice_axis=run.data.slice_axis
    )
    return image


def _write_phantoms(folder: Path, *, run: Run, hospital: Hospital, patients: int) -> None:
    phantom, seed = run.data.phantom, run.split.split_seed
    write_hospital(folder, hospital, patients=patients, slices=phantom.slices, size_px=phantom.size_px, seed=seed)


def _write_restyled(folder: Path, *, run: Run, sources: Iterable[Source], style: Style) -> None:
    kind = file_format(run)
    axis: dict[str, Any] = {"slice_axis": run.data.slice_axis} if kind == "nifti" else {}
    for source in sources:
        image = _read(run, source)
        voxels = restyle(image.voxels, style, numpy_rng(run.split.split_seed, "scanner", source.case))
        path = folder / _copy_name(run, source)
        FORMATS[kind].write_image(path, voxels, affine=image.affine, patient=source.patient, **axis)


def _copy_name(run: Run, source: Source) -> str:
    return f"{source.case}{'.nii.gz' if file_format(run) == 'nifti' else '.png'}"
