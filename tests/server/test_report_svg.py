"""Drawings fit a page: nothing from outside, ids of their own, colours of the page, labels apart."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from server.report_svg import INKS, Frame, spread, svg

NUMBERS = st.lists(st.floats(-1, 2, allow_nan=False), max_size=12)


def draw(figure: Figure, frame: Frame) -> None:
    axes = figure.add_axes((0.2, 0.2, 0.6, 0.6))
    axes.plot([0, 1], [0, 1], "o-", color=INKS["test"])
    axes.set_title("<b> $x$ & 0.12345 ü 心", color=INKS["worst"])


def test_a_drawing_takes_colours_and_fonts_from_the_page() -> None:
    text = svg(draw, Frame(300, 200), key="a", alt='it says "hi" & <more>')
    assert "var(--test)" in text
    assert "var(--worst)" in text
    assert not any(placeholder in text for placeholder in INKS.values())
    assert "font-family" not in text
    assert "http" not in text
    assert "<metadata" not in text
    assert 'viewBox="0 0 300 200"' in text
    assert 'aria-label="it says &quot;hi&quot; &amp; &lt;more&gt;"' in text


def test_text_is_drawn_as_it_was_written() -> None:
    assert "&lt;b&gt; $x$ &amp; 0.12345 ü 心" in svg(draw, Frame(300, 200), key="a", alt="")


def test_ids_are_the_drawing_s_own_and_all_references_resolve() -> None:
    one, other = (svg(draw, Frame(300, 200), key=key, alt="") for key in ("one", "other"))
    ids = [set(re.findall(r' id="([^"]+)"', text)) for text in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', one)) == ids[0]


def test_the_same_drawing_is_the_same_text() -> None:
    assert svg(draw, Frame(300, 200), key="a", alt="") == svg(draw, Frame(300, 200), key="a", alt="")


@given(wanted=NUMBERS, gap=st.floats(0.01, 0.3))
def test_spread_labels_keep_order_distance_and_limits(wanted: list[float], gap: float) -> None:
    places = spread(wanted, gap, 0.0, 1.0)
    assert len(places) == len(wanted)
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    apart = min(gap, 1 / max(1, len(wanted) - 1))
    for before, after in pairwise(order):
        assert places[after] - places[before] >= apart - 1e-9
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)


@given(wanted=st.lists(st.integers(0, 10), max_size=8, unique=True))
def test_labels_with_room_stay_where_they_are(wanted: list[int]) -> None:
    assert spread([float(value) for value in wanted], 1.0, 0.0, 10.0) == [float(value) for value in wanted]


def test_touching_labels_move_by_the_same_amount_to_both_sides() -> None:
    assert spread([5.0, 5.0], 1.0, 0.0, 10.0) == [4.5, 5.5]
