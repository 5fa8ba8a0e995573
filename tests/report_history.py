"""Synthetic run folders for the report's tests: seeded, as `history.jsonl` has them, with no training behind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIGURATION = """# a synthetic run
name = "synthetic"
seed = 0

[classes]
liver = ["liver"]

[train]
framework = "mean_teacher"

[sam]
enabled = true

[network]
name = "unet"

[query]
strategy = "entropy"

[budget]
cold_start = 4
per_cycle = 4

[privacy]
share = "updates+sums"
"""


def events(
    *,
    sites: Sequence[str] = ("A", "B", "C", "D"),
    classes: Sequence[str] = ("liver", "kidney", "tumour"),
    cycles: int = 5,
    rounds: int = 3,
    grant: int = 4,
    withheld: bool = False,
    troubles: bool = False,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The events of a whole run. `withheld`: every site shares updates alone. `troubles`: refusals and late replies."""
    rng = np.random.default_rng(seed)
    skill = {name: rng.normal(0, 0.035) for name in sites}
    ease = np.linspace(0.05, -0.09, len(classes))
    cases = {name: int(rng.integers(60, 120)) for name in sites}
    labelled = dict.fromkeys(sites, 0)
    clock = 0
    out: list[dict[str, Any]] = []

    def hide(value: Any) -> Any:
        return None if withheld else value

    def add(event: str, cycle: int, round_: int, by_site: Mapping[str, Mapping[str, Any]] | None = None, **more: Any) -> None:
        nonlocal clock
        clock += 2
        line = {"schema": 1, "event": event, "time": f"2026-01-01T10:{clock // 60:02d}:{clock % 60:02d}+00:00"}
        line |= {"cycle": cycle, "round": round_}
        out.append(line | ({"sites": by_site} if by_site is not None else {}) | more)

    def moved(up: float, down: float) -> dict[str, Any]:
        return {"bytes_up": int(up), "bytes_down": int(down), "seconds": round(float(rng.uniform(0.2, 2)), 3)}

    def annotate(cycle: int) -> None:
        add("grant", cycle, 0, {name: {"granted": grant} for name in sites})
        answers: dict[str, dict[str, Any]] = {}
        for name in sites:
            late = 2 if troubles and name == sites[-1] and cycle == 1 else 0
            labelled[name] += grant - late
            answers[name] = {
                "granted": hide(grant),
                "received": hide(grant - late),
                "outstanding": hide(late),
                "labelled": hide(labelled[name]),
                "unlabelled": hide(cases[name] - labelled[name]),
                "skipped": hide(0),
                "minutes": hide(round(0.8 * labelled[name])),
                **moved(420, 910),
            }
        add("annotate", cycle, 0, answers, labels_total=hide(sum(labelled.values())))

    add(
        "start",
        0,
        0,
        name="synthetic",
        seed=seed,
        classes=list(classes),
        engine="inline",
        threads=2,
        device="cpu",
        commit="0123abc",
        versions={"torch": "2.13.0", "flwr": "1.41.0", "wardround": "0.1.0"},
    )
    pools = {n: {"cases": hide(cases[n]), "labelled": hide(0), "unlabelled": hide(cases[n])} for n in sites}
    add("join", 0, 0, {name: pool | moved(300, 1800) for name, pool in pools.items()})
    annotate(0)
    for cycle in range(1, cycles + 1):
        for round_ in range(1, rounds + 1):
            time = (cycle - 1) * rounds + round_
            answers = {}
            for i, name in enumerate(sites):
                if troubles and (cycle, round_, i) == (2, 2, 1):
                    add("refused", cycle, round_, {name: {"code": "not-finite", "reference": "1a2b3c4d"}}, step="train")
                    continue
                supervised = float(0.9 * np.exp(-time / 5) + 0.12 + rng.uniform(0, 0.09) - skill[name])
                consistency = float(0.05 * min(1, time / 6) * rng.uniform(0.7, 1.3))
                sam = float(0.35 * np.exp(-time / 8) * rng.uniform(0.8, 1.2))
                terms = {"supervised": supervised, "consistency": consistency, "sam": sam, "proximal": None}
                answers[name] = {
                    "losses": {k: hide(v) for k, v in ({"total": supervised + consistency + 0.3 * sam} | terms).items()},
                    "labelled": hide(labelled[name]),
                    "labels_trained": hide(labelled[name]),
                    "unlabelled": hide(cases[name] - labelled[name]),
                    **moved(6.5e6, 6.6e6),
                }
            add("train", cycle, round_, answers, labels_total=hide(sum(labelled.values())))
        answers = {}
        for i, name in enumerate(sites):
            if troubles and cycle == 3 and i == 2:
                add("late", cycle, 0, {name: {}}, step="assess")
                continue
            level = 0.92 - 0.45 * float(np.exp(-0.55 * cycle)) + skill[name] * (1 + 2 / cycle)
            test = [round(float(np.clip(level + e + rng.normal(0, 0.012), 0, 1)), 6) for e in ease]
            answers[name] = {
                "dice": hide(round(float(np.mean(test)) + float(rng.normal(0.012, 0.012)), 6)),
                "dice_by_class": hide(test),
                "dice_test": hide(round(float(np.mean(test)), 6)),
                "dice_by_class_test": hide([*test[:-1], None] if troubles and i == 0 and len(test) > 1 else test),
                "unlabelled": hide(cases[name] - labelled[name]),
                **moved(700, 6.6e6),
            }
        add("assess", cycle, 0, answers, **means(answers), labels_total=hide(sum(labelled.values())))
        if cycle < cycles:
            annotate(cycle)
    last = out[-1]
    add(
        "end",
        cycles,
        0,
        best_cycle=cycles,
        dice_mean=last["dice_mean"],
        dice_mean_test=last["dice_mean_test"],
        labels_total=last["labels_total"],
        seconds=123.4,
    )
    return out


