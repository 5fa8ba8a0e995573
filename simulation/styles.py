"""Scanner shift: the same anatomy as different scanners would show it. Pure; arrays and a generator in.

Anatomy and grid stay, so that the labels stay valid: only gamma, contrast, sharpness and noise change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter


@dataclass(frozen=True)
class Style:
    """How a scanner shows things.

    Attributes:
        gamma: exponent on intensities scaled to [0, 1]; below 1 brightens the middle.
        contrast: factor about the middle of the range.
        blur_px: standard deviation of an in-plane Gaussian, in pixels.
        noise: standard deviation of Gaussian noise, as a share of the intensity range.
    """

    gamma: float
    contrast: float
    blur_px: float
    noise: float


def styles(count: int, *, split_seed: int) -> list[Style]:
    """One style for each of `count` sites. Each property is spread evenly over its range and dealt in a random order:
    no two sites look alike, however few or many there are.
    """
    rng = np.random.default_rng([split_seed, 3])
    gamma, contrast, blur_px, noise = (
        rng.permutation(np.linspace(low, high, count)) if count > 1 else np.full(1, (low + high) / 2)
        for low, high in ((-0.6, 0.6), (0.7, 1.2), (0.0, 1.0), (0.0, 0.06))
    )
    rows = zip(np.exp(gamma).tolist(), contrast.tolist(), blur_px.tolist(), noise.tolist(), strict=True)
    return [Style(*row) for row in rows]


def restyle(voxels: NDArray[np.float32], style: Style, rng: np.random.Generator) -> NDArray[np.float32]:
    """An image as another scanner would show it, in the intensity range it had.

    Args:
        voxels: (slices, rows, columns) or (slices, rows, columns, 3), finite.

    Returns:
        Same shape, float32; a constant image comes back as it was.
    """
    low, high = np.percentile(voxels, [0.5, 99.5])
    if not high > low:
        return voxels.copy()
    scaled = np.clip((voxels - low) / (high - low), 0.0, 1.0) ** style.gamma
    scaled = 0.5 + (scaled - 0.5) * style.contrast
    scaled = gaussian_filter(scaled, (0, style.blur_px, style.blur_px, 0)[: voxels.ndim])
    scaled = scaled + style.noise * rng.standard_normal(voxels.shape)
    return np.asarray(low + np.clip(scaled, 0.0, 1.0) * (high - low), dtype=np.float32)
