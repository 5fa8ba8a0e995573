"""Synthetic anatomy: every organ is there, varies, and cannot be had by brightness."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from numpy.typing import NDArray
from scipy.ndimage import label

from simulation.phantom import hospitals, image_of
from simulation.phantom_anatomy import Anatomy, draw_patient
from simulation.phantom_cases import CASE_TYPES, CLASS_NAMES, KIDNEY, LIVER, STOMACH, CaseMix, Tissue
from simulation.phantom_shapes import smooth_field, space_of


def drawn(seed: int, case_type: str = "common", *, slices: int = 8, size_px: int = 64) -> Anatomy:
    mix = CaseMix(rare={} if case_type == "common" else {case_type: 1.0})
    return draw_patient(np.random.default_rng(seed), slices=slices, size_px=size_px, mix=mix)


@settings(max_examples=20, deadline=None)
@given(seed=some.integers(0, 2**32), slices=some.integers(1, 9), size_px=some.integers(32, 70))
def test_shapes_dtypes_and_values(seed: int, slices: int, size_px: int) -> None:
    anatomy = drawn(seed, slices=slices, size_px=size_px)
    for array, dtype in ((anatomy.labels, np.uint8), (anatomy.tissues, np.uint8), (anatomy.texture, np.float32)):
        assert array.shape == (slices, size_px, size_px)
        assert array.dtype == dtype
    assert set(np.unique(anatomy.labels)) <= set(range(len(CLASS_NAMES) + 1))
    assert int(anatomy.tissues.max()) < len(Tissue)
    assert np.isfinite(anatomy.texture).all()
    assert anatomy.tone.shape == (len(Tissue),)


@pytest.mark.parametrize("case_type", CASE_TYPES)
def test_every_class_is_in_every_volume(case_type: str) -> None:
    for seed in range(6):
        counts = np.bincount(drawn(seed, case_type).labels.ravel(), minlength=4)
        assert (counts[1:] >= 60).all(), counts


def test_classes_are_missing_from_some_slices() -> None:
    present = np.array([[(drawn(seed).labels == value).any(axis=(1, 2)) for value in (1, 2, 3)] for seed in range(12)])
    share = present.mean(axis=(0, 2))
    assert (share > 0.4).all()
    assert (share < 0.98).all()


def test_a_class_is_made_of_its_own_tissues() -> None:
    inside = {LIVER: {Tissue.LIVER, Tissue.VEIN, Tissue.TUMOUR, Tissue.FLUID}, STOMACH: {Tissue.WALL, Tissue.MUCOSA}}
    inside[KIDNEY] = {Tissue.CORTEX, Tissue.MEDULLA, Tissue.FLUID}
    for case_type in CASE_TYPES:
        anatomy = drawn(1, case_type)
        for value, tissues in inside.items():
            assert set(np.unique(anatomy.tissues[anatomy.labels == value])) <= tissues
        for tissue in (Tissue.LIVER, Tissue.CORTEX, Tissue.MUCOSA):
            assert (anatomy.labels[anatomy.tissues == tissue] > 0).all(), "an organ's own tissue is always labelled"


def test_the_stomach_is_a_ring() -> None:
    rings = 0
    for seed in range(8):
        for plane in drawn(seed, size_px=96).labels == STOMACH:
            holes, count = label(~plane)
            rings += count > 1 and max(int((holes == hole).sum()) for hole in range(2, count + 1)) >= 20
    assert rings >= 12


def test_the_liver_is_not_convex_and_no_two_are_alike() -> None:
    livers = [drawn(seed).labels == LIVER for seed in range(8)]
    overlap = [2 * (one & other).sum() / (one.sum() + other.sum()) for one in livers for other in livers if one is not other]
    assert 0.2 < np.mean(overlap) < 0.8


def test_rare_cases_look_otherwise() -> None:
    def share(case_type: str, value: int, tissue: Tissue) -> float:
        anatomies = [drawn(seed, case_type) for seed in range(4)]
        return float(np.mean([np.mean(one.tissues[one.labels == value] == tissue) for one in anatomies]))

    assert share("polycystic kidneys", KIDNEY, Tissue.FLUID) > 0.2 > share("common", KIDNEY, Tissue.FLUID)
    for lesion in (Tissue.TUMOUR, Tissue.FLUID):
        assert share("metastases", LIVER, lesion) >= share("common", LIVER, lesion)
    for seed in range(4):
        assert drawn(seed, "fatty liver").tone[Tissue.LIVER] < drawn(seed).tone[Tissue.LIVER] - 0.2


def test_a_patient_is_the_same_at_other_resolutions() -> None:
    """The finer volume, seen at the coarser grid's places, is the coarser one but for its borders."""
    coarse, fine = drawn(5, size_px=40).labels, drawn(5, size_px=120).labels[:, 1::3, 1::3]
    assert (coarse != fine).mean() < 0.01


def test_wrong_sizes_and_mixes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 slice of 32 pixels"):
        drawn(0, size_px=16)
    with pytest.raises(ValueError, match="unknown case types"):
        CaseMix(rare={"gout": 0.1})
    with pytest.raises(ValueError, match="at most 1"):
        CaseMix(rare={"ascites": 0.7, "metastases": 0.7})


def test_a_smooth_field_has_unit_variance_everywhere_and_is_smooth() -> None:
    rng = np.random.default_rng(0)
    fields = np.stack([smooth_field(rng, (3, 24, 24), cells=(1, 3, 3)) for _ in range(800)])
    assert abs(fields.mean()) < 0.05
    np.testing.assert_allclose(fields.std(axis=0), 1, atol=0.13)
    assert np.abs(np.diff(fields, axis=-1)).max() < 1


def test_space_is_centred() -> None:
    space = space_of(slices=5, size_px=32)
    for axis, middle in ((space.x, 0), (space.y, 0), (space.z, 0.5)):
        assert float(axis.mean()) == pytest.approx(middle, abs=1e-6)
    assert float(space.x[0, 0, 0]) == pytest.approx(-1 + 1 / 32)
    assert float(space.y[0, -1, 0]) == pytest.approx(1 - 1 / 32)


def _standardised(voxels: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = np.percentile(voxels, [0.5, 99.5])
    clipped = np.clip(voxels, low, high)
    out: NDArray[np.float32] = (clipped - clipped.mean()) / clipped.std()
    return out


def _interval(brightness: NDArray[np.float32], truth: NDArray[np.bool_]) -> tuple[float, float]:
    """The interval between grid values with the highest Dice with the truth, tried one by one."""
    edges = np.linspace(-2, 5, 43)
    every, wanted = np.histogram(brightness, edges)[0], np.histogram(brightness[truth], edges)[0]
    best = (0.0, 0, 1)
    for low in range(len(edges) - 1):
        for high in range(low + 1, len(edges)):
            score = 2 * wanted[low:high].sum() / (every[low:high].sum() + truth.sum())
            best = max(best, (float(score), low, high))
    return float(edges[best[1]]), float(edges[best[2]])


def test_thresholds_that_know_the_truth_fail() -> None:
    """The best interval of brightness per class and hospital, chosen on 6 patients, reaches at most .50 Dice on 4
    others, in the mean over classes (the liver alone is above it: large and bright)."""
    scores = []
    for hospital in hospitals(4, seed=0):
        pairs = [image_of(hospital, at, slices=8, size_px=64, seed=0) for at in range(10)]
        images = [_standardised(voxels) for voxels, _ in pairs]
        for value in (LIVER, KIDNEY, STOMACH):
            train = np.stack(images[:6]), np.stack([labels == value for _, labels in pairs[:6]])
            low, high = _interval(*train)
            for image, (_, labels) in list(zip(images, pairs, strict=True))[6:]:
                taken, truth = (image >= low) & (image < high), labels == value
                scores.append(2 * (taken & truth).sum() / (taken.sum() + truth.sum()))
    assert 0.2 < np.mean(scores) <= 0.50
