"""A training step where the C library keeps freed memory, against the same where it hands it back to the system.

    python benchmarks/allocator.py

UniMatch, 4 + 4 images, the small UNet, one thread; processes of either kind take turns, the best step of each counts.
"""

from __future__ import annotations

import subprocess
import sys
import time

import torch
from common import report

from client.allocator import keep_freed_memory
from strategies.networks import build_network
from strategies.semi import FRAMEWORKS
from strategies.semi.batch import Batch, Time

TURNS, STEPS = 3, 20
SIDES_PX = (64, 96)


def child(side_px: int) -> None:
    """Prints the seconds of the best step."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build_network("unet_small", in_channels=1, classes=3, norm="instance", dropout=0.0, seed=0).train()
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)
    images, labels = torch.rand(8, 1, side_px, side_px), torch.randint(0, 4, (4, side_px, side_px))
    batch, generator = Batch(images[:4], labels, images[4:]), torch.Generator().manual_seed(0)
    best = float("inf")
    for _ in range(STEPS):
        begun = time.perf_counter()
        outcome = FRAMEWORKS["unimatch"].terms(batch, network, {}, time=Time(0.5, 1.0), generator=generator)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(outcome.losses.values())).sum().backward()
        optimiser.step()
        best = min(best, time.perf_counter() - begun)
    print(best)


def seconds(how: str, side_px: int) -> float:
    """Of the best step of a process of its own."""
    command = [sys.executable, __file__, how, str(side_px)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    figures = {}
    for side_px in SIDES_PX:
        turns = [(seconds("kept", side_px), seconds("plain", side_px)) for _ in range(TURNS)]
        kept, plain = (min(times) for times in zip(*turns, strict=True))
        figures[f"ratio_{side_px}_px"] = round(kept / plain, 3)
        print(f"{side_px} px: {1000 * kept:.1f} ms where it is kept, {1000 * plain:.1f} ms where it is not")
    report("allocator", **figures, goal="ratios <= 0.98", met=all(ratio <= 0.98 for ratio in figures.values()))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        if sys.argv[1] == "kept" and not keep_freed_memory():
            sys.exit("the C library here is not glibc, or MALLOC_ variables are set: there is nothing to compare")
        child(int(sys.argv[2]))
    else:
        main()
