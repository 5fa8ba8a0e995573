"""Synthetic scenes for training a promptable segmenter: organs, walls and lesions that no patient ever had.

A scene is drawn like a slice of a scan: tissue of several kinds, in or without a body, and on it objects with
texture: round, bent and lobed ones, walls around a lumen, crescents, neighbours that touch or wrap around another. An
outline is what an expert would draw, which is not always where brightness changes: muscles stand in a ventricle that is
outlined around them, and a tissue of the same brightness may begin where an object ends. Then it is imaged:
blurred, shaded by a bias field, noisy like MR (Rician), CT (Gaussian) or ultrasound (speckle), at low or high
resolution, inverted or not, padded or not. Most borders are plain to see, some hardly visible. Everything is drawn for a whole
batch at once, and follows from the generator alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

PAIRS = 4
"""Shapes in a scene; each has an outer part and, where it is a wall, a lumen: two labels a shape."""

OBJECTS = 2 * PAIRS


@dataclass(frozen=True)
class Scenes:
    """Images and what is in them.

    Attributes:
        images: (B, 1, S, S) float32 in [0, 1].
        labels: (B, S, S) int64; k in 1..OBJECTS where object k is what is seen, 0 elsewhere. Not every k appears.
        seen: (B, OBJECTS) float32 in [0, 1]; the share of object k + 1 that no later object covers and the frame leaves.
    """

    images: Tensor
    labels: Tensor
    seen: Tensor


class _Random(NamedTuple):
    """Draws for a batch; every method gives float32 on the generator's device."""

    generator: Generator
    batch: int
    side: int
    ease: float

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        draw = torch.rand(self.batch, *shape, generator=self.generator, device=self.generator.device)
        return low + (high - low) * draw

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape, generator=self.generator, device=self.generator.device)

    def chance(self, probability: float, *shape: int) -> Tensor:
        return (self.uniform(0, 1, *shape) < probability).float()

    def field(self, channels: int, cells: int) -> Tensor:
        """Smooth noise (B, channels, S, S) of unit variance at its knots, `cells` of them along a side."""
        knots = self.normal(channels, cells, cells)
        return F.interpolate(knots, size=(self.side, self.side), mode="bicubic", align_corners=True)

    def pick(self, low: int, high: int) -> int:
        """One whole number in [low, high] for the whole batch: sizes of tensors can't differ within one."""
        return int(torch.randint(low, high + 1, (), generator=self.generator, device=self.generator.device))


def draw(generator: Generator, *, batch: int, side: int = 128, ease: float = 0.0) -> Scenes:
    """`batch` scenes of `side` × `side` pixels; `ease` from 0 to 1 makes borders plainer, textures and noise weaker."""
    rng = _Random(generator, batch, side, ease)
    depth_px, plain = _shapes(rng)
    canvas, labels = _paint(rng, depth_px, _deceptions(rng, depth_px), plain)
    images, labels = _image(rng, canvas, labels)
    whole = (depth_px > 0).sum((2, 3))
    shown = F.one_hot(labels, OBJECTS + 1).sum((1, 2))[:, 1:]
    return Scenes(images, labels, shown / whole.clamp(min=1))


