"""Batched prediction of network slices; the same for evaluation, scoring and proposals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from client.site import Slices
from strategies.records import Case

BATCH = 16


def batches(slices: Slices, cases: Sequence[Case], *, device: torch.device) -> Iterator[tuple[Sequence[Case], Tensor]]:
    """The cases in order, `BATCH` at a time, with their slices on the device."""
    for start in range(0, len(cases), BATCH):
        part = cases[start : start + BATCH]
        yield part, slices.take(part).to(device)


@torch.inference_mode()
def predict(network: nn.Module, slices: Slices, cases: Sequence[Case], *, device: torch.device) -> Tensor:
    """Class probabilities (len(cases), C + 1, size_px, size_px) on the CPU, by the network in evaluation mode."""
    network.eval()
    parts = [network(images).softmax(dim=1).cpu() for _, images in batches(slices, cases, device=device)]
    return torch.cat(parts)
