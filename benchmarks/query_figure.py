"""The AUBC of strategies against random_fg as a picture: what docs/results/queries.md shows first."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from semi_figure import MUTED, PLAIN, STYLE

from configs.files import write_text


@dataclass(frozen=True)
class Row:
    """A strategy's difference, with its interval."""

    name: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """A comparison, best first."""

    title: str
    rows: Sequence[Row]


def write_figure(path: Path, panels: Sequence[Panel]) -> None:
    """An SVG with the panels one below the other on one scale; the same panels give the same text."""
    heights = [len(panel.rows) + 2 for panel in panels]
    low, high = min(row.low for p in panels for row in p.rows), max(row.high for p in panels for row in p.rows)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 0.24 * sum(heights) + 0.4), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights}, sharex=True)
        for axes, panel in zip(grid[:, 0], panels, strict=True):
            axes.axvline(0, color=MUTED, linewidth=1)
            for place, row in enumerate(panel.rows):
                axes.plot([row.low, row.high], [place, place], color=PLAIN, linewidth=2)
                axes.plot([row.mean], [place], "D", color=PLAIN, markersize=5)
            axes.set_yticks(range(len(panel.rows)), [row.name for row in panel.rows])
            axes.tick_params(axis="y", length=0)
            axes.set_ylim(len(panel.rows) - 0.4, -0.6)
            axes.set_xlim(low - 0.02, high + 0.02)
            axes.set_title(panel.title, loc="left", fontsize=10.5)
        grid[-1, 0].set_xlabel("AUBC of test patients against random_fg: right of the line is better")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    write_text(path, text.getvalue())
