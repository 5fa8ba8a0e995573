"""Values from which a small SAM sets out: a short run learns from them sooner than from segment-anything's own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from strategies.sam_parts import Parts

FREQUENCIES_LOG10 = (math.log10(0.25), math.log10(8.0))
"""Of positions, in waves over half an image: the longest is two images long, the shortest a sixteenth of one."""


@torch.no_grad()
def initialise(parts: Parts) -> None:
    """Where segment-anything leaves zeros or torch's defaults: values with which a short run learns sooner.

    segment-anything draws the frequencies of positions from a normal distribution, all about the size of the image: fine
    for its 1024 pixels and long training, but the corners of a box then differ too little for half a pixel to be seen.
    Here they are spread evenly on a log scale, half of them along either axis as edges of boxes are. They are a buffer,
    kept with the weights.
    """
    encoder, decoder = parts.image_encoder, parts.mask_decoder
    if encoder.pos_embed is not None:
        _waves(encoder.pos_embed)
    for layer in encoder.blocks.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.trunc_normal_(layer.weight, std=0.04)
            torch.nn.init.zeros_(layer.bias)
    for name, layer in decoder.named_modules():
        if isinstance(layer, torch.nn.Linear):  # those with a ReLU after them halve the variance
            gain = 2.0 if any(part in name for part in ("mlp", "head")) else 1.0
            torch.nn.init.trunc_normal_(layer.weight, std=math.sqrt(gain / layer.in_features))
            torch.nn.init.zeros_(layer.bias)
            if "hypernetworks" in name and name.endswith("layers.2"):  # at first next to nothing is added to the ellipse
                layer.weight.mul_(0.1)
        elif isinstance(layer, torch.nn.ConvTranspose2d):
            torch.nn.init.trunc_normal_(layer.weight, std=math.sqrt(2 / layer.in_channels))
            if layer.bias is not None:
                torch.nn.init.zeros_(layer.bias)
    matrix = parts.get_buffer("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix")
    matrix.zero_()
    matrix[0, 0::2] = matrix[1, 1::2] = torch.logspace(*FREQUENCIES_LOG10, matrix.shape[1] // 2, device=matrix.device)


def _waves(positions: Tensor) -> None:
    """Fill (1, rows, columns, channels) with waves along rows and columns, square.

    The mask decoder compares positions with prompts, but what becomes the mask are the image's own channels: a cell must
    know from them where it is.
    """
    waves = positions.shape[3] // 4
    place = (torch.arange(positions.shape[1], device=positions.device) + 0.5) / positions.shape[1]
    phase = 2 * math.pi * (2 * place[:, None] - 1) * torch.logspace(-0.9, 0.6, waves, device=positions.device)
    wave = 0.5 * torch.cat([phase.sin(), phase.cos()], 1)
    positions[0, :, :, : 2 * waves] = wave[:, None, :]
    positions[0, :, :, 2 * waves : 4 * waves] = wave[None, :, :]