def _shapes(rng: _Random) -> tuple[Tensor, Tensor]:
    """About the depth below each object's border in pixels, (B, OBJECTS, S, S), negative outside and where absent; and which
    are about ellipses, (B, OBJECTS) of 0 and 1."""
    batch, side = rng.batch, rng.side
    centre, radius, wraps = _places(rng)
    line = torch.linspace(-1, 1, side, device=radius.device)
    ground = torch.stack(torch.meshgrid(line, line, indexing="ij"))[None]
    ground = ground + rng.uniform(0, 0.06, 1, 1, 1) * rng.field(2, 6)
    offset = ground[:, None] - centre[..., None, None]  # B, PAIRS, 2, S, S

    def column(values: Tensor) -> Tensor:
        return values[..., None, None]

    plain = rng.chance(0.5, PAIRS)  # about an ellipse
    angle = rng.uniform(0, 2 * torch.pi, PAIRS)
    stretch = torch.exp(rng.uniform(-0.6, 0.6, PAIRS) * (1 - 0.5 * plain))
    cos, sin = column(torch.cos(angle)), column(torch.sin(angle))
    u = (cos * offset[:, :, 0] + sin * offset[:, :, 1]) / column(radius * stretch)
    v = (cos * offset[:, :, 1] - sin * offset[:, :, 0]) / column(radius / stretch)
    v = v + column(0.5 * (1 - plain) * rng.chance(0.5, PAIRS) * rng.normal(PAIRS)) * (u.square().clamp(max=4) - 0.5)  # bent
    rho = torch.sqrt(u.square() + v.square() + 1e-6)
    lobes = _lobes(rng, u / rho, v / rho, strength=(1 - 0.85 * plain) * rng.uniform(0, 1, PAIRS).square())
    rough = column(0.25 * rng.chance(0.35, PAIRS) * (1 - plain) * rng.uniform(0, 1, PAIRS)) * rng.field(PAIRS, rng.pick(8, 16))
    outer = 1 + lobes + rough - rho
    outer = torch.minimum(outer, _room_beside(rng, outer, radius, wraps))

    kind = torch.where(wraps > 0, 1.0, rng.uniform(0, 1, PAIRS))  # what wraps around another has no lumen of its own
    wall, crescent = (kind < 0.22).float(), ((kind >= 0.22) & (kind < 0.42)).float()
    reach = wall * rng.uniform(0, 0.15, PAIRS) + crescent * rng.uniform(0.35, 0.8, PAIRS)
    inner_size = wall * rng.uniform(0.4, 0.88, PAIRS) + crescent * rng.uniform(0.6, 1.05, PAIRS)
    turn = rng.uniform(0, 2 * torch.pi, PAIRS)
    shifted = (u - column(reach * torch.cos(turn))).square() + (v - column(reach * torch.sin(turn))).square()
    inner = column(inner_size) + 0.7 * lobes - torch.sqrt(shifted + 1e-6)

    hollow = column(((wall + crescent) > 0).float())
    flesh = torch.where(hollow > 0, torch.minimum(outer, -inner), outer)
    lumen = torch.where(column(wall) > 0, torch.minimum(outer, inner), torch.full_like(inner, -10.0))
    depth = torch.stack([flesh, lumen], 2) * column(radius)[:, :, None] * (side / 2)
    return depth.reshape(batch, OBJECTS, side, side), plain.repeat_interleave(2, dim=1)


def _places(rng: _Random) -> tuple[Tensor, Tensor, Tensor]:
    """Centres (B, PAIRS, 2) and radii (B, PAIRS) in half sides of the image, large first, some beside another; and which
    of them wrap around the one before (B, PAIRS), as 0 and 1."""
    radius = torch.exp(rng.uniform(-2.5, 0.5, PAIRS)).sort(1, descending=True).values
    centre = rng.uniform(-0.75, 0.75, PAIRS, 2) * (1 - 0.5 * radius[..., None])
    wraps = torch.zeros_like(radius)
    for pair in range(1, PAIRS):
        angle = rng.uniform(0, 2 * torch.pi)
        wrapping = rng.chance(0.35)
        apart = torch.where(wrapping > 0, rng.uniform(0.45, 0.8), rng.uniform(0.85, 1.3))
        gap = (radius[:, pair] + radius[:, pair - 1]) * apart
        beside = centre[:, pair - 1] + torch.stack([torch.sin(angle), torch.cos(angle)], -1) * gap[:, None]
        fits = (beside.abs().amax(1) < 0.9).float() * rng.chance(0.6)
        centre[:, pair] = torch.where(fits[:, None] > 0, beside, centre[:, pair])
        wraps[:, pair] = fits * wrapping
    return centre, radius, wraps


def _room_beside(rng: _Random, outer: Tensor, radius: Tensor, wraps: Tensor) -> Tensor:
    """How deep a place is outside of the shape before (B, PAIRS, S, S), in radii; without bounds for what wraps around nothing.

    The right ventricle wraps around the left one so: a crescent with horns, a thin wall away from what it lies on.
    """
    ratio = (radius.roll(1, 1) / radius)[..., None, None]
    wall = rng.uniform(0, 0.15, PAIRS)[..., None, None]
    return torch.where(wraps[..., None, None] > 0, -outer.roll(1, 1) * ratio - wall, torch.full_like(outer, 10.0))


