"""Numbers as a person reads them."""

from __future__ import annotations

WITHHELD = "withheld by the site"
"""What stands where a site keeps a number to itself."""

NOT_TOLD = "not told by the site"
"""What stands for a Dice that is not there: the site keeps it to itself, or has no patients to measure it on."""


def dice(value: float | None) -> str:
    """Dice with three digits, or that it is not told."""
    return NOT_TOLD if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """A difference with its sign; a dash where there is none to give."""
    if value is None:
        return "–"
    return "0.000" if abs(value) < 0.0005 else f"{value:+.3f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Time: "8.4 s", "3 min 20 s", "2 h 05 min", "3 d 4 h"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def human_bytes(value: float) -> str:
    """Bytes, powers of 1000: "512 B", "12.3 MB", "918 MB"."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 99.95 else f"{value:.1f} {units[0]}"


def count(n: int, noun: str) -> str:
    """A number with its noun: "1 site", "3 classes"."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{n} {noun if n == 1 else plural}"


def shorten(text: str, most: int) -> str:
    """At most `most` characters, the last an ellipsis where some are left out."""
    return text if len(text) <= most else text[: most - 1] + "…"
