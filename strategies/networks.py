"""The specialists that are trained: MONAI's 2D UNet at three sizes, by name.

No network here has BatchNorm: it would mix the images of a batch, so that a patient's gradient would depend on who else
was drawn, and its running statistics would have to be averaged over hospitals. Instance and group norm look at one
image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import strategies.torchvision_ops  # noqa: F401  before MONAI, which imports torchvision where it finds it

from monai.networks.layers.simplelayers import SkipConnection  # isort: skip
from monai.networks.nets.unet import UNet  # isort: skip

NORMS = ("instance", "group")
HEADS = ("softmax", "evidential")
DROPPED = 2
"""Levels with dropout, from the bottleneck up. In all levels .1 left small networks at one class for hundreds of steps."""
GROUPS = 8
"""Groups of a group norm, where the channels allow it."""


@dataclass(frozen=True)
class Spec:
    """What a network's name stands for.

    Attributes:
        channels: channels of each level, top first; the last is the bottleneck and the length of its features.
        res_units: convolutions in a residual unit.
        per_sample_gradients: whether Opacus' per-sample gradients are right for it (tests/strategies/test_networks.py
            compares them with one-image gradients). False would rule it out for differentially private training.
    """

    channels: tuple[int, ...]
    res_units: int = 2
    per_sample_gradients: bool = True

    @property
    def strides(self) -> tuple[int, ...]:
        """Every level but the bottleneck halves the image."""
        return (2,) * (len(self.channels) - 1)

    @property
    def multiple(self) -> int:
        """Sides of an image must be multiples of this; with instance norm at least twice it, or the bottleneck is one
        pixel."""
        return math.prod(self.strides)


NETWORKS: dict[str, Spec] = {
    "unet_tiny": Spec(channels=(8, 16, 32, 64)),  # 0.1 M parameters
    "unet_small": Spec(channels=(8, 16, 32, 64, 128)),  # 0.4 M
    "unet": Spec(channels=(16, 32, 64, 128, 256)),  # 1.6 M
}


class Evidence(nn.Module):
    """An evidential head: logits z become ln α, α = exp(z) + 1, and their softmax the mean of Dir(α).

    Evidence is exp(z), and not ReLU(z) as in FEAL (Chen et al., 2024): that needs logits of hundreds for a sure answer, teaches
    nothing below 0, and left a U-Net at the background alone where a softmax had long learned the structure.
    """

    def forward(self, logits: Tensor) -> Tensor:
        """(B, C + 1, H, W), each ≥ 0."""
        return nn.functional.softplus(logits)


def build_network(
    name: str, *, in_channels: int, classes: int, norm: str, dropout: float, seed: int, head: str = "softmax"
) -> nn.Module:
    """A new network on the CPU, in training mode.

    Args:
        name: a key of `NETWORKS`.
        in_channels: K, channels of an image: 1 for grey, 3 for RGB.
        classes: C, foreground classes; the network answers with C + 1 logits, background first.
        norm: "instance" (without parameters) or "group" (8 groups, or fewer where the channels are not a multiple of 8,
            as in the last layer, whose channels are the classes).
        dropout: probability in [0, 1) in the blocks of the `DROPPED` deepest levels, for MC-dropout: there it served best
            (Kendall et al., Bayesian SegNet, BMVC 2017). Only dropout behaves differently in `train()` and `eval()`. torch's
            draws from the global generator: seed it (in a fork) where a result must repeat.
        head: "softmax" or "evidential" (`Evidence`).
        seed: the same seed gives the same weights on every machine. The caller's generators are not touched.

    Returns:
        A module from images (B, K, H, W) float32, with H and W multiples of `Spec.multiple`, to logits (B, C + 1, H,
        W).

    Raises:
        ValueError: for an unknown name or norm, or a number out of its range.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}: choose one of {', '.join(NETWORKS)}")
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}: choose one of {', '.join(NORMS)} (BatchNorm would mix patients)")
    if head not in HEADS:
        raise ValueError(f"unknown head {head!r}: choose one of {', '.join(HEADS)}")
    if in_channels < 1 or classes < 1:
        raise ValueError(f"in_channels and classes must be at least 1, not {in_channels} and {classes}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}")
    spec = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
        network = UNet(
            spatial_dims=2,
            in_channels=in_channels,
            out_channels=classes + 1,
            channels=spec.channels,
            strides=spec.strides,
            num_res_units=spec.res_units,
            norm="instance" if norm == "instance" else ("group", {"num_groups": 1}),
            dropout=dropout,
        )
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):  # MONAI takes one number of groups for all layers: 8 does not fit the last
            module.num_groups = math.gcd(GROUPS, module.num_channels)
    for where, module in network.named_modules():
        if isinstance(module, nn.Dropout) and where.count("submodule") <= len(spec.strides) - DROPPED:
            module.p = 0.0
    if head == "evidential":
        # without weights, so that a state dict is that of the other head
        network.model = nn.Sequential(*network.model.children(), Evidence())
    return network