def _lobes(rng: _Random, cos: Tensor, sin: Tensor, *, strength: Tensor) -> Tensor:
    """Fourier series in the angle: how much further out the border lies, in radii; `strength` (B, PAIRS) in [0, 1]."""
    real, imaginary, lobes = cos, sin, torch.zeros_like(cos)
    for order in range(2, 6):
        real, imaginary = real * cos - imaginary * sin, real * sin + imaginary * cos
        weights = 0.5 / order * strength[:, None] * rng.normal(2, PAIRS)
        lobes = lobes + weights[:, 0, :, None, None] * real + weights[:, 1, :, None, None] * imaginary
    return lobes


def _deceptions(rng: _Random, depth_px: Tensor) -> Tensor:
    """How much further in (or, negative, out) an object's brightness ends than its outline, (B, OBJECTS, S, S) in pixels.

    Nothing for most objects. In others, tissue from around stands in patches within the outline, near its border and deeper;
    around a few, patches just outside are as bright as the object.
    """
    size_px = (depth_px > 0).sum((2, 3)).sqrt()[..., None, None]
    patches = (rng.field(OBJECTS, rng.pick(10, 28)) - rng.uniform(0.3, 1.2, OBJECTS, 1, 1)).clamp(min=0)
    kind = rng.uniform(0, 1, OBJECTS, 1, 1)
    strength = rng.uniform(0.1, 0.5, OBJECTS, 1, 1) * ((kind < 0.3).float() - 0.6 * (kind > 0.88).float())
    return (strength * size_px * patches).clamp(min=-4)


def _paint(rng: _Random, depth_px: Tensor, deceived_px: Tensor, plain: Tensor) -> tuple[Tensor, Tensor]:
    """Tissue with objects on it: (B, S, S) intensities, about in [0, 1], and labels; objects cover earlier ones."""
    canvas = _tissue(rng)
    labels = torch.zeros_like(canvas, dtype=torch.int64)
    texture = rng.field(OBJECTS, rng.pick(6, 40))
    spots = torch.sigmoid(8 * (rng.field(1, rng.pick(14, 36))[:, 0] - 1.2))
    softness = torch.exp(rng.uniform(-1.2, 0.9, OBJECTS))
    # Round tumours in muscle, seen by a thin capsule or hardly at all: there the box says more than the picture.
    hidden = (rng.uniform(0, 1, OBJECTS) < (0.2 + 0.25 * plain) * (1 - 0.6 * rng.ease)).float()
    contrast = torch.exp(rng.uniform(-1.7 + 0.5 * rng.ease, -0.5, OBJECTS) - 1.0 * hidden)
    contrast = contrast * torch.sign(rng.uniform(-1, 1, OBJECTS))
    # texture stays below the step at the border, or no eye could find it
    grain = rng.uniform(0, 0.5, OBJECTS).square() * (1 - rng.ease)
    grain = torch.minimum(grain, 0.6 * contrast.abs())
    spotted = rng.chance(0.3, OBJECTS) * rng.uniform(-1, 1, OBJECTS) * torch.minimum(contrast.abs(), contrast.new_tensor(0.3))
    rim = torch.maximum(rng.chance(0.15, OBJECTS), hidden * rng.chance(0.4, OBJECTS)) * rng.uniform(-0.3, 0.3, OBJECTS)

    def column(values: Tensor, k: int) -> Tensor:
        return values[:, k, None, None]

    for k in range(OBJECTS):
        inside = depth_px[:, k]
        cover = torch.sigmoid((inside - deceived_px[:, k]) / column(softness, k))
        around = torch.sigmoid(-inside.abs() / 4) * (inside < 0)  # what it must stand out from
        mean = (canvas * around).sum((1, 2), keepdim=True) / (around.sum((1, 2), keepdim=True) + 1e-3)
        step = column(contrast, k)
        step = torch.where((mean + step < 0) | (mean + step > 1), -step, step)
        value = mean + step + column(grain, k) * texture[:, k] + column(spotted, k) * spots
        canvas = canvas * (1 - cover) + value * cover + column(rim, k) * torch.exp(-inside.square() / 3)
        labels = torch.where(inside > 0, k + 1, labels)
    return canvas, labels


