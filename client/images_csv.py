"""`images.csv`: which images a site has, whose they are, and what each is for.

    patient,image,path,role,truth,start
    4711,knee-1,/data/4711/t1,pool,,12 40
    4712,knee-2,/data/4712/t1,test,/data/4712/mask.dcm,

`image` is a name that stays when files move (the path by default); `truth` is the mask of a held-out image; `start`
names slices of a pool image, counted from 0 in the order of position, that experts are asked for before all others.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.faults import SiteFault

ROLES = ("pool", "validation", "test")
COLUMNS = ("patient", "image", "path", "role", "truth", "start")


@dataclass(frozen=True)
class Listed:
    """A row of the table; `truth` is empty where there is none."""

    patient: str
    image: str
    path: str
    role: str
    truth: str
    start: tuple[int, ...]


def read_images(path: Path) -> list[Listed]:
    """The rows of a site's table of images, one at least.

    Raises:
        SiteFault: it cannot be read, or faults are in it: all are told at once, by line.
    """
    rows, header = _table(path)
    lacking = [column for column in ("patient", "path", "role") if column not in header]
    if lacking:
        raise SiteFault(
            "bad-data",
            f"{path} has no column {', '.join(lacking)}: its first line must be a header that names patient, path and role "
            "(and truth, where images are held out), separated by commas",
        )
    odd = [name for name in header if name not in COLUMNS and name.strip().lower() in COLUMNS]
    if odd:
        wanted = ", ".join(name.strip().lower() for name in odd)
        raise SiteFault("bad-data", f"{path} has a column {', '.join(map(repr, odd))}, which nobody reads: write {wanted}")
    if not rows:
        raise SiteFault(
            "bad-data",
            f"{path} is not usable: it has no rows, so this site has nothing to label and nothing to train on. Add a row for "
            "each image (patient, path, role, and truth where the role is validation or test)",
        )
    faults = [f"line {number}: {fault}" for number, row in enumerate(rows, start=2) if (fault := _fault_of(row))]
    roles: dict[str, set[str]] = {}
    lines_of: dict[str, list[int]] = {}
    for number, row in enumerate(rows, start=2):
        roles.setdefault(row["patient"], set()).add(row["role"])
        lines_of.setdefault(row["patient"], []).append(number)
    torn = [lines[0] for patient, lines in lines_of.items() if len(roles[patient]) > 1]
    faults += [f"line {line}: its patient is on two sides of a split; give all rows of a patient one role" for line in torn]
    names = Counter(row.get("image") or row.get("path") for row in rows)
    faults += [f"image {name} is listed twice" for name, count in sorted(names.items(), key=str) if name and count > 1]
    if faults:
        raise SiteFault("bad-data", f"{path} is not usable: " + "; ".join(faults))
    return [
        Listed(
            row["patient"],
            row.get("image") or row["path"],
            row["path"],
            row["role"],
            row.get("truth") or "",
            tuple(int(number) for number in (row.get("start") or "").split()),
        )
        for row in rows
    ]


def _fault_of(row: Mapping[str, str]) -> str:
    """What is wrong with a row taken alone; empty when nothing is."""
    missing = [column for column in ("patient", "path", "role") if not row.get(column)]
    start = (row.get("start") or "").strip()
    if None in row:
        return "it has more cells than the header; numbers in start stand with blanks between them, as in 12 40"
    if missing:
        return f"no {', '.join(missing)}"
    if row["role"] not in ROLES:
        return f"role is {row['role']!r}, not one of {', '.join(ROLES)}"
    if row["role"] != "pool" and not row.get("truth"):
        return f"a {row['role']} image needs the path of its mask in column truth"
    if row["role"] != "pool" and start:
        return f"start names slices for experts to begin with, but a {row['role']} image is not theirs to draw: leave it empty"
    if not all(number.isascii() and number.isdigit() for number in start.split()):
        return f"start is {start!r}, not slice numbers from 0 with blanks between them, as in 12 40"
    return ""


def _table(path: Path) -> tuple[list[dict[str, str]], Sequence[str]]:
    try:
        table = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")))
        return list(table), table.fieldnames or []
    except OSError as error:
        raise SiteFault(
            "bad-data",
            f"cannot read {path}: {error.strerror}. It lists this site's images: put it there and make it readable, or "
            "name another table under images in site.toml",
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SiteFault(
            "bad-data", f"{path} is not a table of comma-separated UTF-8 text ({error}): save it again as CSV in UTF-8"
        ) from error
