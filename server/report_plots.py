"""The plots of what a model learned: Dice against labels, by site and by class. None where no Dice may be shown.

Curves are labelled at their ends instead of in a legend. Up to `NAMED_SITES` sites are drawn by name; with more they
become bands, so that fifty hospitals are as legible as five.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from server.report_data import Assessed, Record, assessments, known, worst
from server.report_svg import CLASS_INKS, INKS, Frame, Plot, axes_in, class_ink, plot, spread
from server.report_words import shorten

NAMED_SITES = 8
_DASHES = ("-", (0, (4, 2)), (0, (1.5, 1.5)))


@dataclass(frozen=True)
class _End:
    """The label beside a curve's end; a leader joins the two where the curve reaches the edge."""

    value: float
    text: str
    ink: str
    weight: str
    leader: bool


def dice_plot(record: Record) -> Plot | None:
    """Dice against labels: test mean, validation mean, sites, the worst site marked. None where no Dice is known."""
    points = assessments(record)
    if not any(known([p.dice, p.dice_test, *(s.dice_test for s in p.sites.values())]) for p in points):
        return None
    scored = [p for p in points if p.dice_test is not None]
    marked = next((name for name in (worst(p)[0] for p in reversed(points)) if name), None)

    def draw(figure: Figure, frame: Frame) -> None:
        axes = axes_in(figure, frame, left=38, right=104 if frame.slim else 206, bottom=58, top=14)
        x = _label_axis(axes, points, frame)
        names = [name for name in record.sites if any(name in p.sites for p in points)]
        series = {name: [_test_dice(p, name) for p in points] for name in names}
        if len(names) > NAMED_SITES:
            _bands(axes, x, [[series[name][i] for name in names] for i in range(len(points))])
        ends: list[_End] = []
        for name in names:
            is_worst = name == marked and len(names) > 1
            if len(names) > NAMED_SITES and not is_worst:
                continue
            ink = "worst" if is_worst else "faint"
            _line(axes, x, series[name], ink, width=1.6 if is_worst else 1.1, marker=3.5 if is_worst else 0)
            text = shorten(name, 7 if frame.slim else 16) + ("" if not is_worst or frame.slim else ", worst site")
            if len(names) > 1:
                ends += _end(points, series[name], text, "worst" if is_worst else "muted")
        validation, test = [p.dice for p in points], [p.dice_test for p in points]
        _line(axes, x, validation, "validation", width=1.6, dashes=_DASHES[1])
        ends += _end(points, validation, "valid." if frame.slim else "validation", "validation")
        _line(axes, x, test, "test", width=3.0, marker=7)
        ends += _end(points, test, "test" if frame.slim else "test, mean of sites", "test", weight="bold")
        _fit(axes, [*chain(*series.values()), *validation, *test])
        _end_labels(axes, ends, gap_px=15)

    said = f"Line plot of Dice against labels, {len(points)} assessed cycles."
    if scored:
        first, last = scored[0], scored[-1]
        at = f" at {last.labels} labels" if last.labels is not None else f" in cycle {last.cycle}"
        said += f" The mean test Dice goes from {first.dice_test:.3f} to {last.dice_test:.3f}{at}."
        name, low = worst(last)
        if name is not None and len(last.sites) > 1:
            said += f" The worst site, {name}, ends at {low:.3f}."
    return plot(draw, key="dice", alt=said, wide=Frame(960, 430), narrow=Frame(370, 350))


