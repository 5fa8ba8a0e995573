"""matplotlib figures as SVG that belongs to the page around it: its colours, its fonts, light and dark.

A plot draws with the placeholder colours of `INKS`; `svg` turns each into a CSS variable, so that one drawing serves
both colour schemes. The output has no dates, no namespaces, no outside references, and ids of its own; the same figure
gives the same text.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

CLASS_INKS = 7
"""Distinct class colours; further classes use them again with another dash."""

INKS = {
    name: f"#fe{i:02x}{(37 * i + 11) % 256:02x}"
    for i, name in enumerate(
        ["ink", "muted", "faint", "grid", "test", "validation", "worst", "up", "down", "paper"]
        + [f"c{c + 1}" for c in range(CLASS_INKS)]
    )
}
"""Name of a CSS variable of the template to the placeholder that stands for it while matplotlib draws."""

FONT_PX = 12.5
"""Size of plot text in pixels at the size a plot is drawn for."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "wardround",
    "text.parse_math": False,
    "font.size": FONT_PX,
    "font.family": "DejaVu Sans",
    "text.color": INKS["ink"],
    "axes.labelcolor": INKS["muted"],
    "axes.edgecolor": INKS["faint"],
    "axes.facecolor": "none",
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": INKS["grid"],
    "grid.linewidth": 1.0,
    "xtick.color": INKS["faint"],
    "ytick.color": INKS["faint"],
    "xtick.labelcolor": INKS["muted"],
    "ytick.labelcolor": INKS["muted"],
    "xtick.major.size": 4.0,
    "xtick.major.width": 1.0,
    "ytick.major.size": 0.0,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Plot:
    """One figure of the report.

    Attributes:
        alt: what the plot shows, in a sentence or two with its numbers.
        wide, narrow: the drawing for a laptop and for a phone, as inline SVG.
    """

    alt: str
    wide: str
    narrow: str


@dataclass(frozen=True)
class Frame:
    """The size a plot is drawn for, in CSS pixels."""

    width: float
    height: float

    @property
    def slim(self) -> bool:
        """Whether this is a phone's width."""
        return self.width < 480


Draw = Callable[[Figure, Frame], None]


def plot(draw: Draw, *, key: str, alt: str, wide: Frame, narrow: Frame) -> Plot:
    """Draw a figure at both widths. `key` is unique on the page and prefixes the ids in the SVG."""
    return Plot(
        alt=alt,
        wide=svg(draw, wide, key=f"{key}-wide", alt=alt),
        narrow=svg(draw, narrow, key=f"{key}-narrow", alt=alt),
    )


def svg(draw: Draw, frame: Frame, *, key: str, alt: str) -> str:
    """Draw at the size of `frame` and return one `<svg>` element that scales down with the page, never up."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Text is set by the reader's browser in the page's font: what DejaVu lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(frame.width / 72, frame.height / 72), dpi=72)
        FigureCanvasSVG(figure)
        draw(figure, frame)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue(), frame, key=key, alt=alt)


def axes_in(figure: Figure, frame: Frame, *, left: float, right: float, bottom: float, top: float) -> Axes:
    """Axes with these margins in pixels."""
    width, height = frame.width, frame.height
    return figure.add_axes((left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height))


def class_ink(c: int) -> str:
    """Name of the ink of foreground class `c`, counted from 0."""
    return f"c{c % CLASS_INKS + 1}"


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near `wanted`, at least `gap` apart and in its order, within [low, high] where they fit.

    Where they do not fit they are spread evenly. Values come back in the order given.
    """
    if not wanted:
        return []
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    placed: list[list[float]] = []  # blocks of touching labels: [sum of (wanted - offset), count]
    for i in order:
        placed.append([wanted[i], 1.0])
        while len(placed) > 1 and _start(placed[-2], gap, low, high) + placed[-2][1] * gap > _start(placed[-1], gap, low, high):
            later = placed.pop()
            earlier = placed[-1]
            earlier[0] += later[0] - later[1] * earlier[1] * gap
            earlier[1] += later[1]
    result = [0.0] * len(wanted)
    ranks = iter(order)
    for block in placed:
        first = _start(block, gap, low, high)
        for k in range(int(block[1])):
            result[next(ranks)] = first + k * gap
    return result


def _start(block: list[float], gap: float, low: float, high: float) -> float:
    """Where a block's first label goes: the mean of what its labels want, moved inside the limits."""
    return min(max(block[0] / block[1], low), high - (block[1] - 1) * gap)


def _for_page(text: str, frame: Frame, *, key: str, alt: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)
    opening = (
        f'<svg role="img" aria-label="{html.escape(alt, quote=True)}" viewBox="0 0 {frame.width:g} {frame.height:g}" '
        f'style="max-width:{frame.width:g}px">'
    )
    body = text[text.index(">") + 1 :]
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r"<[^>]*>", lambda tag: _tag(tag[0], used, key), body)  # tags only: what people wrote stays as it is
    return opening + re.sub(r"\s*\n\s*", "\n", body).strip()


def _tag(tag: str, used: set[str], key: str) -> str:
    """One tag, fit for a page that holds many drawings and its own style."""
    tag = tag.replace("xlink:href", "href")
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", tag)
    tag = re.sub(r' id="([^"]*)"', lambda found: f' id="{key}-{found[1]}"' if found[1] in used else "", tag)
    tag = re.sub(r'(href="#|url\(#)', rf"\g<1>{key}-", tag)
    for name, placeholder in INKS.items():
        tag = tag.replace(placeholder, f"var(--{name})")
    return re.sub(r"(\d+\.\d\d)\d+", r"\1", tag)
