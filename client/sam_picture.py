"""What `sam_look` found as a picture, a row for each slice: image, what SAM is asked, what it answers, what is taught.

The picture shows patients. It is written where the hospital says, and nothing of it is ever sent.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from rich.console import Console

from client.sam_look import Look, Looks, look_at
from client.site import Site
from client.store import Store
from configs.files import write_bytes
from strategies.semi.losses import IGNORE

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#f0e442", "#d55e00", "#0072b2")
"""Of classes, in order; Okabe and Ito's, which colour-blind people tell apart."""

GREY = "0.4"
COLUMNS = ("the slice", "what SAM is asked", "what SAM answers", "what it teaches")
PANEL_INCHES = 2.4
MARGIN = 0.2
"""Around what is outlined, as a share of its extent."""


def show(workspace: Path, console: Console, *, cases: int, out: Path | None) -> None:
    """Write the picture and say where it is, and in a sentence what it shows.

    Raises:
        SiteFault, SamUnavailable: as `look_at` does; SiteFault too where there is no workspace.
        StorageFault: the picture can't be written.
    """
    Store.found_in(workspace).close()
    with Site(workspace) as site:
        looks = look_at(site, count=cases)
    path = workspace / "sam.png" if out is None else out
    write_bytes(path, draw(looks))
    for line in told(looks):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{path} shows images of this hospital's patients: keep it here.", highlight=False, markup=False, soft_wrap=True
    )


def told(looks: Looks) -> list[str]:
    """The picture in sentences."""
    answers = [answer for look in looks.slices for answer in look.answers]
    believed = sum(not answer.doubts for answer in answers)
    asked = f"SAM was asked about {len(answers)} component{'s' * (len(answers) != 1)}"
    on = f"{len(looks.slices)} slice{'s' * (len(looks.slices) != 1)}"
    lines = [f"After round {looks.round} of cycle {looks.cycle}, on {on}: {asked}, and {believed} of its masks pass the gate."]
    known = [look.dice for look in looks.slices if look.dice is not None]
    if known:
        before, with_sam = (float(np.nanmean(np.stack(values))) for values in zip(*known, strict=True))
        lines.append(f"Mean Dice there: {before:.3f} by the specialist, {with_sam:.3f} with the masks that pass.")
    trust = ", ".join(f"{name} {value:.2f}" for name, value in looks.trust.items())
    lines.append(f"{looks.unused}; its trust would be: {trust}." if looks.unused else f"It counts here by its trust: {trust}.")
    return lines


def draw(looks: Looks) -> bytes:
    """PNG with a row for each slice, and what lines and colours mean underneath."""
    rows = len(looks.slices)
    figure = Figure(figsize=(PANEL_INCHES * len(COLUMNS), PANEL_INCHES * 1.18 * rows + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(COLUMNS), squeeze=False)
    for number, (panels, look) in enumerate(zip(axes, looks.slices, strict=True)):
        for ax, title in zip(panels, COLUMNS, strict=True):
            ax.set(xticks=[], yticks=[])
            if number == 0:
                ax.set_title(title, fontsize=10)
            ax.imshow(look.image, cmap="gray", vmin=0, vmax=1)
        _truth(panels[0], look, looks)
        _asked(panels[1], look)
        _answered(panels[2], look, looks)
        _taught(panels[3], look)
        left, right, top, bottom = _frame(look)
        for ax in panels:
            ax.set(xlim=(left, right), ylim=(bottom, top))
    figure.legend(handles=_legend(looks), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _truth(ax: Axes, look: Look, looks: Looks) -> None:
    if look.truth is None or look.dice is None:
        ax.set_xlabel("not labelled", fontsize=7)
        return
    _outlines(ax, look.truth, "solid")
    told = [
        f"{_plain(name)} {before:.2f} → {after:.2f}"
        for name, before, after in zip(looks.classes, *look.dice, strict=True)
        if not np.isnan(before)
    ]
    ax.set_xlabel("\n".join(["Dice without → with SAM's masks", *told]), fontsize=7)


def _asked(ax: Axes, look: Look) -> None:
    _outlines(ax, look.prediction, "solid")
    for answer in look.answers:
        left, top, right, bottom = answer.box
        corner, colour = (left - 0.5, top - 0.5), _colour(answer.class_)
        ax.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=colour, linewidth=0.8))
        for inside, marker in ((True, "o"), (False, "x")):
            clicks = answer.clicks[answer.inside == inside] - 0.5
            ax.plot(clicks[:, 0], clicks[:, 1], marker, color=colour, markersize=4, markeredgewidth=1)
    if not look.answers:
        ax.set_xlabel("nothing: the specialist sees nothing large enough", fontsize=7)


