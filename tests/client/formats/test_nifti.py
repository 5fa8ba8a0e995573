"""NIfTI volumes keep their values and their place, whichever axis is cut, and bad files are named."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from client.formats import nifti
from client.formats.image import FormatError, keyed_hash

KEY = "k" * 32
RAS = np.array([[-0.9, 0, 0.1, 20], [0, 0.8, 0, -31], [0.1, 0, 2.5, 7], [0, 0, 0, 1.0]])


def save(path: Path, data: NDArray[Any], affine: NDArray[np.float64] | None = RAS) -> Path:
    nib.Nifti1Image(data, affine).to_filename(path)
    return path


@pytest.fixture
def volume() -> NDArray[np.int16]:
    return np.random.default_rng(0).integers(-50, 900, (4, 5, 6)).astype(np.int16)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_slices_come_first_and_stay_at_their_place(slice_axis: int, volume: NDArray[np.int16], tmp_path: Path) -> None:
    image = nifti.read_image(save(tmp_path / "v.nii.gz", volume), key=KEY, slice_axis=slice_axis)
    others = [axis for axis in range(3) if axis != slice_axis]
    for place in np.ndindex(*volume.shape):
        ours = (place[slice_axis], place[others[0]], place[others[1]])
        assert image.voxels[ours] == volume[place]
        x, y, z, _ = RAS @ [*place, 1]
        assert image.affine is not None
        np.testing.assert_allclose(image.affine @ [*ours, 1], [-x, -y, z, 1], atol=1e-4)  # RAS to LPS
    lengths = np.linalg.norm(RAS[:3, :3], axis=0)
    assert image.spacing_mm == pytest.approx((lengths[slice_axis], lengths[others[0]], lengths[others[1]]))
    assert image.voxels.dtype == np.float32
    assert image.patient == keyed_hash("v", key=KEY)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_written_images_and_masks_come_back(slice_axis: int, suffix: str, volume: NDArray[np.int16], tmp_path: Path) -> None:
    image = nifti.read_image(save(tmp_path / "v.nii.gz", volume), key=KEY, slice_axis=slice_axis)
    nifti.write_image(tmp_path / f"w{suffix}", image.voxels, affine=image.affine, patient="", slice_axis=slice_axis)
    again = nifti.read_image(tmp_path / f"w{suffix}", key=KEY, slice_axis=slice_axis)
    np.testing.assert_array_equal(again.voxels, image.voxels)
    assert image.affine is not None
    assert again.affine is not None
    np.testing.assert_allclose(again.affine, image.affine, atol=1e-5)

    mask = (image.voxels > 400).astype(np.uint8) + (image.voxels > 700)
    nifti.write_mask(tmp_path / f"m{suffix}", mask, image, class_names=["a", "b"], slice_axis=slice_axis)
    file: Any = nib.load(tmp_path / f"m{suffix}")
    assert file.shape == volume.shape
    assert file.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(file.affine, nib.load(tmp_path / "v.nii.gz").affine)  # type: ignore[attr-defined]
    back = nifti.read_mask(tmp_path / f"m{suffix}", image, classes={"a": 1, "b": 2}, slice_axis=slice_axis)
    np.testing.assert_array_equal(back, mask)


def test_a_mask_keeps_both_forms_of_its_images_header(volume: NDArray[np.int16], tmp_path: Path) -> None:
    file: Any = nib.Nifti1Image(volume, RAS)
    turned = np.diag([1.0, 1, 2, 1])
    file.set_sform(RAS, code=2)
    file.set_qform(turned, code=1)
    file.to_filename(tmp_path / "v.nii")
    image = nifti.read_image(tmp_path / "v.nii", key=KEY)
    nifti.write_mask(tmp_path / "m.nii", np.zeros(image.grid), image, class_names=["a"])
    header: Any = nib.load(tmp_path / "m.nii")
    assert (int(header.header["sform_code"]), int(header.header["qform_code"])) == (2, 1)
    np.testing.assert_allclose(header.get_sform(), RAS, atol=1e-5)
    np.testing.assert_allclose(header.get_qform(), turned, atol=1e-5)


def test_scaled_headers_and_windows(tmp_path: Path) -> None:
    file: Any = nib.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    file.header.set_slope_inter(10, -5)
    file.to_filename(tmp_path / "v.nii")
    raw = nib.load(tmp_path / "v.nii")
    stored = np.asanyarray(raw.dataobj)  # type: ignore[attr-defined]
    image = nifti.read_image(tmp_path / "v.nii", key=KEY, slice_axis=0)
    np.testing.assert_array_equal(image.voxels, stored)
    window = nifti.read_image(tmp_path / "v.nii", key=KEY, slice_axis=0, window=(20, 40))
    np.testing.assert_allclose(window.voxels, np.clip(stored / 40, 0, 1), atol=1e-6)


def test_equal_masks_are_equal_files(volume: NDArray[np.int16], tmp_path: Path) -> None:
    image = nifti.read_image(save(tmp_path / "v.nii.gz", volume), key=KEY)
    for name in ("a.nii.gz", "b.nii.gz"):
        nifti.write_mask(tmp_path / name, np.ones(image.grid), image, class_names=["a"])
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_bad_images_are_named(volume: NDArray[np.int16], tmp_path: Path) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(FormatError, match=f"{path.name}.*{match}"):
            nifti.read_image(path, key=KEY)

    refused(tmp_path / "nowhere.nii.gz", "does not exist: correct the index")
    (tmp_path / "text.nii").write_text("not a volume")
    refused(tmp_path / "text.nii", "not a readable NIfTI file")
    whole = save(tmp_path / "v.nii.gz", volume).read_bytes()
    for length in (0, 20, len(whole) // 2, len(whole) - 9):
        (tmp_path / "cut.nii.gz").write_bytes(whole[:length])
        refused(tmp_path / "cut.nii.gz", "again")
    (tmp_path / "cut.nii").write_bytes(gzip.decompress(whole)[:-10])
    refused(tmp_path / "cut.nii", "cut off or corrupt")
    refused(save(tmp_path / "4d.nii", np.zeros((2, 3, 4, 5), np.float32)), "shape.*one 3D volume.*split")
    refused(save(tmp_path / "2d.nii", np.zeros((2, 3), np.float32)), "one 3D volume")
    refused(save(tmp_path / "complex.nii", np.zeros((2, 3, 4), np.complex64)), "complex64.*grey")
    rgb = np.zeros((2, 3, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(save(tmp_path / "rgb.nii", rgb), "not one plain number a voxel")
    for bad in (np.nan, np.inf):
        values = np.ones((2, 3, 4), np.float32)
        values[1, 2, 3] = bad
        refused(save(tmp_path / "nan.nii", values), "1 of 24 values that are NaN, Inf.*repair")
    flat: Any = nib.Nifti1Image(volume, RAS)
    flat.header["sform_code"], flat.header["qform_code"], flat.header["srow_x"] = 1, 0, 0
    (tmp_path / "flat.nii").write_bytes(_with_sform_row_zero(save(tmp_path / "g.nii", volume).read_bytes()))
    refused(tmp_path / "flat.nii", "axis without length or direction: set a valid")


def _with_sform_row_zero(content: bytes) -> bytes:
    """NIfTI-1 keeps srow_x in bytes 280 to 295 of its header."""
    return content[:280] + bytes(16) + content[296:]


def test_bad_masks_are_named(volume: NDArray[np.int16], tmp_path: Path) -> None:
    image = nifti.read_image(save(tmp_path / "v.nii.gz", volume), key=KEY)

    def refused(path: Path, match: str) -> None:
        with pytest.raises(FormatError, match=f"{path.name}.*{match}"):
            nifti.read_mask(path, image, classes={"a": 1, "b": 2})

    shape = r"shape \(7, 4, 5\).*v.nii.gz has \(6, 4, 5\).*Resample"
    refused(save(tmp_path / "big.nii", np.zeros((4, 5, 7), np.uint8)), shape)
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0, 0, :3] = 1, 3, 9
    refused(save(tmp_path / "strange.nii", labels), r"label values 0, 1, 3, 9, but the classes are a = 1, b = 2")
    moved = RAS.copy()
    moved[0, 3] += 3
    refused(save(tmp_path / "moved.nii", np.zeros((4, 5, 6), np.uint8), moved), "lies 3.0 mm away.*v.nii.gz")
    refused(save(tmp_path / "flipped.nii", np.zeros((4, 5, 6), np.uint8), RAS @ np.diag([-1, 1, 1, 1])), "flipped")


def test_masks_of_another_size_are_not_written(volume: NDArray[np.int16], tmp_path: Path) -> None:
    image = nifti.read_image(save(tmp_path / "v.nii.gz", volume), key=KEY)
    with pytest.raises(FormatError, match="does not fit"):
        nifti.write_mask(tmp_path / "m.nii", np.zeros((4, 5, 6)), image, class_names=["a"])
    with pytest.raises(FormatError, match=r"ends in .nii or .nii.gz"):
        nifti.write_mask(tmp_path / "m.img", np.zeros(image.grid), image, class_names=["a"])
    assert [one.name for one in tmp_path.iterdir()] == ["v.nii.gz"]
    with pytest.raises(ValueError, match="slice_axis = 3"):
        nifti.read_image(tmp_path / "v.nii.gz", key=KEY, slice_axis=3)
