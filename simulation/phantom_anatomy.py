"""One synthetic patient's upper abdomen: organs, what surrounds and resembles them, and what may be wrong with them.

Pure: a generator goes in, arrays come out. What a scanner makes of it is in `phantom_scanner.py`.
Three organs are the classes. Brightness does not tell them from their surroundings: spleen, pancreas, vessels and bowel come
close to them, every patient's tissues differ a little, and some patients are rare cases whose organs look otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulation.phantom_cases import CASE_TYPES, KIDNEY, LIVER, STOMACH, TONED, CaseMix, Tissue
from simulation.phantom_shapes import Field, Mask, Space, Triple, blob, radius, smooth_field, space_of, warped


@dataclass(frozen=True)
class Anatomy:
    """A patient as nature made them; axial slices from the feet up, rows from front to back, columns from right to left.

    Attributes:
        labels: (slices, rows, cols) uint8 in 0..3, the truth: 0 background, c is CLASS_NAMES[c - 1].
        tissues: (slices, rows, cols) uint8, members of Tissue.
        texture: (slices, rows, cols) float32, mean 0 and variance 1: how a tissue varies within itself.
        tone: (len(Tissue),) float32, this patient's brightness of each tissue against the usual, in parts of
            the soft-tissue range.
        case_type: a key of CASE_TYPES.
    """

    labels: NDArray[np.uint8]
    tissues: NDArray[np.uint8]
    texture: Field
    tone: NDArray[np.float32]
    case_type: str


def draw_patient(rng: np.random.Generator, *, slices: int, size_px: int, mix: CaseMix) -> Anatomy:
    """Draw one patient from a hospital's mix.

    Args:
        rng: decides everything; the same generator state gives the same patient.
        slices: number of slices, at least 1; with 4 or more every class is in the volume.
        size_px: rows and columns of a slice, at least 32.
        mix: whom the hospital sees.

    Raises:
        ValueError: fewer slices or pixels than that.
    """
    if slices < 1 or size_px < 32:
        raise ValueError(f"a patient needs at least 1 slice of 32 pixels, not {slices} of {size_px}")
    names = [*mix.rare, "common"]
    shares = np.array([*mix.rare.values(), max(0.0, 1.0 - sum(mix.rare.values()))])
    case_type = names[int(rng.choice(len(names), p=shares / shares.sum()))]
    tone = np.zeros(len(Tissue), dtype=np.float32)
    tone[list(TONED)] = mix.tone * rng.standard_normal(len(TONED))
    for tissue, shift in CASE_TYPES[case_type].items():
        tone[tissue] += shift

    canvas = _Canvas(_placed(space_of(slices=slices, size_px=size_px), rng))
    cavity = _body(canvas, rng, fat=mix.fat, ascites=case_type == "ascites")
    _bowel(canvas, rng, cavity)
    _neighbours(canvas, rng, cavity)
    _liver(canvas, rng, cavity, lesions=_lesion_count(rng, case_type, mix))
    _kidneys(canvas, rng, cavity, polycystic=case_type == "polycystic kidneys", cysts=rng.random() < mix.lesions)
    _stomach(canvas, rng, cavity, full=case_type == "full stomach")
    shape = canvas.space.shape
    texture = 0.8 * smooth_field(rng, shape, cells=(4, 24, 24)) + 0.6 * smooth_field(rng, shape, cells=(2, 9, 9))
    return Anatomy(canvas.labels, canvas.tissues, texture.astype(np.float32), tone, case_type)


class _Canvas:
    """Tissues and labels painted over each other, the last one wins in both."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.tissues = np.zeros(space.shape, dtype=np.uint8)
        self.labels = np.zeros(space.shape, dtype=np.uint8)

    def paint(self, where: Mask, tissue: Tissue, *, label: int = 0) -> None:
        self.tissues[where] = tissue
        self.labels[where] = label


def _placed(space: Space, rng: np.random.Generator) -> Space:
    """The body lies a little turned, off centre, larger or smaller, and bent like no other; the stack reaches past the organs."""
    turn, scale = rng.normal(0, 0.10), rng.uniform(0.90, 1.12)
    dx, dy, dz = rng.normal(0, 0.03), rng.normal(0, 0.04), rng.normal(0, 0.03)
    cos, sin = np.cos(turn), np.sin(turn)
    x, y = space.x - np.float32(dx), space.y - np.float32(dy)
    turned = Space(
        x=((cos * x + sin * y) * scale).astype(np.float32),
        y=((cos * y - sin * x) * scale).astype(np.float32),
        z=np.float32(1.04) * (space.z - np.float32(0.5)) + np.float32(0.5 + dz),
    )
    return warped(turned, rng, amount=0.022)


