"""What a SAM answers about scenes that it never learned from, as a picture to look at: a row for each object."""

from __future__ import annotations

import io

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from simulation.sam_exam import Answers, dice

ROWS = 10


def picture(answers: Answers) -> bytes:
    """PNG with a row for each of `ROWS` objects: image, truth, answer to the box (drawn), answer one click later.

    The first object of each scene is shown, scene after scene, so that the rows are the same in every exam.
    """
    asked = answers.asked
    _, first = torch.unique_consecutive(asked.image_index, return_counts=True)
    rows = torch.cat([first.new_zeros(1), first.cumsum(0)[:-1]])[:ROWS].tolist()
    figure = Figure(figsize=(8, 2 * len(rows)))
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 4, squeeze=False)
    for row, number in zip(axes, rows, strict=True):
        image = answers.scenes.images[asked.image_index[number], 0]
        truth = asked.masks[number] > 0.5
        for ax in row:
            ax.imshow(image.cpu().numpy(), cmap="gray", vmin=0, vmax=1)
            ax.set_axis_off()
        _outline(row[1], truth, "lime")
        for ax, answer in ((row[2], answers.boxed[number]), (row[3], answers.corrected[number])):
            _outline(ax, truth, "lime")
            _outline(ax, answer, "red")
            ax.set_title(f"Dice {float(dice(answer[None], truth[None])[0]):.2f}", fontsize=8)
        left, top, right, bottom = asked.boxes[number].tolist()
        x, y = [left, right, right, left, left], [top, top, bottom, bottom, top]
        row[2].plot([v - 0.5 for v in x], [v - 0.5 for v in y], color="cyan", linewidth=0.6)
    for ax, title in zip(axes[0], ("image", "truth", "box", "one click later"), strict=True):
        ax.set_title(f"{title}\n{ax.get_title()}".strip(), fontsize=8)
    figure.tight_layout(pad=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()


def _outline(ax: Axes, mask: Tensor, colour: str) -> None:
    """Nothing where the mask has no border: matplotlib would warn."""
    if mask.any() and not mask.all():
        ax.contour(mask.float().cpu().numpy(), levels=[0.5], colors=[colour], linewidths=0.8)
