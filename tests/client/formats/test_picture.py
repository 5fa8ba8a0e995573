"""Pictures keep their values, masks their labels, and what can't be trusted is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from client.formats import picture
from client.formats.image import FormatError, Image, keyed_hash

KEY = "k" * 32
GREY = np.random.default_rng(0).integers(0, 256, (7, 9)).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (7, 9, 3)).astype(np.uint8)


def save(path: Path, pixels: NDArray[Any], mode: str | None = None, **how: object) -> Path:
    image = PIL.Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **how)  # type: ignore[arg-type]
    return path


def test_grey_and_colour_are_read_as_stored(tmp_path: Path) -> None:
    grey = picture.read_image(save(tmp_path / "p7.png", GREY), key=KEY)
    np.testing.assert_array_equal(grey.voxels, GREY[None])
    assert grey.voxels.dtype == np.float32
    assert grey.affine is None
    assert grey.spacing_mm is None
    assert grey.patient == keyed_hash("p7", key=KEY)
    colour = picture.read_image(save(tmp_path / "c.png", COLOUR), key=KEY, patient="q")
    np.testing.assert_array_equal(colour.voxels, COLOUR[None])
    assert colour.grid == (1, 7, 9)
    assert colour.patient == keyed_hash("q", key=KEY)
    smooth = np.repeat(np.repeat(COLOUR[:1, :1], 16, 0), 16, 1)
    jpeg = picture.read_image(save(tmp_path / "j.jpg", smooth, quality=95), key=KEY)
    assert np.abs(jpeg.voxels - smooth).max() <= 3
    window = picture.read_image(tmp_path / "p7.png", key=KEY, window=(100, 50))
    np.testing.assert_allclose(window.voxels, np.clip((GREY[None] - 75.0) / 50, 0, 1), atol=1e-6)


def test_palettes_alpha_and_sixteen_bits(tmp_path: Path) -> None:
    few = (COLOUR // 128 * 255).astype(np.uint8)
    palette = PIL.Image.fromarray(few).quantize(8)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(picture.read_image(tmp_path / "p.png", key=KEY).voxels[0], few)
    opaque = picture.read_image(save(tmp_path / "a.png", COLOUR, "RGBA"), key=KEY)
    np.testing.assert_array_equal(opaque.voxels, COLOUR[None])
    deep = GREY.astype(np.uint16) * 200
    np.testing.assert_array_equal(picture.read_image(save(tmp_path / "d.png", deep), key=KEY).voxels, deep[None])


@pytest.mark.parametrize("pixels", [GREY, COLOUR, GREY.astype(np.uint16) * 256])
def test_written_pictures_come_back(pixels: NDArray[Any], tmp_path: Path) -> None:
    picture.write_image(tmp_path / "w.png", pixels[None])
    np.testing.assert_array_equal(picture.read_image(tmp_path / "w.png", key=KEY).voxels, pixels[None])


def test_masks_come_back_as_classes(tmp_path: Path) -> None:
    image = picture.read_image(save(tmp_path / "i.png", COLOUR), key=KEY)
    labels = (GREY % 3).astype(np.uint8)
    picture.write_mask(tmp_path / "m.png", labels[None], image, class_names=["a", "b"])
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(tmp_path / "m.png")), labels)
    np.testing.assert_array_equal(picture.read_mask(tmp_path / "m.png", image, classes={"a": 1, "b": 2}), labels[None])
    swapped = picture.read_mask(tmp_path / "m.png", image, classes={"b": 2, "a": 1})
    np.testing.assert_array_equal(swapped, np.array([0, 2, 1])[labels][None])


def test_palette_indices_and_one_bit_masks_are_labels(tmp_path: Path) -> None:
    image = picture.read_image(save(tmp_path / "i.png", GREY), key=KEY)
    labels = (GREY % 3).astype(np.uint8)
    painted = PIL.Image.fromarray(labels)
    painted.putpalette([0, 0, 0, 200, 20, 20, 20, 20, 200])
    painted.save(tmp_path / "m.png")
    np.testing.assert_array_equal(picture.read_mask(tmp_path / "m.png", image, classes={"a": 1, "b": 2}), labels[None])
    PIL.Image.fromarray(labels > 0).save(tmp_path / "b.png")
    np.testing.assert_array_equal(picture.read_mask(tmp_path / "b.png", image, classes={"a": 1}), labels[None] > 0)


def test_bad_pictures_are_named(tmp_path: Path) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(FormatError, match=f"{path.name}.*{match}"):
            picture.read_image(path, key=KEY)

    refused(tmp_path / "nowhere.png", "does not exist")
    (tmp_path / "text.png").write_text("a picture, honestly")
    refused(tmp_path / "text.png", "not a readable picture")
    for name in ("whole.png", "whole.jpg"):
        whole = save(tmp_path / name, np.tile(COLOUR, (20, 20, 1))).read_bytes()
        (tmp_path / f"cut_{name}").write_bytes(whole[: len(whole) // 2])
        refused(tmp_path / f"cut_{name}", "cut off.*save it again")
    clear = np.dstack([COLOUR, np.full((7, 9), 255, np.uint8)])
    clear[3, 3, 3] = 0
    refused(save(tmp_path / "clear.png", clear), "transparent")
    refused(save(tmp_path / "cmyk.jpg", COLOUR, "CMYK"), "colour mode CMYK: save it as grey or RGB")
    frames = [PIL.Image.fromarray(GREY), PIL.Image.fromarray(255 - GREY)]
    frames[0].save(tmp_path / "film.png", save_all=True, append_images=frames[1:])
    refused(tmp_path / "film.png", "holds 2 pictures: save each")
    exif = PIL.Image.Exif()
    exif[274] = 6
    refused(save(tmp_path / "phone.jpg", COLOUR, exif=exif), "stored turned.*save it upright")


def test_bad_masks_are_named(tmp_path: Path) -> None:
    image = picture.read_image(save(tmp_path / "i.png", GREY), key=KEY)

    def refused(path: Path, match: str) -> None:
        with pytest.raises(FormatError, match=f"{path.name}.*{match}"):
            picture.read_mask(path, image, classes={"a": 1})

    refused(save(tmp_path / "m.jpg", GREY), "JPEG.*save masks as PNG")
    refused(save(tmp_path / "c.png", COLOUR), "colour mode RGB.*one label value a pixel")
    refused(save(tmp_path / "t.png", GREY.T.copy()), r"shape \(1, 9, 7\).*i.png has \(1, 7, 9\)")
    refused(
        save(tmp_path / "v.png", (GREY > 9).astype(np.uint8) * 255),
        r"label values 0, 255, but the classes are "
        "a = 1",
    )


def test_what_a_picture_cannot_hold_is_not_written(tmp_path: Path) -> None:
    for values, match in (
        (np.full((1, 2, 2), -1.0), "values from -1 to -1 don't fit"),
        (np.full((1, 2, 2, 3), 256.0), "don't fit a picture's 0 to 255"),
        (np.full((1, 2, 2), np.nan), "NaN"),
        (np.zeros((2, 2, 2)), "a picture has the shape"),
    ):
        with pytest.raises(FormatError, match=f"w.png.*{match}"):
            picture.write_image(tmp_path / "w.png", values)
    with pytest.raises(FormatError, match=r"ends in .png"):
        picture.write_image(tmp_path / "w.jpg", np.zeros((1, 2, 2)))
    image = Image(np.zeros((1, 2, 2), np.float32), None, None, "x", tmp_path / "i.png")
    with pytest.raises(FormatError, match="class values go from 0 to 1"):
        picture.write_mask(tmp_path / "w.png", np.full((1, 2, 2), 2), image, class_names=["a"])
    assert not list(tmp_path.iterdir())
