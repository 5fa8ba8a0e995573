"""The tiny configuration, and reading a run's record in tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TINY = """
name = "tiny"
seed = 3
threads = 1

[classes]
disc = 1
bar = 2

[data]
format = "nifti"
root = "{root}"

[split]
test_fraction = 0.2
validation_fraction = 0.2

[preprocess]
size_px = 32

[network]
name = "unet_tiny"

[train]
framework = "mean_teacher"
rounds_per_cycle = 2
local_steps = 2
batch_labelled = 2
batch_unlabelled = 2

[sam]
enabled = false
start = 0.0

[budget]
cold_start = 2
per_cycle = 1

[federation]
cycles = 2
"""


TIMES = ("time", "seconds")


def of_one_site(data: Path, root: Path) -> Path:
    """The data of the first site alone, in `root`: a federation of one is enough for what happens at a site."""
    root.mkdir()
    header, *rows = (data / "index.csv").read_text().splitlines(True)
    (root / "index.csv").write_text(header + "".join(row for row in rows if row.rstrip().endswith(",north")))
    for folder in ("images", "labels"):
        (root / folder).symlink_to(data / folder)
    return root


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def timeless(folder: Path) -> list[Any]:
    """The history without times and without the marks of a resume."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key not in TIMES}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return [strip(event) for event in events(folder) if event["event"] != "resume"]