def _tissue(rng: _Random) -> Tensor:
    """Background (B, S, S): patches of several tissues, in a body with air around it or filling the picture."""
    kinds = 4
    shares = torch.softmax(rng.uniform(1, 8, 1, 1, 1) * rng.field(kinds, rng.pick(3, 12)), 1)
    spread = rng.uniform(0.05, 0.8, 1) * (1 - 0.8 * rng.ease)
    values = rng.uniform(0, 1, 1) * (1 - spread) + spread * rng.uniform(0, 1, kinds)
    tissue = (shares * values[..., None, None]).sum(1)
    tissue = tissue + (1 - rng.ease) * rng.uniform(0, 0.3, 1, 1).square() * rng.field(1, rng.pick(10, 50))[:, 0]
    line = torch.linspace(-1, 1, rng.side, device=tissue.device)
    y, x = torch.meshgrid(line, line, indexing="ij")
    reach = rng.uniform(0.6, 1.1, 2)
    rho = torch.sqrt((y / reach[:, 0, None, None]).square() + (x / reach[:, 1, None, None]).square())
    body = torch.sigmoid((1 - rho + 0.1 * rng.field(1, 4)[:, 0]) * 30)
    air = rng.chance(0.5, 1, 1)
    return tissue * (1 - air * (1 - body))


def _image(rng: _Random, canvas: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The scanner: resolution, bias field, contrast curve, noise, inversion, clipping to percentiles, padding."""
    picture = canvas[:, None]
    coarse = rng.pick(rng.side * 3 // 10, rng.side)
    if coarse < rng.side and rng.pick(0, 1):
        noisy = F.interpolate(picture, size=(coarse, coarse), mode="bilinear", antialias=True)
        noisy = _noise(rng._replace(side=coarse), noisy, share=0.7)  # the noise of a coarse scan is coarse
        picture = F.interpolate(noisy, size=(rng.side, rng.side), mode="bicubic")
    picture = picture * torch.exp(0.3 * rng.uniform(0, 1, 1, 1, 1) * rng.field(1, 3))
    picture = _noise(rng, picture, share=1.0)
    picture = _stretch(picture, rng)
    picture = picture ** torch.exp(0.4 * rng.normal(1, 1, 1))
    flipped = rng.chance(0.3, 1, 1, 1)
    picture = flipped * (1 - picture) + (1 - flipped) * picture
    keep = _frame(rng)
    return (picture * keep).contiguous(), labels * keep[:, 0].long()


def _noise(rng: _Random, picture: Tensor, *, share: float) -> Tensor:
    """Gaussian, Rician (magnitude of a complex signal) or speckle noise (grows with the signal), by image."""
    level = 0.1 * (1 - rng.ease) * share * rng.uniform(0, 1, 1, 1, 1).square()
    kind = rng.uniform(0, 1, 1, 1, 1)
    shape = (1, rng.side, rng.side)
    first, second = rng.normal(*shape), rng.normal(*shape)
    gaussian = picture + level * first
    rician = torch.sqrt((picture + level * first).square() + (level * second).square())
    grains = F.avg_pool2d(second, 3, stride=1, padding=1) * 3
    speckle = picture * (1 + 2.5 * level * grains)
    return torch.where(kind < 0.4, gaussian, torch.where(kind < 0.8, rician, speckle))


def _stretch(picture: Tensor, rng: _Random) -> Tensor:
    """Clip each image to low and high percentiles and scale to [0, 1], as images of patients are."""
    flat = picture[..., ::2, ::2].flatten(1).sort(1).values
    last = flat.shape[1] - 1
    low = flat.gather(1, (last * rng.uniform(0, 0.01, 1)).long())
    high = flat.gather(1, (last * rng.uniform(0.985, 1, 1)).long())
    low, high = low[..., None, None], high[..., None, None]
    return ((picture - low) / (high - low).clamp(min=1e-3)).clamp(0, 1)


def _frame(rng: _Random) -> Tensor:
    """(B, 1, S, S): 1 in the picture, 0 in the black bars that padding to a square leaves on some images."""
    bar = 0.22 * rng.side * rng.chance(0.4, 1, 1) * rng.uniform(0, 1, 1, 1)
    place = torch.arange(rng.side, device=bar.device)
    rows = ((place >= bar) & (place < rng.side - bar)).float()  # B, 1, S
    upright = rng.chance(0.5, 1, 1, 1)
    return upright * rows[:, :, None, :] + (1 - upright) * rows[:, :, :, None]