def class_plot(record: Record) -> Plot | None:
    """Test Dice by class against labels, mean over sites. None where no class has a known value."""
    points = assessments(record)
    series = {name: [_class_mean(p, c) for p in points] for c, name in enumerate(record.classes)}
    told = {name: values for name, values in series.items() if known(values)}
    if not told:
        return None

    def draw(figure: Figure, frame: Frame) -> None:
        axes = axes_in(figure, frame, left=38, right=104 if frame.slim else 128, bottom=58, top=14)
        x = _label_axis(axes, points, frame)
        ends: list[_End] = []
        for c, name in enumerate(record.classes):
            if name not in told:
                continue
            ink = class_ink(c)
            _line(axes, x, series[name], ink, width=2.2, marker=5, dashes=_DASHES[c // CLASS_INKS % len(_DASHES)])
            ends += _end(points, series[name], shorten(name, 9), ink)
        _fit(axes, chain(*told.values()))
        _end_labels(axes, ends, gap_px=15)

    last = {name: known(values)[-1] for name, values in told.items()}
    said = "Line plot of test Dice by class. Last: " + ", ".join(f"{n} {v:.3f}" for n, v in last.items()) + "."
    height = max(310.0, 90.0 + 15 * len(told))
    return plot(draw, key="classes", alt=said, wide=Frame(480, height), narrow=Frame(370, height))


# ------------------------------------------------------------------------------------------------------------- helpers


def _label_axis(axes: Axes, points: Sequence[Assessed], frame: Frame) -> list[float]:
    """x of each point: labels where every point has them, else cycles; ticks where the points are."""
    counts = [p.labels for p in points if p.labels is not None]
    by_labels = len(counts) == len(points) and len(set(counts)) == len(counts)
    x = [float(value) for value in counts] if by_labels else [float(p.cycle) for p in points]
    low, high = min(x), max(x)
    pad = 0.04 * (high - low) or 1.0
    axes.set_xlim(low - pad, high + 0.25 * pad)
    room = axes.get_position().width * frame.width
    if low == high:
        axes.set_xlim(low - 1, high + 1)
    apart = 40 if frame.slim else 60
    kept: list[int] = []
    for i in range(len(x) - 1, -1, -1):
        if not kept or (x[kept[-1]] - x[i]) / (high - low + 1.25 * pad) * room >= apart:
            kept.append(i)
    axes.set_xticks([x[i] for i in kept], [f"{counts[i]}" if by_labels else f"{points[i].cycle}" for i in kept])
    for i in kept if by_labels else ():
        axes.annotate(  # a text of its own: the browser centres each line by its own font
            f"c. {points[i].cycle}" if frame.slim else f"cycle {points[i].cycle}",
            (x[i], 0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, -33),
            textcoords="offset points",
            ha="center",
            color=INKS["muted"],
            fontsize=11,
        )
    axes.set_xlabel(
        "labels, all sites together" if by_labels else "cycle (labels withheld by the site)",
        labelpad=19 if by_labels else 4,
    )
    axes.grid(axis="y")
    return x


def _fit(axes: Axes, values: Iterable[float | None]) -> None:
    """y limits on twentieths around the values, at least .2 apart, never beyond 0..1."""
    told = known(values)
    low = max(0.0, math.floor((min(told) - 0.01) * 20) / 20)
    high = min(1.0, math.ceil((max(told) + 0.01) * 20) / 20)
    if high - low < 0.2:
        low = min(max(0.0, round(10 * (low + high - 0.2)) / 20), 0.8)
        high = low + 0.2
    axes.set_ylim(low, high)
    step = 0.2 if high - low > 0.65 else 0.1 if high - low > 0.25 else 0.05
    axes.set_yticks(np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2f}" if step < 0.1 else f"{value:.1f}")


def _line(
    axes: Axes,
    x: Sequence[float],
    values: Sequence[float | None],
    ink: str,
    *,
    width: float,
    marker: float = 0,
    dashes: Any = "-",
) -> None:
    """Draw the known values, with gaps where there is none; a point between gaps gets a marker, so that it shows."""
    there = [value is not None for value in values]
    lone = any(b and not a and not c for a, b, c in zip([False, *there], there, [*there[1:], False], strict=False))
    axes.plot(
        x,
        [math.nan if value is None else value for value in values],
        color=INKS[ink],
        linewidth=width,
        linestyle=dashes,
        marker="o" if marker or lone else None,
        markersize=marker or 4,
        markeredgecolor=INKS["paper"],
        markeredgewidth=1.2 if marker > 4 else 0,
        clip_on=False,
        zorder=2 + width,
    )


def _end(
    points: Sequence[Assessed], values: Sequence[float | None], text: str, ink: str, *, weight: str = "normal"
) -> list[_End]:
    """The label of a curve's last known value, which says so when that is not of the last cycle; nothing for none."""
    last = max((i for i, value in enumerate(values) if value is not None), default=-1)
    value = values[last] if last >= 0 else None
    if value is None:
        return []
    at_end = last == len(points) - 1
    text = f"{value:.3f} {text}" + ("" if at_end else f" (c. {points[last].cycle})")
    return [_End(value, text, ink, weight, leader=at_end and len(points) > 1)]


def _bands(axes: Axes, x: Sequence[float], columns: Sequence[Sequence[float | None]]) -> None:
    """All sites and their middle half as two bands, named inside the plot."""
    told = [(at, known(column)) for at, column in zip(x, columns, strict=True) if known(column)]
    at = [a for a, _ in told]
    for low, high, alpha in ((0, 100, 0.13), (25, 75, 0.22)):
        axes.fill_between(
            at,
            [float(np.percentile(values, low)) for _, values in told],
            [float(np.percentile(values, high)) for _, values in told],
            color=INKS["test"],
            alpha=alpha,
            linewidth=0,
        )


def _end_labels(axes: Axes, ends: Sequence[_End], *, gap_px: float) -> None:
    """Name the curves beside their last values, apart from each other."""
    low, high = axes.get_ylim()
    height_px = axes.get_window_extent().height
    places = spread([end.value for end in ends], gap_px * (high - low) / height_px, low, high)
    for end, y in zip(ends, places, strict=True):
        if end.leader:
            across = axes.get_yaxis_transform()
            axes.plot([1.012, 1.03], [end.value, y], color=INKS[end.ink], lw=0.8, transform=across, clip_on=False)
        axes.annotate(
            end.text,
            (1.03, y),
            xycoords=axes.get_yaxis_transform(),
            xytext=(4, 0),
            textcoords="offset points",
            va="center_baseline",
            color=INKS[end.ink],
            fontweight=end.weight,
            annotation_clip=False,
        )


def _class_mean(point: Assessed, c: int) -> float | None:
    """Test Dice of a class, mean over the sites that tell it."""
    told = known(value for score in point.sites.values() for value in score.by_class_test[c : c + 1])
    return fmean(told) if told else None


def _test_dice(point: Assessed, name: str) -> float | None:
    score = point.sites.get(name)
    return None if score is None else score.dice_test
