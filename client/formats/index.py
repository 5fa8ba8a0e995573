"""`index.csv`: which cases a data set holds, whose they are, and where their files lie."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client.formats.image import FormatError

LISTED = 20
"""Faults spelled out in a message; the rest is counted."""
FORMAT_NAMES = ("dicom", "nifti", "picture")
READ = ("case", "patient", "site")
PLACES = {
    ("dicom", "image"): ["{case}/image"],
    ("nifti", "image"): ["images/{case}.nii.gz", "images/{case}.nii"],
    ("nifti", "label"): ["labels/{case}.nii.gz", "labels/{case}.nii"],
    ("picture", "image"): ["images/{case}.png", "images/{case}.jpg", "images/{case}.jpeg"],
    ("picture", "label"): ["masks/{case}.png"],
}


@dataclass(frozen=True)
class Entry:
    """One image of a data set.

    Attributes:
        case: its name, unique in the index.
        patient: whose it is, as the index says; hash it before it goes anywhere.
        site: the hospital it belongs to; None where the index has no such column and the configuration names a split.
        image: file or folder, as the format's `read_image` takes it.
        label: file, as the format's `read_mask` takes it; None where there is none and none is needed.
    """

    case: str
    patient: str
    site: str | None
    image: Path
    label: Path | None


def read_index(root: Path, *, format: str, index: str = "index.csv", need_labels: bool = True) -> list[Entry]:
    """Read the table of cases and find every file it promises.

    The table has a header. `case` or `patient` is required and each defaults to the other; `site` is optional; more
    columns are welcome and not read. Files, by format:

    - dicom: `<case>/image/`, a folder with one series, and `<case>/mask/*.dcm`, exactly one file;
    - nifti: `images/<case>.nii.gz` (or .nii) and `labels/<case>.nii.gz` (or .nii);
    - picture: `images/<case>.png` (or .jpg, .jpeg) and `masks/<case>.png`.

    Args:
        format: "dicom", "nifti" or "picture".
        need_labels: whether a case without a label file is a fault, or an Entry with label None.

    Returns:
        Entries in the order of the rows.

    Raises:
        FormatError: the table is missing, unreadable or empty; or any number of faults in it (missing columns, empty or
            duplicate names, missing files), all told at once.
    """
    if format not in FORMAT_NAMES:
        raise ValueError(f'format = "{format}": known formats are {", ".join(FORMAT_NAMES)}')
    table = root / index
    columns, rows = _read_table(table)
    if not {"case", "patient"} & set(columns):
        raise FormatError(
            f"{table} has no column case or patient, so its rows name nobody: its columns are "
            f"{', '.join(columns) or 'none'}. Name the column of cases `case`, that of patients `patient`"
        )
    if not rows:
        raise FormatError(f"{table} is empty: it has a header but no rows. Add one row for each case")
    entries: list[Entry] = []
    faults: list[str] = []
    for line, row in rows:
        case, patient = row.get("case") or row.get("patient") or "", row.get("patient") or row.get("case") or ""
        site = row.get("site")
        where = f"line {line}" + (f" ({case})" if case else "")
        problems = _row_problems(row, columns, case)
        images, wanted_image = _files(root, format, "image", case)
        labels, wanted_label = _files(root, format, "label", case)
        if not problems:
            problems += _count_problems(images, wanted_image, what="image", needed=True)
            problems += _count_problems(labels, wanted_label, what="label", needed=need_labels)
        faults += [f"{where}: {problem}" for problem in problems]
        if not problems:
            entries.append(Entry(case, patient, site, images[0], labels[0] if labels else None))
    names = Counter(row.get("case") or row.get("patient") for _, row in rows)
    for name, count in names.items():
        if name and count > 1:
            faults.append(f"{name} stands in {count} rows; keep one, or give each image a case of its own")
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults[:LISTED])
        more = f"\n  and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
        raise FormatError(f"{table} has {len(faults)} fault{'s' if len(faults) > 1 else ''}:\n{listed}{more}")
    return entries


def _read_table(table: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Column names, and rows with their line numbers, all stripped; a row's missing cells are missing keys."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            columns = [name.strip() for name in next(reader, [])]
            rows = []
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    named = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
                    rows.append((reader.line_num, named))
    except FileNotFoundError:
        raise FormatError(
            f"{table} does not exist: set data.root to the folder of the data set (is WARDROUND_DATA right?) and "
            "data.index "
            "to its table of cases"
        ) from None
    except OSError as error:
        raise FormatError(f"{table} cannot be read ({error.strerror or error}): check that you may read it") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise FormatError(f"{table} is not a table of comma-separated UTF-8 text ({error}): save it as CSV again") from error
    if not columns:
        raise FormatError(f"{table} is empty: write a header with `case` or `patient`, and one row for each case")
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise FormatError(f"{table} has the column {', '.join(twice)} twice: rename or drop one")
    return columns, rows


def _row_problems(row: dict[str, str], columns: list[str], case: str) -> list[str]:
    problems = [f"the column {name} is empty; fill it" for name in READ if name in columns and not row.get(name)]
    if case in (".", "..") or any(mark in case for mark in "/\\\0"):
        problems.append("a case must be a plain name, without slashes; rename it and its files")
    return problems


def _files(root: Path, format: str, what: Literal["image", "label"], case: str) -> tuple[list[Path], str]:
    """The files of a case that are there, and where they were looked for (relative to root)."""
    if format == "dicom" and what == "label":
        folder = root / case / "mask"
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        return [one for one in found if one.suffix.lower() == ".dcm" and not one.name.startswith(".")], f"{case}/mask/*.dcm"
    wanted = [pattern.format(case=case) for pattern in PLACES[format, what]]
    return [root / one for one in wanted if (root / one).exists()], " or ".join(wanted)


def _count_problems(found: list[Path], wanted: str, *, what: str, needed: bool) -> list[str]:
    """Exactly one file is right; none at all too, where it is not needed."""
    if len(found) > 1:
        return [f"{len(found)} files could be its {what} ({', '.join(one.name for one in found[:5])}); keep one"]
    if not found and needed:
        return [f"its {what} is missing; put it at {wanted}, or remove the row"]
    return []
