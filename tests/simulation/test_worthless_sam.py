"""A SAM that knows nothing must not cost Dice: trust, not luck, keeps it from teaching."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests_support import events, of_one_site

from client.sam import Sam
from simulation.run import simulate
from strategies.sam_parts import SIZES, Parts
from strategies.semi.prompts import Prompts

MARGIN = 0.01


def box_itself(
    self: Sam, embeddings: torch.Tensor, prompts: Prompts, *, size: tuple[int, int], **how: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """In place of `Sam.decode`: each prompt's box, with full confidence."""
    place = torch.arange(size[0]) + 0.5
    left, top, right, bottom = prompts.boxes.unbind(1)
    columns, rows = ((place >= low[:, None]) & (place <= high[:, None]) for low, high in ((left, right), (top, bottom)))
    return torch.where(rows[:, :, None] & columns[:, None, :], 4.0, -4.0), torch.ones(len(prompts))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs that are compared lie."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("which", ["random", "box"])
def test_a_sam_that_knows_nothing_costs_no_dice(
    tiny_data: Path, tiny_config: Callable[..., Path], root: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """Against the same run without it; its gate stands open, and its term weighs as much as the labels.

    At first anything is better than what the specialist says, and SAM counts; the run is long enough to get over that.
    """
    data = root / "data"
    config = tiny_config(
        root=str(data if data.exists() else of_one_site(tiny_data, data)), cycles=1, rounds_per_cycle=12, local_steps=18
    )
    shared = ["budget.cold_start=4", "budget.per_cycle=0"]
    helped = [*shared, "sam.enabled=true", "sam.min_iou=0.0", "sam.min_agreement=0.0", "sam.weight=1.0"]
    if which == "random":
        torch.manual_seed(0)
        save_file(Parts(SIZES["small"]).state_dict(), root / "random.safetensors")
        helped.append(f"sam.checkpoint={root / 'random.safetensors'}")
    else:
        monkeypatch.setattr(Sam, "decode", box_itself)

    def dice(name: str, options: list[str]) -> float:
        folder = root / name
        record = events(folder if folder.exists() else simulate(config, options, out=folder))
        return float(next(event["dice_mean_test"] for event in record if event["event"] == "assess"))

    without = dice("without", [*shared, "sam.enabled=false"])
    assert without > 0.9
    if which == "box":
        believed = dice("believed", [*helped, "sam.trust=false"])
        assert believed < without - MARGIN, "it does harm where it is believed, or nothing is shown here"
    assert dice(which, helped) > without - MARGIN
