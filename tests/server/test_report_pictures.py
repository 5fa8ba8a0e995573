"""Example predictions: contours that enclose what they should, the same image in both cycles, honest notes."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from report_history import write_pictures

from server.report_pictures import MOST, examples, outlines, slice_dice


def area(path: str) -> float:
    """Enclosed area of SVG path data by the shoelace formula; rings that run the other way count as holes."""
    total = 0.0
    for ring in re.findall(r"M([^Z]+)Z", path):
        x, y = np.array([[float(v) for v in point.split()] for point in ring.split("L")]).T
        total += 0.5 * float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))
    return abs(total)


def disc(side: int, x: float, y: float, radius: float) -> NDArray[np.bool_]:
    rows, cols = np.mgrid[0:side, 0:side] + 0.5
    return np.asarray((cols - x) ** 2 + (rows - y) ** 2 < radius**2)


def test_a_rectangle_s_outline_runs_along_its_pixels_edges() -> None:
    labels = np.zeros((10, 12), np.uint8)
    labels[2:5, 4:9] = 1  # pixel edges: x 4..9, y 2..5
    (outline,) = outlines(labels)
    points = np.array([[float(v) for v in p.split()] for p in re.findall(r"[\d.]+ [\d.]+", outline.path)])
    assert outline.c == 0
    assert points.min(axis=0).tolist() == [4, 2]
    assert points.max(axis=0).tolist() == [9, 5]


def test_an_outline_encloses_its_region_holes_and_image_borders_too() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[disc(64, 30, 30, 20)] = 2
    labels[disc(64, 32, 28, 8)] = 0
    labels[60:, 60:] = 1
    found = {outline.c: area(outline.path) for outline in outlines(labels)}
    assert found[1] == pytest.approx((labels == 2).sum(), rel=0.02)
    assert found[0] == pytest.approx(16, abs=1.1)


def test_slice_dice_is_hand_worked() -> None:
    truth = np.array([[1, 1, 0, 0]], np.uint8)
    prediction = np.array([[1, 0, 2, 0]], np.uint8)
    assert slice_dice(truth, prediction) == pytest.approx((2 / 3 + 0) / 2)
    assert slice_dice(truth, truth) == 1
    assert slice_dice(np.zeros_like(truth), np.zeros_like(truth)) is None


def test_the_first_and_the_last_cycle_show_the_same_image(tmp_path: Path) -> None:
    write_pictures(tmp_path, sites=("A",), cycles=(1, 3, 5))
    last = tmp_path / "sites/A/pictures/cycle_005.npz"
    with np.load(last) as arrays:
        turned = {name: arrays[name][::-1] for name in arrays.files}
    np.savez_compressed(last, **turned)
    found, notes = examples(tmp_path)
    assert notes == []
    assert [[view.cycle for view in example.views] for example in found] == [[1, 5], [1, 5]]
    with np.load(tmp_path / "sites/A/pictures/cycle_001.npz") as arrays:
        earlier = {name: arrays[name][::-1] for name in arrays.files}  # the order of the turned ones
    for k, example in enumerate(found):
        first, final = example.views
        assert first.dice == slice_dice(earlier["truth"][k], earlier["prediction"][k])
        assert first.prediction == outlines(earlier["prediction"][k])
        assert first.dice is not None
        assert final.dice is not None
        assert first.dice < final.dice
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[0].png))))
    assert np.array_equal(shown, turned["image"][0])


def test_the_crop_holds_everything_outlined(tmp_path: Path) -> None:
    write_pictures(tmp_path, sites=("A",))
    for example in examples(tmp_path)[0]:
        x, y, width, height = map(float, example.crop.split())
        assert 0 <= x <= x + width <= example.width
        assert 0 <= y <= y + height <= example.height
        for outline in [*example.truth, *(o for view in example.views for o in view.prediction)]:
            points = np.array([[float(v) for v in p.split()] for p in re.findall(r"[\d.]+ [\d.]+", outline.path)])
            assert (points >= [x - 0.1, y - 0.1]).all()
            assert (points <= [x + width + 0.1, y + height + 0.1]).all()


def test_examples_are_few_and_spread_over_sites(tmp_path: Path) -> None:
    names = [f"s{i}" for i in range(12)]
    write_pictures(tmp_path, sites=names, cycles=(1,), images=3, side=32)
    found, _ = examples(tmp_path, first_site="s11")
    assert len(found) == MOST
    assert [example.site for example in found] == ["s11", *names[: MOST - 1]]


def test_colour_pictures_are_shown_in_colour(tmp_path: Path) -> None:
    folder = tmp_path / "sites/A/pictures"
    folder.mkdir(parents=True)
    labels = np.ones((1, 8, 9), np.uint8)
    image = np.arange(1 * 8 * 9 * 3, dtype=np.uint8).reshape(1, 8, 9, 3)
    np.savez(folder / "cycle_001.npz", image=image, truth=labels, prediction=labels)
    (example,) = examples(tmp_path)[0]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(example.png)))), image[0])


@pytest.mark.parametrize("damage", ["cut", "empty", "keys", "shapes", "pickle"])
def test_a_damaged_picture_file_is_noted_and_the_others_are_shown(tmp_path: Path, damage: str) -> None:
    write_pictures(tmp_path, sites=("A", "B"), cycles=(1,))
    path = tmp_path / "sites/A/pictures/cycle_001.npz"
    plane = np.zeros((1, 4, 4), np.uint8)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:400])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "keys":
        np.savez(path, image=plane)
    elif damage == "shapes":
        np.savez(path, image=plane, truth=plane, prediction=plane[:, :2])
    else:
        np.savez(path, image=np.array([{}], object), truth=plane, prediction=plane)
    found, notes = examples(tmp_path)
    assert {example.site for example in found} == {"B"}
    assert len(notes) == 1
    assert "site A, cycle 1" in notes[0]
    assert str(tmp_path) not in notes[0]
