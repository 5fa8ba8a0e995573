"""A SAM that knows nothing must not cost Dice, nor one that knows something: trust sees to that, after a late start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests_support import events, of_one_site

from client.sam import Sam
from configs.schema import Sam as SamSettings
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


@pytest.mark.parametrize("which", ["random", "box", "shipped"])
def test_a_sam_costs_no_dice_whatever_it_knows(
    tiny_data: Path, tiny_config: Callable[..., Path], root: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """Against the same run without it. Its term weighs as much as the labels, and the gate of those that know nothing is open.

    UniMatch keeps what it was told in the first rounds, in which anything is better than what the specialist says: how much
    that costs follows the processor, so of those rounds it is asked only that SAM had no part in them.
    """
    data = root / "data"
    config = tiny_config(
        root=str(data if data.exists() else of_one_site(tiny_data, data)),
        framework="unimatch",
        cycles=1,
        rounds_per_cycle=12,
        local_steps=18,
        batch_unlabelled=4,
    )
    shared = ["seed=2", "budget.cold_start=3", "budget.per_cycle=0"]
    helped = [*shared, "sam.enabled=true", "sam.weight=1.0", f"sam.start={SamSettings().start}"]
    if which != "shipped":
        helped += ["sam.min_iou=0.0", "sam.min_agreement=0.0"]
    if which == "random":
        torch.manual_seed(0)
        save_file(Parts(SIZES["small"]).state_dict(), root / "random.safetensors")
        helped.append(f"sam.checkpoint={root / 'random.safetensors'}")
    elif which == "box":
        monkeypatch.setattr(Sam, "decode", box_itself)

    def ran(name: str, options: list[str]) -> Path:
        return root / name if (root / name).exists() else simulate(config, options, out=root / name)

    def dice(folder: Path) -> float:
        return float(next(event["dice_mean_test"] for event in events(folder) if event["event"] == "assess"))

    without = dice(ran("without", [*shared, "sam.enabled=false"]))
    assert without > 0.9
    if which == "box":
        believed = dice(ran("believed", [*helped, "sam.trust=false"]))
        assert believed < without - MARGIN, "it does harm where it is believed, or nothing is shown here"
    folder = ran(which, helped)
    assert dice(folder) > without - MARGIN
    told = [event["sites"]["north"] for event in events(folder) if event["event"] == "train"]
    assert [site["sam_trust"] is not None for site in told] == [False] * 6 + [True] * 6
    assert not any("sam" in site["losses"] for site in told[:6])