def means(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """The federation's means as the coordinator writes them."""
    found: dict[str, float | None] = {}
    for key in ("dice", "dice_test"):
        tail = key.removeprefix("dice")
        known = [answer[key] for answer in answers.values() if answer[key] is not None]
        found[f"dice_mean{tail}"] = float(np.mean(known)) if known else None
        found[f"dice_worst{tail}"] = min(known) if known else None
    return found


def write_run(
    folder: Path, lines: Sequence[Mapping[str, Any]], *, torn: str = "", configuration: str | None = CONFIGURATION
) -> Path:
    """A run folder with these events; `torn` is written after them without a line's end."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines) + torn
    (folder / "history.jsonl").write_text(text, encoding="utf-8")
    if configuration is not None:
        (folder / "config.toml").write_text(configuration, encoding="utf-8")
    return folder


def write_pictures(
    folder: Path,
    *,
    sites: Sequence[str] = ("A", "B", "C", "D"),
    cycles: Sequence[int] = (1, 5),
    images: int = 2,
    side: int = 96,
) -> None:
    """Pictures of ellipses whose prediction grows better from the first cycle to the last."""
    for s, site in enumerate(sites):
        for cycle in cycles:
            scenes = [_scene(seed=10 * s + k, side=side, skill=(cycle - 1) / max(1, max(cycles) - 1)) for k in range(images)]
            path = folder / "sites" / site / "pictures" / f"cycle_{cycle:03d}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            image, truth, prediction = (np.stack(part) for part in zip(*scenes, strict=True))
            np.savez_compressed(path, image=image, truth=truth, prediction=prediction)


def _scene(*, seed: int, side: int, skill: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    body = (x / 0.42) ** 2 + (y / 0.33) ** 2 < 1
    image = np.where(body, 90.0, 8.0) + 18 * np.sin(7 * x + seed) * body
    truth = np.zeros((side, side), np.uint8)
    prediction = np.zeros((side, side), np.uint8)
    for c, (cx, cy, rx, ry) in enumerate([(-0.15, -0.02, 0.16, 0.13), (0.17, 0.07, 0.08, 0.11), (-0.1, 0.02, 0.045, 0.05)]):
        cx, cy = cx + rng.normal(0, 0.02), cy + rng.normal(0, 0.02)
        angle = np.arctan2(y - cy, x - cx)
        shape = 1 + 0.12 * np.sin(3 * angle + rng.uniform(0, 6))
        radius = np.hypot((x - cx) / rx, (y - cy) / ry)
        truth[radius < shape] = c + 1
        error = (1 - 0.85 * skill) * (0.25 * np.sin(5 * angle + seed) + rng.normal(0, 0.18))
        prediction[radius < shape * (1 + error)] = c + 1
        image[radius < shape] += (45, 70, -35)[c]
    image += rng.normal(0, 9, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), truth, prediction