def _answered(ax: Axes, look: Look, looks: Looks) -> None:
    lines = []
    for answer in look.answers:
        _outline(ax, answer.mask, _colour(answer.class_), "dotted" if answer.doubts else "solid")
        if answer.doubts:
            lines.append(f"{_plain(looks.classes[answer.class_ - 1])}: {', '.join(answer.doubts)}")
    ax.set_xlabel("\n".join(lines), fontsize=7)


def _taught(ax: Axes, look: Look) -> None:
    """Classes in their colours, background dark, and what is ignored as it is."""
    paint = np.zeros((*look.target.shape, 4))
    paint[look.target == 0] = (0, 0, 0, 0.65)
    for class_ in np.unique(look.target[(look.target > 0) & (look.target != IGNORE)]):
        colour = _colour(int(class_))
        paint[look.target == class_] = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)] + [0.7]
    ax.imshow(paint)
    if (look.target == IGNORE).all():
        ax.set_xlabel("nothing", fontsize=7)


def _outlines(ax: Axes, classes: NDArray[np.uint8], style: str) -> None:
    for class_ in np.unique(classes[(classes > 0) & (classes != IGNORE)]):
        _outline(ax, classes == class_, _colour(int(class_)), style)


def _outline(ax: Axes, mask: NDArray[np.bool_], colour: str, style: str) -> None:
    """Nothing where the mask has no border: matplotlib would warn."""
    if mask.any() and not mask.all():
        ax.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.0, linestyles=[style])


def _frame(look: Look) -> tuple[float, float, float, float]:
    """Left, right, top and bottom of what is shown: a square around all that is outlined, within the slice."""
    height, width = look.prediction.shape
    masks = [look.prediction > 0, *(answer.mask for answer in look.answers), *(() if look.truth is None else [look.truth > 0])]
    marked = [np.argwhere(mask)[:, ::-1] + end for mask in masks for end in (0, 1)]  # both edges of a pixel
    marked += [np.reshape(answer.box, (2, 2)) for answer in look.answers] + [answer.clicks for answer in look.answers]
    positions = np.concatenate(marked)
    if not len(positions):
        return -0.5, width - 0.5, -0.5, height - 0.5
    low, high = positions.min(0), positions.max(0)
    side = min((1 + 2 * MARGIN) * float((high - low).max()), height, width)
    left, top = (
        min(max((a + b - side) / 2, 0), most - side) - 0.5 for a, b, most in zip(low, high, (width, height), strict=True)
    )
    return left, left + side, top, top + side


def _legend(looks: Looks) -> list[Line2D]:
    handles = [
        Line2D([], [], color=_colour(n), label=f"{_plain(name)}: trust {looks.trust[name]:.2f}")
        for n, name in enumerate(looks.classes, start=1)
    ]
    return [
        *handles,
        Line2D([], [], marker="o", linestyle="none", markersize=4, label="click on the object", color=GREY),
        Line2D([], [], marker="x", linestyle="none", markersize=4, label="click beside it", color=GREY),
        Line2D([], [], linestyle="dotted", label="answer that is not believed", color=GREY),
    ]


def _colour(class_: int) -> str:
    """Of a class counted from 1."""
    return COLOURS[(class_ - 1) % len(COLOURS)]


def _plain(name: str) -> str:
    """A class's name as matplotlib takes it: between two $ it would read a formula."""
    return name.replace("$", r"\$")