@dataclass(frozen=True)
class Traced:
    """A forward pass and what query strategies read from its inside.

    Attributes:
        logits: (B, C + 1, H, W).
        features: (B, F), the bottleneck's output averaged over space, F = `Spec.channels[-1]`.
        taken: (B, K, H, W), what the last convolution took.
        kernel_px: the side of its kernel.
    """

    logits: Tensor
    features: Tensor
    taken: Tensor
    kernel_px: int


def forward_traced(network: nn.Module, images: Tensor) -> Traced:
    """One forward pass of images (B, K, H, W) float32. Mode and gradients are the caller's choice.

    Args:
        network: what `build_network` gave, or a copy of it, or that wrapped by Opacus.
    """
    outputs: list[Tensor] = []
    inputs: list[Tensor] = []
    last = _last_convolution(network)
    with ExitStack() as hooks:
        hooks.callback(_bottleneck(network).register_forward_hook(lambda _module, _in, output: outputs.append(output)).remove)
        hooks.callback(last.register_forward_hook(lambda _module, taken, _out: inputs.append(taken[0])).remove)
        logits: Tensor = network(images)
    (output,), (taken,) = outputs, inputs
    return Traced(logits, output.mean(dim=(2, 3)), taken, last.kernel_size[0])


def class_map(scores: Tensor) -> Tensor:
    """The class of the highest score, (B, H, W) int64 from logits or probabilities (B, C + 1, H, W).

    `scores.argmax(1)` is the same, and on a CPU takes ten times as long.
    """
    return scores.max(dim=1).indices


@torch.no_grad()
def probabilities(network: nn.Module, images: Tensor) -> Tensor:
    """(B, C + 1, H, W) of images (B, K, H, W), without gradient or dropout; the network's mode is as it was."""
    mode = network.training
    network.eval()
    try:
        probs: Tensor = network(images).softmax(dim=1)
    finally:
        network.train(mode)
    return probs


def mean_probabilities(networks: Sequence[nn.Module], images: Tensor) -> Tensor:
    """What networks say together: the mean of their `probabilities`, (B, C + 1, H, W)."""
    return torch.stack([probabilities(network, images) for network in networks]).mean(0)


@contextmanager
def feature_dropout(network: nn.Module, *, p: float, generator: torch.Generator) -> Iterator[None]:
    """Within the block, the decoder sees the encoder's features with channels dropped: UniMatch's perturbation.

    Of every image and at every level, the bottleneck included, a channel is 0 with probability p and else divided by
    1 − p. What goes down the encoder is not touched.

    Args:
        network: as for `forward_features`.
        p: in [0, 1).
        generator: the only randomness; it is advanced by every forward pass.
    """

    def dropped(features: Tensor) -> Tensor:
        kept = torch.rand(features.shape[:2], generator=generator, device=generator.device) >= p
        return features * (kept.to(features) / (1.0 - p))[:, :, None, None]

    def joined(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A skip connection's output is its input, the encoder's features, and behind it what came up from below."""
        channels = inputs[0].shape[1]
        return torch.cat([dropped(output[:, :channels]), output[:, channels:]], dim=1)

    bottleneck = _bottleneck(network)
    with ExitStack() as hooks:
        hooks.callback(bottleneck.register_forward_hook(lambda _module, _inputs, output: dropped(output)).remove)
        for skip in _skips(network):
            hooks.callback(skip.register_forward_hook(joined).remove)
        yield


def _skips(network: nn.Module) -> list[SkipConnection]:
    """MONAI nests a skip connection in each other, and `modules` lists the outer ones first."""
    return [module for module in network.modules() if isinstance(module, SkipConnection)]


def _bottleneck(network: nn.Module) -> nn.Module:
    """The innermost block."""
    skips = _skips(network)
    if not skips:
        raise TypeError(f"{type(network).__name__} has no bottleneck, so no features: use one of {list(NETWORKS)}")
    inner: nn.Module = skips[-1].submodule
    return inner


def _last_convolution(network: nn.Module) -> nn.Conv2d:
    """The one whose output, but for what is added to it, are the logits."""
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