def _around(rng: np.random.Generator, centre: Triple, spread: Triple) -> Triple:
    """A place near `centre`."""
    x, y, z = rng.normal(centre, spread)
    return float(x), float(y), float(z)


def _sized(rng: np.random.Generator, radii: Triple, spread: float = 0.12) -> Triple:
    """Radii near `radii`, each by its own factor."""
    x, y, z = np.asarray(radii) * np.exp(rng.normal(0, spread, 3))
    return float(x), float(y), float(z)


def _body(canvas: _Canvas, rng: np.random.Generator, *, fat: float, ascites: bool) -> Mask:
    """Skin fat, muscle, ribs, spine, lungs, heart and great vessels; gives back the cavity within the wall."""
    space = canvas.space
    skin = blob(
        space, rng, centre=(0, 0, 0.5), radii=(rng.uniform(0.80, 0.90), rng.uniform(0.58, 0.68), 40), bumps=0.012, cells=(1, 4, 4)
    )
    fat = float(np.clip(fat * np.exp(rng.normal(0, 0.35)), 0.02, 0.18)) / 0.75
    wall = rng.uniform(0.05, 0.08) / 0.75
    cavity: Mask = skin < 1 - fat - wall
    canvas.paint(skin < 1, Tissue.FAT)
    canvas.paint(skin < 1 - fat, Tissue.MUSCLE)
    canvas.paint(cavity, Tissue.FLUID if ascites else Tissue.FAT)
    if ascites:
        canvas.paint(cavity & (smooth_field(rng, space.shape, cells=(2, 6, 6)) > 0.3), Tissue.FAT)
    strands = smooth_field(rng, space.shape, cells=(4, 20, 20))
    canvas.paint(cavity & (strands > 1.8), Tissue.VEIN)

    angle = np.arctan2(space.y, space.x)
    rib = (np.cos(11 * angle + 9 * space.z + rng.uniform(0, 6)) > 0.72) & (np.abs(skin - (1 - fat - 0.6 * wall)) < 0.35 * wall)
    canvas.paint(rib & (space.z > 0.25) & (space.y < 0.3), Tissue.BONE)
    for side in (-1, 1):
        canvas.paint(radius(space, centre=(0.17 * side, 0.44, 0.5), radii=(0.15, 0.10, 40)) < 1, Tissue.MUSCLE)
        psoas = rng.uniform(0.06, 0.10)
        canvas.paint(
            radius(space, centre=(0.17 * side, 0.27, 0.0), radii=(psoas, 0.11, 0.7), lean=(0.05 * side, 0)) < 1, Tissue.MUSCLE
        )
        dome = blob(space, rng, centre=(0.42 * side, 0.16, 1.18), radii=(0.42, 0.42, 0.42), bumps=0.08)
        canvas.paint((dome < 1) & cavity, Tissue.LUNG)
    heart = blob(space, rng, centre=(0.08, -0.14, 1.2), radii=(0.30, 0.24, 0.28), turn=rng.normal(0.4, 0.2), bumps=0.06)
    canvas.paint((heart < 1) & cavity, Tissue.MUSCLE)
    canvas.paint((heart < 0.6) & cavity, Tissue.VEIN)
    vertebra = blob(space, rng, centre=(0, 0.26, 0.5), radii=(0.135, 0.115, 40), bumps=0.05)
    canvas.paint(radius(space, centre=(0, 0.42, 0.5), radii=(0.10, 0.085, 40)) < 1, Tissue.BONE)
    canvas.paint(radius(space, centre=(0, 0.50, 0.5), radii=(0.025, 0.09, 40)) < 1, Tissue.BONE)
    canvas.paint(vertebra < 1, Tissue.BONE)
    canvas.paint(vertebra < 0.82, Tissue.MARROW)
    canvas.paint(radius(space, centre=(0, 0.42, 0.5), radii=(0.055, 0.045, 40)) < 1, Tissue.FLUID)
    aorta = rng.uniform(0.042, 0.062)
    canvas.paint(
        radius(space, centre=_around(rng, (0.05, 0.09, 0.5), (0.015, 0.01, 0)), radii=(aorta, aorta, 40)) < 1, Tissue.ARTERY
    )
    cava = rng.uniform(0.045, 0.07)
    canvas.paint(
        radius(space, centre=_around(rng, (-0.11, 0.10, 0.5), (0.015, 0.01, 0)), radii=(cava, 0.8 * cava, 40)) < 1, Tissue.VEIN
    )
    return cavity


