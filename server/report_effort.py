"""The plots of what a run took: labels, traffic, losses. Each gives None where there is nothing to show.

A chart has a row for each site up to `ROWS` of them; with more it shows their spread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from server.report_data import Record, known
from server.report_sums import Cell, RoundLoss, Traffic, labels, losses, traffic, trusts
from server.report_svg import INKS, Frame, Plot, axes_in, plot
from server.report_words import WITHHELD, human_bytes, shorten

ROWS = 12
LETTER_PX = 7.4
"""A generous width of a letter, to leave room for names in front of rows."""

_MOST_LETTERS = 12
_SPREAD = ("most", "median", "least")


def label_plot(record: Record) -> Plot | None:
    """Labels granted (pale) and received (dark) per site and cycle. None where nothing was granted yet."""
    cells = labels(record)
    if not cells:
        return None
    cycles = sorted({cycle for _, cycle in cells})
    rows, scales = _label_rows(cells, cycles)

    def draw(figure: Figure, frame: Frame) -> None:
        columns = max(len(cycles), 4)  # so that one cycle does not stretch over the page
        axes = _rows_axes(figure, frame, list(rows), right=6, top=34)
        axes.set_xlim(0, columns)
        room = axes.get_position().width * frame.width / columns
        for k in range(0, len(cycles), max(1, math.ceil(24 / room))):
            axes.text(k + 0.04, -0.16, _cycle_title(cycles[k], room), color=INKS["muted"], va="bottom", clip_on=False)
        for i, (name, row) in enumerate(rows.items()):
            axes.axhline(i, color=INKS["grid"], linewidth=1)
            for k, (granted, received) in enumerate(row):
                if granted is not None or received is not None:
                    _label_cell(axes, k, i, granted, received, scales[name], with_text=room >= 40)

    granted, received = _sum(c.granted for c in cells.values()), _sum(c.received for c in cells.values())
    said = (
        f"Labels per site and cycle: {_told(granted)} granted and {_told(received)} received, "
        f"over {len({name for name, _ in cells})} sites and {len(cycles)} grants."
    )
    height = 52.0 + 30 * len(rows)
    return plot(draw, key="labels", alt=said, wide=Frame(960, height), narrow=Frame(370, height))


def traffic_plot(record: Record) -> Plot | None:
    """Bytes up and down per site. None where no bytes were recorded."""
    sums = traffic(record)
    if not any(moved.up or moved.down for moved in sums.values()):
        return None
    up, down = sum(moved.up for moved in sums.values()), sum(moved.down for moved in sums.values())
    said = (
        f"Traffic of {len(sums)} sites: {human_bytes(up)} from the sites to the coordinator, "
        f"{human_bytes(down)} from the coordinator to the sites."
    )
    draw = _traffic_bars if len(sums) <= ROWS else _traffic_dots
    height = 48.0 + 30 * len(sums) if len(sums) <= ROWS else 180.0
    return plot(
        lambda figure, frame: draw(figure, frame, sums),
        key="traffic",
        alt=said,
        wide=Frame(480, height),
        narrow=Frame(370, height),
    )


def loss_plot(record: Record) -> Plot | None:
    """A small panel for each loss term by training round: mean over sites, and the band from lowest to highest site."""
    rounds = losses(record)
    return _panels(rounds, used_terms(rounds), key="losses", what="Losses", most=None)


def trust_plot(record: Record) -> Plot | None:
    """The same of the trust that sites have in SAM, a panel for each class."""
    rounds = trusts(record)
    return _panels(rounds, used_terms(rounds), key="trust", what="Trust in SAM", most=1.0)


def _panels(rounds: Sequence[RoundLoss], terms: Sequence[str], *, key: str, what: str, most: float | None) -> Plot | None:
    """A small panel for each of `terms`; None without any. `most` is the upper end of their axes, by default what fits."""
    if not terms:
        return None

    def draw(figure: Figure, frame: Frame) -> None:
        columns = 2 if frame.slim else 4
        rows = math.ceil(len(terms) / columns)
        width, height = frame.width / columns, frame.height / rows
        for k, term in enumerate(terms):
            row, column = divmod(k, columns)
            left, top = column * width, row * height
            axes = axes_in(
                figure,
                frame,
                left=left + 40,
                right=frame.width - left - width + 16,
                bottom=frame.height - top - height + 38,
                top=top + 32,
            )
            _loss_panel(axes, rounds, term, most=most)

    last = {term: known(rounds[-1].terms.get(term, {}).values()) for term in terms}
    said = f"{what} over {len(rounds)} training rounds, mean over sites. Last: "
    said += ", ".join(f"{term} {fmean(values):.3f}" if values else f"{term} {WITHHELD}" for term, values in last.items())
    return plot(
        draw,
        key=key,
        alt=said + ".",
        wide=Frame(960, 225.0 * math.ceil(len(terms) / 4)),
        narrow=Frame(370, 190.0 * math.ceil(len(terms) / 2)),
    )


def used_terms(rounds: Sequence[RoundLoss]) -> list[str]:
    """Loss terms with a known value in some round; total first, the others as the sites list them."""
    terms = dict.fromkeys(term for r in rounds for term, values in r.terms.items() if known(values.values()))
    return sorted(terms, key=lambda term: term != "total")


# -------------------------------------------------------------------------------------------------------------- labels


_Row = list[tuple[float | None, float | None]]


def _label_rows(cells: Mapping[tuple[str, int], Cell], cycles: Sequence[int]) -> tuple[dict[str, _Row], dict[str, float]]:
    """Name of a row to granted and received in each cycle; and the number of labels that fills its cells."""
    sites = list(dict.fromkeys(name for name, _ in cells))
    rows: dict[str, _Row]
    if len(sites) <= ROWS:
        empty = Cell(None, None)
        found = {name: [cells.get((name, cycle), empty) for cycle in cycles] for name in sites}
        rows = {name: [(cell.granted, cell.received) for cell in row] for name, row in found.items()}
        return rows, dict.fromkeys(rows, _largest(*rows.values()))
    each = [[cell for (_, at), cell in cells.items() if at == cycle] for cycle in cycles]
    reductions = zip(("all sites", *_SPREAD), (_sum, _most, _mid, _least), strict=True)
    rows = {
        name: [(reduce(c.granted for c in column), reduce(c.received for c in column)) for column in each]
        for name, reduce in reductions
    }
    scales = dict.fromkeys(_SPREAD, _largest(*(rows[name] for name in _SPREAD)))
    return rows, {"all sites": _largest(rows["all sites"]), **scales}


def _label_cell(
    axes: Axes, k: int, i: int, granted: float | None, received: float | None, most: float, *, with_text: bool
) -> None:
    """A pale track as long as the grant, filled as far as labels came; it stays pale where that is withheld."""
    for value, alpha in ((granted, 0.22), (received, 1.0)):
        if value:
            axes.barh(i + 0.74, 0.8 * value / most, 0.2, k + 0.04, color=INKS["test"], alpha=alpha, linewidth=0)
    if with_text:
        left, right = ("?" if value is None else f"{value:g}" for value in (received, granted))
        short = granted is not None and received is not None and received < granted
        ink = "worst" if short else "ink" if left == right else "muted"
        text = left if left == right else f"{left} of {right}"
        axes.text(k + 0.04, i + 0.36, text, color=INKS[ink], fontsize=11, va="center_baseline")


def _cycle_title(cycle: int, room_px: float) -> str:
    if cycle == 0:
        return "start" if room_px < 70 else "cold start"
    return f"{cycle}" if room_px < 48 else f"cycle {cycle}"


# ------------------------------------------------------------------------------------------------------------- traffic


def _traffic_bars(figure: Figure, frame: Frame, sums: Mapping[str, Traffic]) -> None:
    """Two bars for each site, with their numbers."""
    axes = _rows_axes(figure, frame, list(sums), right=74, top=32)
    axes.set_xlim(0, max(max(moved.up, moved.down) for moved in sums.values()))
    for x, text, ink in ((0, "↑ from the site", "up"), (112, "↓ to the site", "down")):
        axes.annotate(text, (0, 1), (x, 14), "axes fraction", "offset points", color=INKS[ink], annotation_clip=False)
    for i, moved in enumerate(sums.values()):
        for at, value, ink in ((0.3, moved.up, "up"), (0.7, moved.down, "down")):
            axes.barh(i + at, value, height=0.28, color=INKS[ink], linewidth=0)
            axes.annotate(
                human_bytes(value),
                (value, i + at),
                xytext=(5, 0),
                textcoords="offset points",
                va="center_baseline",
                fontsize=10.5,
                color=INKS["muted"],
                annotation_clip=False,
            )


def _traffic_dots(figure: Figure, frame: Frame, sums: Mapping[str, Traffic]) -> None:
    """Many sites: a dot for each on two rows, the median marked and named."""
    axes = axes_in(figure, frame, left=12, right=24, bottom=30, top=8)
    up, down = [moved.up for moved in sums.values()], [moved.down for moved in sums.values()]
    axes.set_xlim(0, max(*up, *down) * 1.04)
    axes.set_ylim(2.1, 0)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=4 if frame.slim else 6)
    axes.xaxis.set_major_formatter(lambda value, _: human_bytes(value))
    for i, (ink, name, values) in enumerate((("up", "↑ from each site", up), ("down", "↓ to each site", down))):
        middle = median(values)
        axes.text(0, i + 0.28, f"{name}, median {human_bytes(middle)}", color=INKS[ink], va="center_baseline")
        scatter = [i + 0.66 + 0.05 * (k % 5 - 2) for k in range(len(values))]  # so that equal sites stay apart
        axes.plot(values, scatter, "o", color=INKS[ink], alpha=0.4, markersize=6, markeredgewidth=0, clip_on=False)
        axes.plot([middle, middle], [i + 0.5, i + 0.82], color=INKS["ink"], linewidth=2)


# -------------------------------------------------------------------------------------------------------------- losses


def _loss_panel(axes: Axes, rounds: Sequence[RoundLoss], term: str, *, most: float | None) -> None:
    """One term: mean line, band of the sites, rules between cycles."""
    told = [(i, known(r.terms.get(term, {}).values())) for i, r in enumerate(rounds, start=1)]
    told = [(i, values) for i, values in told if values]
    x = [i for i, _ in told]
    low, high = [min(values) for _, values in told], [max(values) for _, values in told]
    for i in range(1, len(rounds)):
        if rounds[i].cycle != rounds[i - 1].cycle:
            axes.axvline(i + 0.5, color=INKS["grid"], linewidth=1)
    axes.fill_between(x, low, high, color=INKS["test"], alpha=0.2, linewidth=0)
    middle = [fmean(values) for _, values in told]
    axes.plot(x, middle, color=INKS["test"], marker="o" if len(x) == 1 else None, clip_on=False)
    axes.set_xlim(0.5, len(rounds) + 0.5)
    axes.set_ylim(min(0.0, *low), most or (max(high) * 1.08 if max(high) > 0 else 1))
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="y")
    ends = sorted({1, len(rounds)})
    axes.set_xticks(ends, [f"round {i}" if i == 1 else f"{i}" for i in ends])
    axes.set_title(shorten(term, 18), loc="left", fontsize=12.5, fontweight="bold", color=INKS["ink"], pad=8)


# -------------------------------------------------------------------------------------------------------------- shared


def _rows_axes(figure: Figure, frame: Frame, names: Sequence[str], *, right: float, top: float) -> Axes:
    """Axes without lines, with a named row for each of `names`, the first on top; row i is y from i to i + 1."""
    short = [shorten(name, _MOST_LETTERS) for name in names]
    axes = axes_in(figure, frame, left=12 + LETTER_PX * max(map(len, short)), right=right, bottom=8, top=top)
    axes.set_ylim(len(names), 0)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([i + 0.5 for i in range(len(names))], short)
    return axes


def _told(value: float | None) -> str:
    return WITHHELD if value is None else f"{value:g}"


def _largest(*rows: _Row) -> float:
    return max(known(value for row in rows for cell in row for value in cell), default=0.0) or 1.0


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum; None where any part is withheld: a part of it would read as all of it."""
    parts = list(values)
    return None if not parts or None in parts else float(sum(known(parts)))


def _most(values: Iterable[float | None]) -> float | None:
    return max(known(values), default=None)


def _least(values: Iterable[float | None]) -> float | None:
    return min(known(values), default=None)


def _mid(values: Iterable[float | None]) -> float | None:
    told = known(values)
    return float(median(told)) if told else None
