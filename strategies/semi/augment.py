"""Random views of a batch of 2D images: one affine map and one change of intensity for each image of it.

What is drawn is a value (`Warp`, `Intensity`) that can be applied again: to the labels, or to a teacher's probabilities
of the original image. All randomness comes from the generator that is handed in. Resampling is MONAI's batched
`AffineTransform`; its intensity transforms take one image and one number at a time (10 times the cost for a batch of
8), so those are written out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

import strategies.torchvision_ops  # noqa: F401  before MONAI, which imports torchvision where it finds it

from monai.networks.layers.spatial_transforms import AffineTransform  # isort: skip

_bilinear = AffineTransform(normalized=True, mode="bilinear", padding_mode="zeros", align_corners=False, reverse_indexing=False)
_nearest = AffineTransform(normalized=True, mode="nearest", padding_mode="zeros", align_corners=False, reverse_indexing=False)


@dataclass(frozen=True)
class Warp:
    """One affine map for each image of a batch. What lies outside an image is 0: black, background, and not `valid`.

    Attributes:
        theta: (B, 2, 3) float32, from the coordinates (x, y, 1) of the result to those of the image, both from −1 to 1
            between the outer edges of the border pixels (torch's `affine_grid` with `align_corners=False`).
        size: (H, W) of the images, and of the result.
    """

    theta: Tensor
    size: tuple[int, int]

    def images(self, images: Tensor) -> Tensor:
        """(B, K, H, W) float, resampled bilinearly."""
        return self._resample(images, _bilinear)

    def probs(self, probs: Tensor) -> Tensor:
        """(B, C + 1, H, W) probabilities, resampled bilinearly: they sum to 1 where `valid`, to less elsewhere."""
        return self._resample(probs, _bilinear)

    def labels(self, labels: Tensor, *, outside: int = 0) -> Tensor:
        """(B, H, W) int64 or uint8 class labels, each the nearest one; `outside` for pixels from outside of the image.

        Background is right for images padded with black, as here; pass IGNORE where the outside is simply unknown.
        """
        shifted = labels.unsqueeze(1).float() - outside  # the resampler fills with 0
        return (self._resample(shifted, _nearest).squeeze(1) + outside).to(labels.dtype)

    @property
    def valid(self) -> Tensor:
        """(B, H, W) bool on the device of `theta`: whether all that a pixel is interpolated from lies in the image."""
        inside = torch.ones(len(self.theta), 1, *self.size, device=self.theta.device)
        return self._resample(inside, _bilinear).squeeze(1) > 1.0 - 1e-3

    def _resample(self, batch: Tensor, how: AffineTransform) -> Tensor:
        expected = (len(self.theta), *self.size)
        if (len(batch), *batch.shape[2:]) != expected:
            raise ValueError(f"a warp of (B, H, W) = {expected} does not fit a batch of shape {tuple(batch.shape)}")
        result: Tensor = how(batch, self.theta.to(batch.device))
        return result


def draw_warp(
    count: int,
    *,
    size: tuple[int, int],
    generator: torch.Generator,
    flip: bool = True,
    quarter_turns: bool = False,
    degrees: float = 20.0,
    scale: float = 0.15,
    shift: float = 0.05,
) -> Warp:
    """A random affine map for each of `count` images: rotation, zoom and shift without shear, and flips.

    Args:
        count: B.
        size: (H, W) in pixels.
        generator: its state decides everything; it is advanced by the same amount whatever the options.
        flip: mirror left-right and top-bottom, each with probability ½. A mirrored body has its liver on the left:
            switch it off where a class is told from another by its side alone (left and right kidney).
        quarter_turns: turn by 0°, 90°, 180° or 270° as well.
        degrees: rotate by up to this much, either way.
        scale: zoom by 1 − scale to 1 + scale; below 1.
        shift: move by up to this share of a side, either way.
    """
    drawn = torch.rand(7, count, generator=generator, device=generator.device)
    flip_x, flip_y, turns, angle, zoom, move_x, move_y = drawn
    radians = (2 * angle - 1) * math.radians(degrees)
    if quarter_turns:
        radians = radians + (4 * turns).floor() * (math.pi / 2)
    shrink = 1.0 / (1.0 + (2 * zoom - 1) * scale)
    cos, sin = radians.cos() * shrink, radians.sin() * shrink
    mirror_x = torch.where((flip_x < 0.5) & flip, -1.0, 1.0)
    mirror_y = torch.where((flip_y < 0.5) & flip, -1.0, 1.0)
    aspect = size[0] / size[1]  # coordinates are in half sides: a turn would shear an image that is not square
    row_x = torch.stack([cos * mirror_x, -sin * mirror_y * aspect, (2 * move_x - 1) * 2 * shift], dim=1)
    row_y = torch.stack([sin * mirror_x / aspect, cos * mirror_y, (2 * move_y - 1) * 2 * shift], dim=1)
    return Warp(theta=torch.stack([row_x, row_y], dim=1), size=size)


@dataclass(frozen=True)
class Intensity:
    """One change of grey values for each image of a batch; an image's channels share its parameters, but not its noise.

    Attributes:
        gamma: (B,) above 0, the exponent.
        contrast: (B,) factor on the distance from the image's mean.
        brightness: (B,) what is added.
        noise: (B, K, H, W) what is added to each pixel.
    """

    gamma: Tensor
    contrast: Tensor
    brightness: Tensor
    noise: Tensor

    def images(self, images: Tensor) -> Tensor:
        """(B, K, H, W) float32 in [0, 1] → the same; values outside of [0, 1] are cut off, before and after."""
        gamma, contrast, brightness = (
            parameter.to(images).view(-1, 1, 1, 1) for parameter in (self.gamma, self.contrast, self.brightness)
        )
        changed = images.clamp(0.0, 1.0).pow(gamma)
        offset = changed.mean(dim=(1, 2, 3), keepdim=True) * (1.0 - contrast) + brightness
        return changed.mul_(contrast).add_(offset).add_(self.noise.to(images)).clamp_(0.0, 1.0)


def draw_intensity(
    shape: tuple[int, int, int, int] | torch.Size,
    *,
    generator: torch.Generator,
    gamma: float = 1.4,
    contrast: float = 0.2,
    brightness: float = 0.1,
    noise: float = 0.05,
) -> Intensity:
    """A random change of intensity for each image, as between scanners and protocols.

    Args:
        shape: (B, K, H, W) of the images.
        generator: its state decides everything.
        gamma: exponents from 1/gamma to gamma, evenly in the logarithm.
        contrast: factors from 1 − contrast to 1 + contrast.
        brightness: offsets from −brightness to brightness.
        noise: Gaussian noise of a standard deviation from 0 to this, drawn per image.
    """
    where = generator.device
    exponent, factor, offset, spread = torch.rand(4, shape[0], generator=generator, device=where)
    return Intensity(
        gamma=((2 * exponent - 1) * math.log(gamma)).exp(),
        contrast=1 + (2 * factor - 1) * contrast,
        brightness=(2 * offset - 1) * brightness,
        noise=torch.randn(*shape, generator=generator, device=where) * (spread * noise).view(-1, 1, 1, 1),
    )


def augment(images: Tensor, labels: Tensor, *, generator: torch.Generator, flip: bool = True) -> tuple[Tensor, Tensor]:
    """New views of labelled images: a random warp of image and labels together, then a random change of intensity.

    Args:
        images: (B, K, H, W) float32 in [0, 1].
        labels: (B, H, W) int64.
        generator: the only randomness: the same state gives the same result.
        flip: see `draw_warp`.

    Returns:
        Images and labels in the same shapes and dtypes; the given ones are left alone.
    """
    height, width = images.shape[2:]
    warp = draw_warp(len(images), size=(height, width), generator=generator, flip=flip)
    intensity = draw_intensity(images.shape, generator=generator)
    return intensity.images(warp.images(images)), warp.labels(labels)


BLUR_HIGHEST_PX = 2


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Each image smoothed by a Gaussian of its own width; the border's values go on outside.

    Args:
        images: (B, K, H, W) float.
        sigma: (B,) in pixels, from 0 (left as it is) to `BLUR_HIGHEST_PX`.
    """
    if float(sigma.max()) > BLUR_HIGHEST_PX:
        raise ValueError(f"a blur of sigma {float(sigma.max()):g} px is cut off: at most {BLUR_HIGHEST_PX} px")
    batch, channels = images.shape[:2]
    radius = 3 * BLUR_HIGHEST_PX
    places = torch.arange(-radius, radius + 1, device=sigma.device)
    weights = (-0.5 * (places / sigma.clamp(min=1e-3)[:, None]).square()).softmax(dim=1).to(images)
    kernel = weights.repeat_interleave(channels, dim=0)  # one group of the convolution for each channel of each image
    one = functional.pad(images.reshape(1, batch * channels, *images.shape[2:]), (radius,) * 4, mode="replicate")
    across = functional.conv2d(one, kernel[:, None, None, :], groups=batch * channels)
    return functional.conv2d(across, kernel[:, None, :, None], groups=batch * channels).view_as(images)