def _bowel(canvas: _Canvas, rng: np.random.Generator, cavity: Mask) -> None:
    """Loops with a thin wall like the stomach's, filled with chyme, fluid or gas."""
    for _ in range(int(rng.integers(7, 13))):
        centre = (rng.uniform(-0.55, 0.55), rng.uniform(-0.40, 0.10), rng.uniform(-0.1, 0.55))
        size = rng.uniform(0.07, 0.13)
        loop = blob(
            canvas.space, rng, centre=centre, radii=(size * rng.uniform(1, 1.8), size, 0.18), turn=rng.uniform(0, 3), bumps=0.08
        )
        content = (Tissue.CHYME, Tissue.CHYME, Tissue.FLUID, Tissue.GAS, Tissue.WALL)[int(rng.integers(5))]
        canvas.paint((loop < 1) & cavity, Tissue.WALL)
        canvas.paint((loop < 1 - 0.030 / size) & cavity, content)


def _neighbours(canvas: _Canvas, rng: np.random.Generator, cavity: Mask) -> None:
    """Spleen, pancreas and gall bladder: as bright as the organs, and no class."""
    space = canvas.space
    pancreas = blob(
        space,
        rng,
        centre=_around(rng, (0.05, -0.02, 0.45), (0.04, 0.03, 0.05)),
        radii=_sized(rng, (0.32, 0.07, 0.13)),
        turn=rng.normal(-0.3, 0.15),
        bumps=0.18,
    )
    canvas.paint((pancreas < 1) & cavity, Tissue.PANCREAS)
    centre = _around(rng, (0.52, 0.14, 0.66), (0.03, 0.04, 0.06))
    spleen = blob(space, rng, centre=centre, radii=_sized(rng, (0.17, 0.27, 0.30), 0.18), turn=rng.normal(0.2, 0.2), bumps=0.10)
    hollow = radius(space, centre=(centre[0] - 0.22, centre[1] - 0.06, centre[2]), radii=(0.15, 0.14, 0.5))
    canvas.paint((spleen < 1) & (hollow > 1) & cavity, Tissue.SPLEEN)


def _lesion_count(rng: np.random.Generator, case_type: str, mix: CaseMix) -> int:
    few = int(rng.integers(1, 4)) if rng.random() < mix.lesions else 0
    return int(rng.integers(8, 14)) if case_type == "metastases" else few


def _liver(canvas: _Canvas, rng: np.random.Generator, cavity: Mask, *, lesions: int) -> None:
    """Two lobes around the porta, vessels inside, lesions, and the gall bladder below."""
    space = canvas.space
    right = blob(
        space,
        rng,
        centre=_around(rng, (-0.40, 0.02, 0.64), (0.03, 0.04, 0.05)),
        radii=_sized(rng, (0.34, 0.40, 0.44)),
        turn=rng.normal(0, 0.2),
        lean=(rng.normal(0.05, 0.05), 0),
        bumps=0.10,
    )
    left = blob(
        space,
        rng,
        centre=_around(rng, (-0.02, -0.24, 0.74), (0.08, 0.04, 0.05)),
        radii=_sized(rng, (0.34, 0.16, 0.28), 0.2),
        turn=rng.normal(0.1, 0.2),
        bumps=0.12,
    )
    porta = radius(
        space, centre=_around(rng, (-0.10, 0.10, 0.46), (0.03, 0.03, 0.04)), radii=_sized(rng, (0.20, 0.14, 0.28)), turn=0.4
    )
    depth = np.minimum(right, left)
    liver = (depth < 1) & (porta > 1) & cavity
    canvas.paint(liver, Tissue.LIVER, label=LIVER)
    tree = smooth_field(rng, space.shape, cells=(2, 8, 8))
    canvas.paint(liver & (np.abs(tree) < 0.13) & (depth < 0.75), Tissue.VEIN, label=LIVER)
    kinds = (Tissue.TUMOUR, Tissue.TUMOUR, Tissue.FLUID)
    _lesions(canvas, rng, liver, count=lesions, sizes=(0.035, 0.12), tissue=kinds[int(rng.integers(3))], label=LIVER)
    bladder = blob(
        space,
        rng,
        centre=_around(rng, (-0.24, -0.16, 0.42), (0.04, 0.04, 0.05)),
        radii=_sized(rng, (0.07, 0.10, 0.13), 0.2),
        turn=rng.uniform(-1, 1),
    )
    canvas.paint((bladder < 1) & cavity, Tissue.FLUID)


