"""Contours to pixels: against a slow independent rule, and by hand for holes, planes and broken input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from client.formats import dicom
from client.formats.dicom_rtstruct import outlines, rasterise
from client.formats.image import FormatError, Image


def _inside(row: float, col: float, polygons: list[NDArray[np.float64]]) -> bool:
    """Even-odd by walking up from the point and counting the edges above it: slow, one point, another direction."""
    crossings = 0
    for polygon in polygons:
        for (r0, c0), (r1, c1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
            if (c0 <= col) != (c1 <= col):
                crossings += r0 + (col - c0) * (r1 - r0) / (c1 - c0) < row
    return crossings % 2 == 1


def _on_edge(row: float, col: float, polygons: list[NDArray[np.float64]]) -> bool:
    """Whether a point is too close to an outline for two ways of computing to agree."""
    for polygon in polygons:
        for (r0, c0), (r1, c1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
            length = np.hypot(r1 - r0, c1 - c0)
            if length and abs((r1 - r0) * (col - c0) - (c1 - c0) * (row - r0)) / length < 1e-6:
                return True
    return False


_PLACE = st.integers(-40, 160).map(lambda number: number / 10 + 0.037)
_POLYGON = st.lists(st.tuples(_PLACE, _PLACE), min_size=3, max_size=9).map(np.array)


@given(polygons=st.lists(_POLYGON, min_size=1, max_size=3))
def test_fill_equals_counting_crossings(polygons: list[NDArray[np.float64]]) -> None:
    filled = rasterise(polygons, rows=11, cols=9)
    for row in range(11):
        for col in range(9):
            if not _on_edge(row, col, polygons):
                assert filled[row, col] == _inside(row, col, polygons), (row, col)


@given(polygon=_POLYGON, start=st.integers(0, 8))
def test_fill_knows_no_direction_and_no_first_point(polygon: NDArray[np.float64], start: int) -> None:
    other = np.roll(polygon, start, axis=0)[::-1]
    np.testing.assert_array_equal(rasterise([polygon], rows=9, cols=9), rasterise([other], rows=9, cols=9))


def test_neighbours_that_share_an_outline_through_centres_share_no_pixel() -> None:
    left = np.array([[0, 0], [0, 3], [4, 3], [4, 0]], dtype=float)
    right = np.array([[0, 3], [0, 6], [4, 6], [4, 3]], dtype=float)
    a, b = rasterise([left], rows=6, cols=8), rasterise([right], rows=6, cols=8)
    assert not (a & b).any()
    assert a.sum() == b.sum() == 12  # their areas
    np.testing.assert_array_equal(a | b, rasterise([left, right], rows=6, cols=8))


@given(mask=arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))), jitter=st.floats(-0.2, 0.2))
def test_outlines_give_their_mask_back(mask: NDArray[np.bool_], jitter: float) -> None:
    lines = outlines(mask)
    for moved in (0, jitter):
        back = rasterise([line + moved for line in lines], rows=mask.shape[0], cols=mask.shape[1])
        np.testing.assert_array_equal(back, mask)


def test_outlines_have_no_needless_points() -> None:
    mask = np.zeros((30, 30), dtype=bool)
    mask[5:25, 5:25] = True
    (line,) = outlines(mask)
    assert len(line) == 8  # a square with its four corners cut


# Contours written by hand into a structure set of the plain series: 6 slices of 12 × 10 pixels.
Square = tuple[float, float, float]  # first row and column, and side, in pixels


def _ring(image: Image, place: float, square: Square) -> str:
    row, col, side = square
    corners = [(row, col), (row, col + side), (row + side, col + side), (row + side, col)]
    index = np.array([[place, r - 0.5, c - 0.5] for r, c in corners])
    assert image.affine is not None
    points = index @ image.affine[:3, :3].T + image.affine[:3, 3]
    return "\\".join(f"{number:.4f}" for number in points.ravel())


def _contour(data: str, kind: str = "CLOSED_PLANAR") -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.ContourGeometricType = kind
    item.ContourData = data.split("\\") if data else None
    item.NumberOfContourPoints = 1 + data.count("\\") // 3
    return item


Draw = Callable[[list[pydicom.Dataset]], NDArray[np.uint8]]


@pytest.fixture
def image(series: Path, helpers: Any) -> Image:
    image: Image = helpers.read(series)
    return image


@pytest.fixture
def draw(image: Image, tmp_path: Path) -> Draw:
    """Write contours as the ROI `t` and read its mask."""

    def drawn(contours: list[pydicom.Dataset]) -> NDArray[np.uint8]:
        path = tmp_path / "RS.dcm"
        dicom.write_rtstruct(path, np.zeros(image.grid, np.uint8), image, class_names=["t"])
        dataset = pydicom.dcmread(path)
        dataset.ROIContourSequence[0].ContourSequence = contours
        dataset.save_as(path)
        mask: NDArray[np.uint8] = dicom.read_mask(path, image, classes={"t": ["t"]})
        return mask

    return drawn


def _expected(image: Image, *boxes: tuple[int, int, int, int, int]) -> NDArray[np.uint8]:
    mask = np.zeros(image.grid, np.uint8)
    for place, row, col, side, value in boxes:
        mask[place, row : row + side, col : col + side] = value
    return mask


def test_holes_islands_and_several_parts(image: Image, draw: Draw) -> None:
    squares: list[Square] = [(1, 1, 7), (2, 2, 5), (4, 4, 1), (9, 7, 2)]
    mask = draw([_contour(_ring(image, 2, square)) for square in squares])
    expected = _expected(image, (2, 1, 1, 7, 1), (2, 2, 2, 5, 0), (2, 4, 4, 1, 1), (2, 9, 7, 2, 1))
    np.testing.assert_array_equal(mask, expected)


def test_a_keyhole(image: Image, draw: Draw) -> None:
    outer, inner = _ring(image, 1, (1, 1, 6)).split("\\"), _ring(image, 1, (3, 3, 2)).split("\\")
    path = outer + outer[:3] + inner + inner[:3]
    mask = draw([_contour("\\".join(path))])
    np.testing.assert_array_equal(mask, _expected(image, (1, 1, 1, 6, 1), (1, 3, 3, 2, 0)))


def test_a_contour_goes_to_the_slice_nearest_to_its_plane(image: Image, draw: Draw) -> None:
    mask = draw([_contour(_ring(image, place, (1, 1, 3))) for place in (-0.45, 2.45, 3.55, 5.45)])
    np.testing.assert_array_equal(np.flatnonzero(mask.any(axis=(1, 2))), [0, 2, 4, 5])


def test_planes_closer_than_slices_do_not_cancel_out(image: Image, draw: Draw) -> None:
    places = [2.6, 2.8, 3.0, 3.2, 3.4]
    mask = draw([_contour(_ring(image, place, (1, 1, 3 + at))) for at, place in enumerate(places)])
    np.testing.assert_array_equal(mask, _expected(image, (3, 1, 1, 5, 1)))


def test_a_contour_that_was_exported_twice_counts_once(image: Image, draw: Draw) -> None:
    mask = draw([_contour(_ring(image, 2, (1, 1, 3)))] * 2)
    np.testing.assert_array_equal(mask, _expected(image, (2, 1, 1, 3, 1)))


def test_what_lies_beside_the_image_is_cut_off(image: Image, draw: Draw) -> None:
    mask = draw([_contour(_ring(image, 2, (-3, -4, 6)))])
    np.testing.assert_array_equal(mask, _expected(image, (2, 0, 0, 2, 1)) + _expected(image, (2, 2, 0, 1, 1), (2, 2, 1, 1, 1)))


@pytest.mark.parametrize("place", [-0.6, 5.6, 40])
def test_planes_off_the_slices_are_refused(place: float, image: Image, draw: Draw) -> None:
    with pytest.raises(
        FormatError,
        match=r"RS.dcm: ROI 't' has a contour .* beyond the first or last slice.*do not "
        "belong",
    ):
        draw([_contour(_ring(image, 2, (1, 1, 3))), _contour(_ring(image, place, (1, 1, 3)))])


def test_contours_across_the_slices_are_refused(image: Image, draw: Draw) -> None:
    points = np.array([[1, 2, 2], [1, 6, 2], [3, 6, 2], [3, 2, 2]])
    assert image.affine is not None
    data = "\\".join(f"{one:.3f}" for one in (points @ image.affine[:3, :3].T + image.affine[:3, 3]).ravel())
    with pytest.raises(FormatError, match=r"RS.dcm: ROI 't' is drawn across the slices.*use the structure set"):
        draw([_contour(data)])


@pytest.mark.parametrize("kind", ["OPEN_PLANAR", "POINT", "OPEN_NONPLANAR"])
def test_contours_that_enclose_nothing_are_refused(kind: str, image: Image, draw: Draw) -> None:
    with pytest.raises(FormatError, match=f"contour of type {kind}, which encloses no area"):
        draw([_contour(_ring(image, 2, (1, 1, 3)), kind)])


@pytest.mark.parametrize("data", ["", "1\\2", "1\\2\\3\\4"])
def test_contours_without_whole_points_are_refused(data: str, draw: Draw) -> None:
    with pytest.raises(FormatError, match="points are missing or not triples of numbers: export"):
        draw([_contour(data)])
