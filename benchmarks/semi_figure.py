"""The test table of docs/results/semi.md as a picture: what a few labels give by each method, between few and all labels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from configs.files import write_text

PLAIN, HELPED, MUTED = "#4a5568", "#c2410c", "#8a94a6"
"""Colours of methods without SAM and with it, and of all that is told beside."""

DASHES = ("-", ":", "--")
SAID = ("supervised, few labels", "80 % of the way", "supervised, all labels")
"""Of the upright lines."""

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "wardround",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}


@dataclass(frozen=True)
class Row:
    """One method: `mean` Dice with its interval, and the mean of each seed."""

    name: str
    with_sam: bool
    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """Methods with the same labels on the same data; `few` and `all_labels` are supervised training with these and with all."""

    title: str
    rows: Sequence[Row]
    few: float
    all_labels: float


def write_figure(path: Path, panels: Sequence[Panel]) -> None:
    """An SVG with the panels side by side, two in a line on one scale of Dice; the same panels give the same text."""
    lines = -(-len(panels) // 2)
    tallest = max(len(panel.rows) for panel in panels)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, lines * (0.34 * tallest + 1.25)), layout="constrained", facecolor="white")
        axes = figure.subplots(lines, 2, squeeze=False, sharex="row")
        for panel, ax in zip(panels, axes.flat, strict=False):
            _draw(ax, panel)
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        figure.legend(
            handles=_key(),
            loc="outside lower center",
            ncols=7,
            frameon=False,
            fontsize=8.5,
            columnspacing=1.0,
            handlelength=1.5,
            handletextpad=0.5,
        )
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    write_text(path, text.getvalue())


def _draw(ax: Axes, panel: Panel) -> None:
    ax.set_title(panel.title, loc="left", fontsize=10.5)
    for dice, dashes in zip(_marks(panel), DASHES, strict=True):
        ax.axvline(dice, color=MUTED, linewidth=1.2, linestyle=dashes, zorder=0)
    for y, row in enumerate(panel.rows):
        colour = HELPED if row.with_sam else PLAIN
        ax.plot([row.low, row.high], [y, y], color=colour, linewidth=2.0, solid_capstyle="round")
        ax.plot(row.seeds, [y] * len(row.seeds), "o", color="white", markeredgecolor=colour, markersize=4.0, zorder=3)
        ax.plot([row.mean], [y], "D", color=colour, markersize=6.0, zorder=4)
        told = ax.annotate(f"{row.mean:.3f}", (row.mean, y), (0, 6), textcoords="offset points", ha="center", fontsize=8.5)
        told.set(color=colour, path_effects=[withStroke(linewidth=3.0, foreground="white")])  # readable across the upright lines
    ax.set_yticks(range(len(panel.rows)), [row.name for row in panel.rows])
    ax.set_ylim(len(panel.rows) - 0.5, -0.7)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelbottom=True)
    ax.set_xlabel("Dice of test patients")


def _marks(panel: Panel) -> tuple[float, float, float]:
    """Dice of the three upright lines: supervised with few labels, 80 % of the way to all labels, all labels."""
    return panel.few, panel.few + 0.8 * (panel.all_labels - panel.few), panel.all_labels


def _key() -> list[Line2D]:
    def handle(said: str, **how: object) -> Line2D:
        return Line2D([], [], label=said, **how)  # type: ignore[arg-type]

    return [
        handle("without SAM", color=PLAIN, marker="D", markersize=6.0, linewidth=2.0),
        handle("with SAM", color=HELPED, marker="D", markersize=6.0, linewidth=2.0),
        handle("one seed", color="white", markeredgecolor=PLAIN, marker="o", markersize=4.0, linewidth=0.0),
        handle("95 % interval", color=PLAIN, linewidth=2.0),
        *(handle(said, color=MUTED, linewidth=1.2, linestyle=dashes) for said, dashes in zip(SAID, DASHES, strict=True)),
    ]