def _lesions(
    canvas: _Canvas, rng: np.random.Generator, organ: Mask, *, count: int, sizes: tuple[float, float], tissue: Tissue, label: int
) -> None:
    """Round lesions at random places of an organ, cut off at its surface."""
    space = canvas.space
    seeds = np.argwhere(organ)
    for _ in range(count if len(seeds) else 0):
        k, i, j = seeds[int(rng.random() * len(seeds))]
        size = rng.uniform(*sizes)
        near = radius(space, centre=(space.x[k, i, j], space.y[k, i, j], space.z[k, i, j]), radii=(size, size, 1.2 * size))
        canvas.paint((near < 1) & organ, tissue, label=label)


def _kidneys(canvas: _Canvas, rng: np.random.Generator, cavity: Mask, *, polycystic: bool, cysts: bool) -> None:
    """Beans in a halo of fat: cortex around medulla, a hilum on the inner side, cysts."""
    space = canvas.space
    swollen = 1.25 if polycystic else 1.0
    for side in (-1, 1):
        centre = _around(rng, (0.37 * side, 0.27, 0.36 + 0.04 * side), (0.025, 0.025, 0.05))
        x, y, z = _sized(rng, (0.14, 0.18, 0.36))
        bean = blob(
            space,
            rng,
            centre=centre,
            radii=(x * swollen, y * swollen, z * swollen),
            turn=side * rng.normal(0.4, 0.25),
            lean=(-0.08 * side, 0.06),
            bumps=0.10 if polycystic else 0.06,
        )
        hilum = radius(
            space, centre=(centre[0] - 0.11 * side, centre[1] - 0.03, centre[2]), radii=(0.085, 0.05, 0.17), turn=0.3 * side
        )
        kidney = (bean < 1) & (hilum > 1) & cavity
        canvas.paint((bean < 1.28) & cavity & (canvas.tissues != Tissue.LUNG), Tissue.FAT)
        canvas.paint(kidney, Tissue.CORTEX, label=KIDNEY)
        pyramids = smooth_field(rng, space.shape, cells=(4, 22, 22))
        canvas.paint(kidney & (bean < 0.72) & (pyramids > -0.2), Tissue.MEDULLA, label=KIDNEY)
        canvas.paint((hilum < 0.45) & cavity, Tissue.VEIN)
        if polycystic:
            canvas.paint(kidney & (smooth_field(rng, space.shape, cells=(5, 17, 17)) > 0.1), Tissue.FLUID, label=KIDNEY)
        elif cysts:
            _lesions(canvas, rng, kidney, count=int(rng.integers(0, 3)), sizes=(0.03, 0.09), tissue=Tissue.FLUID, label=KIDNEY)


def _stomach(canvas: _Canvas, rng: np.random.Generator, cavity: Mask, *, full: bool) -> None:
    """A thick wall, the class, around a lumen with chyme or fluid, above which gas gathers at the front."""
    space = canvas.space
    grown = 1.3 if full else rng.uniform(0.85, 1.15)
    centre = _around(rng, (0.27, -0.16, 0.68), (0.04, 0.03, 0.05))
    x, y, z = _sized(rng, (0.29 * grown, 0.23 * grown, 0.32))
    turn, lean = rng.normal(0.5, 0.35), (rng.normal(-0.15, 0.1), 0.0)
    bumps = np.float32(0.08) * smooth_field(rng, space.shape, cells=(2, 6, 6))
    wall = 0.10 if full else rng.uniform(0.10, 0.14)
    outer, inner, lumen = (
        (radius(space, centre=centre, radii=(x - thick, y - thick, z - 0.3 * thick), turn=turn, lean=lean) + bumps < 1) & cavity
        for thick in (0.0, 0.2 * wall, min(wall, 0.7 * y))
    )
    canvas.paint(outer, Tissue.WALL, label=STOMACH)
    canvas.paint(inner, Tissue.MUCOSA, label=STOMACH)
    canvas.paint(lumen, (Tissue.CHYME, Tissue.CHYME, Tissue.FLUID)[int(rng.integers(3))])
    if full:
        canvas.paint(lumen & (smooth_field(rng, space.shape, cells=(4, 16, 16)) > 0.4), Tissue.WALL)
    canvas.paint(lumen & (space.y < centre[1] + rng.uniform(-0.25, 0.02)), Tissue.GAS)
