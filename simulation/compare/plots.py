"""The pictures of a comparison: who is ahead, and the curves of the best beside those of chance."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from server.report_svg import INKS, Frame, Plot, axes_in, plot, spread
from simulation.compare.arms import ALL_LABELS, ALONE, TWIN
from simulation.compare.numbers import Interval, Line, mean_of
from simulation.compare.record import Ran

NAMED = 3
"""So many of the best strategies have a name and a colour in the plots of curves."""

BAR_PX = 3.5
"""How far the intervals of neighbours stand apart."""

COLOURS = ("test", "down", "worst", "c3")


@dataclass(frozen=True)
class Curve:
    """An arm's mean curve: budgets, and Dice with its interval at each."""

    arm: str
    budgets: tuple[float, ...]
    dice: tuple[Interval, ...]


def curves_of(by_arm: Mapping[str, Sequence[Ran]], *, over: str, unit: str) -> list[Curve]:
    """Of each arm with more than one assessment: means over seeds and folds, cycle by cycle.

    Args:
        over: "labels" or "minutes".
        unit: what is repeated, "seed" or "fold".
    """
    drawn = {arm: runs for arm, runs in by_arm.items() if all(len(ran.points) > 1 for ran in runs)}
    cycles = range(min((len(ran.points) for runs in drawn.values() for ran in runs), default=0))
    return [
        Curve(
            arm=arm,
            budgets=tuple(statistics.mean(getattr(ran.points[cycle], over) for ran in runs) for cycle in cycles),
            dice=tuple(mean_of(runs, partial(_test, cycle), unit=unit) for cycle in cycles),
        )
        for arm, runs in drawn.items()
    ]


def _test(cycle: int, ran: Ran) -> Mapping[str, float]:
    return ran.points[cycle].test


def area_plot(lines: Sequence[Line]) -> Plot:
    """AUBC with its interval, best first; baselines in grey."""
    ranked = sorted(lines, key=lambda line: -line.aubc[0])
    reference = next((line.aubc for line in lines if line.arm == "random_fg"), None)

    def draw(figure: Figure, frame: Frame) -> None:
        axes = axes_in(figure, frame, left=110 if frame.slim else 170, right=60, bottom=40, top=8)
        if reference is not None:
            axes.axvspan(reference[1], reference[2], color=INKS["faint"], alpha=0.18, linewidth=0)
        for place, line in enumerate(ranked):
            ink = _ink(line.arm)
            mean, low, high = line.aubc
            axes.plot([low, high], [place, place], color=INKS[ink], linewidth=2.2)
            axes.plot([mean], [place], "o", color=INKS[ink], markersize=7, markeredgecolor=INKS["paper"], markeredgewidth=1.2)
            axes.annotate(
                f"{mean:.3f}",
                (1, place),
                xycoords=axes.get_yaxis_transform(),
                xytext=(8, 0),
                textcoords="offset points",
                va="center_baseline",
                color=INKS["muted"],
            )
        axes.set_yticks(range(len(ranked)), [line.arm for line in ranked])
        axes.set_ylim(len(ranked) - 0.5, -0.5)
        axes.set_xlabel("mean test Dice over budgets")
        axes.grid(axis="x")

    said = (
        "Dot plot of the area under the learning curve. " + ", ".join(f"{line.arm} {line.aubc[0]:.3f}" for line in ranked) + "."
    )
    height = 60 + 26 * len(ranked)
    return plot(draw, key="area", alt=said, wide=Frame(960, height), narrow=Frame(370, height))


def curve_plot(curves: Sequence[Curve], lines: Sequence[Line], *, over: str, ceiling: float | None) -> Plot:
    """Dice against a budget: both randoms and the best strategies on validation patients by name, the others thin."""
    areas = {line.arm: line.validation for line in lines}
    own = [curve for curve in curves if curve.arm not in ("random", "random_fg", TWIN, ALL_LABELS, ALONE)]
    best = sorted(own, key=lambda curve: -areas[curve.arm])[:NAMED]
    inks: Mapping[str, str] = {
        **{curve.arm: ink for curve, ink in zip(best, COLOURS, strict=False)},
        "random_fg": "ink",
        "random": "muted",
        ALONE: "faint",
    }
    shown = [curve for curve in curves if curve.arm != ALL_LABELS]

    def draw(figure: Figure, frame: Frame) -> None:
        axes = axes_in(figure, frame, left=42, right=110 if frame.slim else 170, bottom=48, top=14)
        barred = 0
        for curve in shown:
            ink = inks.get(curve.arm, "faint")
            named = curve.arm in inks
            low, high = [d[1] for d in curve.dice], [d[2] for d in curve.dice]
            if curve.arm == "random_fg" or (best and curve is best[0]):
                axes.fill_between(curve.budgets, low, high, color=INKS[ink], alpha=0.13, linewidth=0)
            elif named:
                barred += 1  # bars stand side by side, or they would hide each other
                aside = ScaledTranslation(barred * BAR_PX / 72, 0, figure.dpi_scale_trans)
                axes.vlines(curve.budgets, low, high, color=INKS[ink], alpha=0.6, linewidth=1, transform=axes.transData + aside)
            axes.plot(
                curve.budgets,
                [d[0] for d in curve.dice],
                color=INKS[ink],
                linewidth=2.4 if named else 1.0,
                linestyle="--" if curve.arm in ("random", ALONE) else "-",
                marker="o" if named else None,
                markersize=4,
            )
        if ceiling is not None:
            axes.axhline(ceiling, color=INKS["faint"], linewidth=1.2, linestyle=":")
        axes.set_xlabel({"labels": "labels, all sites together", "minutes": "expert minutes, all sites together"}[over])
        axes.grid(axis="y")
        _names(axes, [(curve.arm, curve.dice[-1][0], inks[curve.arm]) for curve in shown if curve.arm in inks], ceiling)

    ends = ", ".join(f"{curve.arm} ends at {curve.dice[-1][0]:.3f}" for curve in shown if curve.arm in inks)
    return plot(
        draw, key=over, alt=f"Line plot of test Dice against {over}: {ends}.", wide=Frame(960, 430), narrow=Frame(370, 360)
    )


def _names(axes: Axes, ends: Sequence[tuple[str, float, str]], ceiling: float | None) -> None:
    named = [*ends, *([] if ceiling is None else [(ALL_LABELS, ceiling, "muted")])]
    low, high = axes.get_ylim()
    gap = 15 * (high - low) / axes.get_window_extent().height
    for (name, value, ink), y in zip(named, spread([value for _, value, _ in named], gap, low, high), strict=True):
        axes.annotate(
            f"{value:.3f} {name}",
            (1.0, y),
            xycoords=axes.get_yaxis_transform(),
            xytext=(8, 0),
            textcoords="offset points",
            va="center_baseline",
            color=INKS[ink],
            annotation_clip=False,
        )


def _ink(arm: str) -> str:
    return "muted" if arm in (ALL_LABELS, ALONE) else "ink" if arm in ("random", "random_fg") else "test"
