"""Synthetic hospitals, each with its own scanner and patients, written as the DICOM studies they would export.

`hospitals` draws who they are, `draw_patient` and `scan` (pure) make one patient and the image of it, `write_hospital` puts
them on disk. Everything follows from the seed, hospital by hospital and patient by patient: neither the number of hospitals
nor that of patients changes what is drawn for another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.formats import dicom
from client.formats.image import Image
from configs.files import write_text
from simulation.phantom_anatomy import Anatomy, draw_patient
from simulation.phantom_cases import CASE_TYPES, CLASS_NAMES, CaseMix
from simulation.phantom_scanner import Scanner, Weighting, affine_of, scan, stored
from simulation.phantom_shapes import Field
from strategies.randomness import numpy_rng

__all__ = [
    "CASE_TYPES",
    "CLASS_NAMES",
    "Anatomy",
    "CaseMix",
    "Hospital",
    "Scanner",
    "draw_patient",
    "hospitals",
    "image_of",
    "patient_of",
    "scan",
    "write_hospital",
]

RARE = 0.25
"""Share of a hospital's patients who are rare cases."""


@dataclass(frozen=True)
class Hospital:
    """Who a hospital is.

    Attributes:
        name: "hospital-1" and so on; also the site in its index.
        number: counts from 0.
        scanner: its machine and protocol.
        mix: whom it sees.
        truth: the kind of file its experts draw in.
    """

    name: str
    number: int
    scanner: Scanner
    mix: CaseMix
    truth: Literal["rtstruct", "seg"]


@dataclass(frozen=True)
class _Protocol:
    """What is fixed about the n-th kind of scanner; the rest is drawn."""

    weighting: Weighting
    flips: tuple[bool, bool, bool]
    tilt_deg: tuple[float, float]


_PROTOCOLS = (
    _Protocol("MR venous", flips=(False, False, False), tilt_deg=(0, 0)),
    _Protocol("CT venous", flips=(True, True, False), tilt_deg=(0, 0)),  # stored head first and upside down
    _Protocol("MR late", flips=(False, False, False), tilt_deg=(17, 6)),  # a double-oblique stack
    _Protocol("CT early", flips=(False, False, True), tilt_deg=(-8, 0)),  # a tilted stack, mirrored in storage
)


def hospitals(count: int, *, seed: int) -> list[Hospital]:
    """The first `count` hospitals of a seed. Hospital i is the same one at every count.

    Raises:
        ValueError: a count below 1.
    """
    if count < 1:
        raise ValueError(f"a federation needs at least 1 hospital, not {count}")
    return [_hospital(number, seed=seed) for number in range(count)]


def _hospital(number: int, *, seed: int) -> Hospital:
    rng = numpy_rng("phantom", seed, number, "hospital")
    protocol = _PROTOCOLS[number % len(_PROTOCOLS)]
    mr = protocol.weighting.startswith("MR")
    side = round(float(rng.uniform(350, 410)), 1)
    scanner = Scanner(
        weighting=protocol.weighting,
        noise=float(rng.uniform(0.035, 0.06)),
        bias=float(rng.uniform(0.10, 0.20)) if mr else 0.0,
        blur_px=float(rng.uniform(0.45, 0.70)),
        gain=float(rng.uniform(0.4, 2.0)) if mr else 1.0,
        window=(0.0, 4000.0) if mr else (-160.0, 240.0),
        extent_mm=(round(float(rng.uniform(190, 240)), 1), side, side),
        flips=protocol.flips,
        tilt_deg=protocol.tilt_deg,
    )
    rare = [name for name in CASE_TYPES if name != "common"]
    shares: Mapping[str, float] = dict(zip(rare, (RARE * rng.dirichlet(np.full(len(rare), 0.8))).tolist(), strict=True))
    mix = CaseMix(rare=shares, fat=float(rng.uniform(0.05, 0.11)), lesions=float(rng.uniform(0.2, 0.5)))
    return Hospital(f"hospital-{number + 1}", number, scanner, mix, "rtstruct" if number % 2 == 0 else "seg")


def patient_of(hospital: Hospital, number: int, *, slices: int, size_px: int, seed: int) -> Anatomy:
    """The `number`-th patient (from 0) of a hospital, on the body's own grid."""
    rng = numpy_rng("phantom", seed, hospital.number, "patient", number)
    return draw_patient(rng, slices=slices, size_px=size_px, mix=hospital.mix)


def image_of(hospital: Hospital, number: int, *, slices: int, size_px: int, seed: int) -> tuple[Field, NDArray[np.uint8]]:
    """The image and the truth of a patient, both (slices, rows, cols) in the order in which the scanner stores them.

    Returns:
        Voxels, float32 in the scanner's units, and labels, uint8 in 0..3.
    """
    anatomy = patient_of(hospital, number, slices=slices, size_px=size_px, seed=seed)
    voxels = scan(anatomy, hospital.scanner, numpy_rng("phantom", seed, hospital.number, "scan", number))
    return stored(voxels, hospital.scanner), stored(anatomy.labels, hospital.scanner)


def write_hospital(root: Path, hospital: Hospital, *, patients: int, slices: int, size_px: int, seed: int) -> None:
    """Write a hospital's studies: `<patient>/image/*.dcm`, `<patient>/mask/RS.dcm` or `SEG.dcm`, and `index.csv` under `root`.

    The index, with the columns patient and site, is written last: where it is there, all is there. Patients' names are unique
    over hospitals; UIDs follow from all arguments but `root`.

    Args:
        root: a new or empty folder.
        hospital: one of `hospitals(…, seed=seed)`.
        patients, slices, size_px: how many patients, slices each, rows and columns each.
        seed: the seed of the hospital.

    Raises:
        FileExistsError: `root` holds something already.
        configs.files.StorageFault: the disk is full or not writable.
    """
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(
            f"{root} is not empty: a hospital's studies are not mixed with other files. Remove the folder or choose another"
        )
    names = [f"H{hospital.number + 1:02d}P{number + 1:04d}" for number in range(patients)]
    for number, name in enumerate(names):
        _write_patient(root / name, hospital, number, slices=slices, size_px=size_px, seed=seed)
    write_text(root / "index.csv", "patient,site\n" + "".join(f"{name},{hospital.name}\n" for name in names))


def _write_patient(folder: Path, hospital: Hospital, number: int, *, slices: int, size_px: int, seed: int) -> None:
    voxels, labels = image_of(hospital, number, slices=slices, size_px=size_px, seed=seed)
    affine = affine_of(hospital.scanner, labels.shape)
    uid_seed = f"wardround phantom {seed} {hospital.name} {number} {slices} {size_px}"
    dicom.write_image(
        folder / "image",
        voxels,
        affine=affine,
        patient=folder.name,
        modality=hospital.scanner.modality,
        description=hospital.scanner.weighting,
        manufacturer="wardround phantom",
        model=hospital.name,
        uid_seed=uid_seed,
    )
    image = Image(voxels=voxels, affine=affine, spacing_mm=None, patient="", source=folder / "image")
    if hospital.truth == "rtstruct":
        dicom.write_rtstruct(folder / "mask" / "RS.dcm", labels, image, class_names=CLASS_NAMES, uid_seed=uid_seed)
    else:
        dicom.write_mask(folder / "mask" / "SEG.dcm", labels, image, class_names=CLASS_NAMES, uid_seed=uid_seed)
