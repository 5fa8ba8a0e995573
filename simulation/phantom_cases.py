"""What a synthetic patient may be made of and suffer from: classes, tissues, case types, and a hospital's mix of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

CLASS_NAMES = ("liver", "kidney", "stomach")
"""Foreground classes; class c of a label map (1-based) is CLASS_NAMES[c - 1]. Of the stomach the wall alone, a ring."""

LIVER, KIDNEY, STOMACH = 1, 2, 3


class Tissue(IntEnum):
    """What a voxel is made of; the index into a scanner's levels."""

    AIR = 0
    LUNG = 1
    GAS = 2
    FAT = 3
    MUSCLE = 4
    BONE = 5
    MARROW = 6
    ARTERY = 7
    VEIN = 8
    LIVER = 9
    CORTEX = 10
    MEDULLA = 11
    SPLEEN = 12
    WALL = 13
    CHYME = 14
    FLUID = 15
    TUMOUR = 16
    PANCREAS = 17
    MUCOSA = 18


TONED = tuple(tissue for tissue in Tissue if tissue >= Tissue.MUSCLE and tissue not in (Tissue.BONE, Tissue.MARROW))
"""Soft tissues, whose brightness varies from patient to patient."""

CASE_TYPES: Mapping[str, Mapping[Tissue, float]] = {
    "common": {},
    "fatty liver": {Tissue.LIVER: -0.30, Tissue.PANCREAS: -0.15},
    "early phase": {
        Tissue.CORTEX: 0.35,
        Tissue.MEDULLA: -0.10,
        Tissue.ARTERY: 0.45,
        Tissue.SPLEEN: 0.20,
        Tissue.LIVER: -0.08,
        Tissue.MUCOSA: 0.18,
    },
    "metastases": {},
    "polycystic kidneys": {},
    "full stomach": {Tissue.CHYME: 0.12},
    "ascites": {Tissue.LIVER: 0.12},
}
"""Kinds of patients and how their tissues' brightness differs, in parts of the scanner's soft-tissue range."""


@dataclass(frozen=True)
class CaseMix:
    """Whom a hospital sees.

    Attributes:
        rare: case type (a key of CASE_TYPES) to its probability; the rest of the patients are "common".
        fat: mean thickness of the fat under the skin, in half-widths of the image (about 0.03 to 0.15).
        tone: standard deviation of a tissue's brightness between patients, in parts of the soft-tissue range.
        lesions: probability that a patient who is no rare case has liver lesions, and that one has kidney cysts.
    """

    rare: Mapping[str, float] = field(default_factory=dict)
    fat: float = 0.07
    tone: float = 0.06
    lesions: float = 0.35

    def __post_init__(self) -> None:
        strangers = set(self.rare) - set(CASE_TYPES)
        if strangers:
            raise ValueError(f"unknown case types {sorted(strangers)}: choose from {', '.join(CASE_TYPES)}")
        if any(share < 0 for share in self.rare.values()) or sum(self.rare.values()) > 1:
            raise ValueError(f"the shares of rare cases must be at least 0 and sum up to at most 1, not {dict(self.rare)}")
