"""What a scanner makes of an anatomy: brightness of the tissues, blur, bias field, noise, and the way the slices lie in space.

Pure. Brightness is in the scanner's own units: about 0 to 1000 for MR, which has none; Hounsfield units for CT, cut to a
soft-tissue window as many archives keep it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from simulation.phantom_anatomy import Anatomy
from simulation.phantom_cases import Tissue
from simulation.phantom_shapes import Field, smooth_field

Weighting = Literal["MR venous", "CT venous", "MR late", "CT early"]
Scalar = TypeVar("Scalar", bound=np.generic)

_LEVELS: Mapping[str, tuple[float, ...]] = {
    # air, lung, gas, fat, muscle, bone, marrow, artery, vein, liver, cortex, medulla, spleen, wall, chyme, fluid,
    # tumour, pancreas, mucosa
    "MR venous": (10, 40, 10, 130, 300, 60, 230, 700, 640, 560, 840, 700, 450, 330, 150, 100, 330, 430, 740),
    "CT venous": (-1000, -800, -900, -95, 58, 420, 190, 150, 155, 115, 205, 165, 95, 60, 5, 0, 62, 85, 165),
    "MR late": (10, 40, 10, 110, 250, 60, 200, 330, 300, 640, 760, 680, 350, 270, 120, 80, 250, 380, 540),
    "CT early": (-1000, -800, -900, -100, 52, 420, 170, 230, 75, 90, 220, 150, 130, 55, 5, 0, 45, 85, 165),
}
"""Usual brightness of each member of Tissue."""

_SOFT_RANGE: Mapping[str, float] = {"MR venous": 600, "CT venous": 160, "MR late": 550, "CT early": 150}
"""What one unit of an anatomy's tone is in brightness."""

_TEXTURE = np.zeros(len(Tissue), dtype=np.float32)
_TEXTURE[[Tissue.FAT, Tissue.MUSCLE, Tissue.WALL, Tissue.MUCOSA, Tissue.SPLEEN]] = 0.02
_TEXTURE[[Tissue.LUNG, Tissue.MARROW, Tissue.CHYME, Tissue.CORTEX, Tissue.MEDULLA, Tissue.TUMOUR]] = 0.05
_TEXTURE[[Tissue.LIVER, Tissue.PANCREAS]] = 0.10


@dataclass(frozen=True)
class Scanner:
    """One hospital's machine and protocol.

    Attributes:
        weighting: which contrast it shows.
        noise: standard deviation of the noise, in parts of the soft-tissue range; Rician for MR, Gaussian and streaky for CT.
        bias: size of the slow brightness change over the image (MR's coil), 0 for none.
        blur_px: standard deviation of the point spread in the slice, pixels.
        gain: factor on MR brightness, which has no unit; 1 for CT.
        window: lowest and highest brightness kept.
        extent_mm: size of the imaged block along (slice, row, column); the spacing follows from the grid.
        flips: which of (slices, rows, columns) are stored the other way round than feet to head, front to back, right to left.
        tilt_deg: how the stack is tilted around the patient's x and z axes: an oblique acquisition.
    """

    weighting: Weighting
    noise: float
    bias: float
    blur_px: float
    gain: float
    window: tuple[float, float]
    extent_mm: tuple[float, float, float]
    flips: tuple[bool, bool, bool]
    tilt_deg: tuple[float, float]

    @property
    def modality(self) -> Literal["MR", "CT"]:
        """DICOM's word for the kind of machine."""
        return "MR" if self.weighting.startswith("MR") else "CT"


def scan(anatomy: Anatomy, scanner: Scanner, rng: np.random.Generator) -> Field:
    """The image of an anatomy: (slices, rows, cols) float32 on the anatomy's own grid, in the scanner's units."""
    soft = _SOFT_RANGE[scanner.weighting]
    levels = np.asarray(_LEVELS[scanner.weighting], dtype=np.float32) + soft * anatomy.tone
    ideal = levels[anatomy.tissues] + soft * _TEXTURE[anatomy.tissues] * anatomy.texture
    ideal = np.clip(ideal, *scanner.window) if scanner.modality == "CT" else np.maximum(ideal, 0)
    image = gaussian_filter(ideal, sigma=(0, scanner.blur_px, scanner.blur_px))
    sigma = np.float32(soft * scanner.noise)
    if scanner.modality == "MR":
        coil = smooth_field(rng, image.shape, cells=(1, 2, 2))
        image = image * np.exp(np.float32(scanner.bias) * coil)
        real = image + sigma * rng.standard_normal(image.shape, dtype=np.float32)
        image = np.float32(scanner.gain) * np.hypot(real, sigma * rng.standard_normal(image.shape, dtype=np.float32))
    else:
        grain = rng.standard_normal(image.shape, dtype=np.float32)
        grain += 1.5 * gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), sigma=(0, 0.5, 1.2))
        image = image + sigma * grain
    out: Field = np.clip(image, *scanner.window).astype(np.float32)
    return out


def stored(volume: NDArray[Scalar], scanner: Scanner) -> NDArray[Scalar]:
    """A volume (image or labels) on the anatomy's grid in the order in which the scanner stores slices, rows and columns."""
    return np.ascontiguousarray(volume[tuple(slice(None, None, -1 if flip else 1) for flip in scanner.flips)])


def affine_of(scanner: Scanner, shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """(4, 4) float64, stored index (slice, row, col, 1) to patient coordinates in mm (LPS); the stack's middle is the origin.

    Args:
        scanner: whose storage order, extent and tilt count.
        shape: (slices, rows, cols) as stored.
    """
    axes = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], dtype=np.float64)  # columns: directions of slice, row, col
    axes = axes * np.where(scanner.flips, -1.0, 1.0)
    about_x, about_z = np.deg2rad(scanner.tilt_deg)
    tilt = np.array([[1, 0, 0], [0, np.cos(about_x), -np.sin(about_x)], [0, np.sin(about_x), np.cos(about_x)]])
    spin = np.array([[np.cos(about_z), -np.sin(about_z), 0], [np.sin(about_z), np.cos(about_z), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = (spin @ tilt @ axes) * (np.asarray(scanner.extent_mm) / shape)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine
