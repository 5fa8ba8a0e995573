"""Scanners: units, noise, bias and orientation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulation.phantom import hospitals
from simulation.phantom_anatomy import Anatomy, draw_patient
from simulation.phantom_cases import CaseMix, Tissue
from simulation.phantom_scanner import Scanner, affine_of, scan, stored

SCANNERS = [one.scanner for one in hospitals(4, seed=0)]


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return draw_patient(np.random.default_rng(2), slices=6, size_px=64, mix=CaseMix())


@pytest.mark.parametrize("scanner", SCANNERS, ids=lambda one: one.weighting)
def test_scan_is_float32_in_the_scanners_window(anatomy: Anatomy, scanner: Scanner) -> None:
    voxels = scan(anatomy, scanner, np.random.default_rng(0))
    assert voxels.dtype == np.float32
    assert voxels.shape == anatomy.labels.shape
    assert scanner.window[0] <= voxels.min() < voxels.max() <= scanner.window[1]
    assert len(np.unique(voxels)) > 1000


@pytest.mark.parametrize("scanner", SCANNERS, ids=lambda one: one.weighting)
def test_noise_grows_with_its_setting_and_without_it_tissues_are_told_apart(anatomy: Anatomy, scanner: Scanner) -> None:
    def spread(noise: float, seed: int) -> float:
        once, twice = (
            scan(anatomy, replace(scanner, noise=noise, bias=0.0), np.random.default_rng(seed + at)) for at in range(2)
        )
        return float(np.std((once - twice)[anatomy.tissues == Tissue.LIVER]))

    assert spread(0.0, 0) == 0
    assert spread(0.10, 0) == pytest.approx(2 * spread(0.05, 0), rel=0.1)
    clean = scan(anatomy, replace(scanner, noise=0.0, bias=0.0, blur_px=0.1), np.random.default_rng(0))
    means = {tissue: float(clean[anatomy.tissues == tissue].mean()) for tissue in (Tissue.AIR, Tissue.FAT, Tissue.LIVER)}
    assert means[Tissue.AIR] < means[Tissue.FAT] < means[Tissue.LIVER]


def test_a_bias_field_is_slow_and_multiplies(anatomy: Anatomy) -> None:
    scanner = replace(SCANNERS[0], noise=0.0)
    plain = scan(anatomy, replace(scanner, bias=0.0), np.random.default_rng(0))
    biased = scan(anatomy, replace(scanner, bias=0.2), np.random.default_rng(0))
    ratio = np.log(biased[plain > 50] / plain[plain > 50])
    assert 0.02 < ratio.std() < 0.6
    both = (plain[..., 1:] > 50) & (plain[..., :-1] > 50)
    steps = np.diff(np.log(np.maximum(biased, 1e-6) / np.maximum(plain, 1e-6)), axis=-1)[both]
    assert np.abs(steps).max() < 0.05


@pytest.mark.parametrize("scanner", SCANNERS, ids=lambda one: one.weighting)
def test_storage_order_and_affine_tell_the_same_place(scanner: Scanner) -> None:
    """A voxel's place in the patient does not depend on how the stack is stored; tilt turns all places alike."""
    shape = (4, 6, 8)
    plain = replace(scanner, flips=(False, False, False))
    canonical = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    here, there = affine_of(scanner, shape), affine_of(plain, shape)
    index = np.stack([stored(canonical[..., axis], scanner) for axis in range(3)], axis=-1)
    where = canonical @ here[:3, :3].T + here[:3, 3]
    expected = index @ there[:3, :3].T + there[:3, 3]
    np.testing.assert_allclose(where, expected, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(here[:3, :3], axis=0) * shape, scanner.extent_mm)
    units = here[:3, :3] / np.linalg.norm(here[:3, :3], axis=0)
    np.testing.assert_allclose(units.T @ units, np.eye(3), atol=1e-12)


def test_an_untilted_unflipped_stack_is_plain_axial() -> None:
    scanner = replace(SCANNERS[0], flips=(False, False, False), tilt_deg=(0, 0), extent_mm=(80, 320, 320))
    expected = np.array([[0, 0, 5, -157.5], [0, 5, 0, -157.5], [10, 0, 0, -35], [0, 0, 0, 1]])
    np.testing.assert_allclose(affine_of(scanner, (8, 64, 64)), expected, atol=1e-9)
