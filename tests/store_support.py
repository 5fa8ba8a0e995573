"""A site's database with a few images in it, for tests."""

from __future__ import annotations

from pathlib import Path

from client.store import ImageRow, Store
from strategies.records import Case, Choice


def filled(path: Path, *, images: int = 2, slices: int = 3) -> Store:
    store = Store.at(path)
    for number in range(images):
        name = f"i{number}"
        cases = [Case(f"p{number}.{name}.{index:04d}", f"p{number}", name, index) for index in range(slices)]
        store.add_image(ImageRow(name, f"p{number}", f"/x/{name}", "pool", "", slices), cases)
    held = [Case("q.h.0000", "q", "h", 0)]
    store.add_image(ImageRow("h", "q", "/x/h", "test", "/x/m", 1), held)
    return store


def choices(*ids: str) -> list[Choice]:
    return [Choice(case_id, 1.0, "why") for case_id in ids]
