"""Networks: sizes, seeds, independence of the images of a batch, features, and per-sample gradients by Opacus."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from strategies.networks import (
    GROUPS,
    NETWORKS,
    Evidence,
    build_network,
    class_map,
    feature_dropout,
    forward_traced,
    mean_probabilities,
    probabilities,
)
from strategies.query.badge import gradient_embedding
from strategies.semi import losses


def default(name: str = "unet", **changes: object) -> nn.Module:
    settings = {"in_channels": 1, "classes": 3, "norm": "instance", "dropout": 0.0, "seed": 0} | changes
    return build_network(name, **settings)  # type: ignore[arg-type]


def images(count: int, *, channels: int = 1, side: int = 32, seed: int = 1) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "millions"), [("unet_tiny", 0.1), ("unet_small", 0.4), ("unet", 1.6)])
def test_sizes_are_those_promised(name: str, millions: float) -> None:
    count = sum(parameter.numel() for parameter in default(name).parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.05)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("norm", ["instance", "group"])
@pytest.mark.parametrize(("channels", "classes"), [(1, 1), (3, 4), (1, 8)])
def test_every_norm_fits_every_number_of_classes(name: str, norm: str, channels: int, classes: int) -> None:
    """A group norm of 8 groups fits no last layer of 2, 5 or 9 channels; the network must work all the same."""
    network = default(name, norm=norm, in_channels=channels, classes=classes)
    logits = network(images(2, channels=channels))
    assert logits.shape == (2, classes + 1, 32, 32)
    assert logits.isfinite().all()
    for module in network.modules():
        assert not isinstance(module, nn.modules.batchnorm._BatchNorm)
        assert not getattr(module, "inplace", False), "in-place layers break per-sample gradients"


def test_group_norm_has_eight_groups_where_they_fit() -> None:
    groups = {
        module.num_channels: module.num_groups for module in default(norm="group").modules() if isinstance(module, nn.GroupNorm)
    }
    assert groups == {16: GROUPS, 32: GROUPS, 64: GROUPS, 128: GROUPS, 256: GROUPS, 4: 4}


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_an_image_does_not_see_the_others_of_its_batch(norm: str) -> None:
    network, batch = default("unet_tiny", norm=norm), images(3)
    together = network(batch)
    for index in range(3):
        torch.testing.assert_close(network(batch[index : index + 1])[0], together[index], rtol=1e-4, atol=1e-5)


def test_the_seed_decides_the_weights_and_the_caller_s_generator_is_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = default("unet_tiny", seed=5)
    assert torch.equal(torch.rand(3), expected)
    second, other = default("unet_tiny", seed=5), default("unet_tiny", seed=6)  # the generator stands elsewhere now
    for name, weights in first.state_dict().items():
        assert torch.equal(weights, second.state_dict()[name])
    assert any(not torch.equal(w, other.state_dict()[n]) for n, w in first.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_is_in_the_two_deepest_levels_alone(name: str) -> None:
    """What the encoder passes on at each level, read off two passes: above the last two it is the same in both."""
    network, levels = default(name, dropout=0.5).train(), len(NETWORKS[name].channels)
    block: Any = network.model
    encoders: list[nn.Module] = []
    while len(encoders) < levels - 1:
        encoders.append(block[0])
        block = block[1].submodule
    seen: list[Tensor] = []
    for module in (*encoders, block):
        module.register_forward_hook(lambda module, given, told: seen.append(told))
    with torch.no_grad():
        network(images(1))
        network(images(1))
    same = [torch.equal(one, other) for one, other in zip(seen[:levels], seen[levels:], strict=True)]
    assert same == [True] * (levels - 2) + [False] * 2


def test_only_dropout_tells_training_from_evaluation() -> None:
    batch = images(1)
    plain = default("unet_tiny")
    assert torch.equal(plain.train()(batch), plain.eval()(batch))
    dropping = default("unet_tiny", dropout=0.2)
    assert not torch.equal(dropping.train()(batch), dropping(batch))
    assert torch.equal(dropping.eval()(batch), dropping(batch))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "unet_huge"}, "unet_huge.*unet_tiny"),
        ({"norm": "batch"}, "batch.*instance"),
        ({"dropout": 1.0}, "dropout.*1.0"),
        ({"classes": 0}, "classes"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        default(**changes)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- features


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_the_bottleneck_averaged_over_space(name: str) -> None:
    network, batch = default(name).eval(), images(2, side=48)
    inner, deep = network.get_submodule("model"), batch
    while isinstance(inner, nn.Sequential):  # down, skip connection around the rest, up
        deep, inner = inner[0](deep), inner[1].get_submodule("submodule")
    traced = forward_traced(network, batch)
    logits, features = traced.logits, traced.features
    assert features.shape == (2, NETWORKS[name].channels[-1])
    torch.testing.assert_close(features, inner(deep).flatten(2).mean(-1))
    assert torch.equal(logits, network(batch))


def test_features_take_one_pass_and_leave_no_hook_behind() -> None:
    network, passes = default("unet_tiny"), []
    network.register_forward_pre_hook(lambda *_: passes.append(1))
    forward_traced(network, images(1))
    assert len(passes) == 1
    with pytest.raises(RuntimeError):
        forward_traced(network, images(1, channels=2))
    inner = [module for module in network.modules() if module is not network]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in inner)


def test_features_of_a_copy_are_the_copy_s() -> None:
    network = default("unet_tiny")
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    features = forward_traced(network, images(1)).features
    others = forward_traced(twin, images(1)).features
    assert not torch.allclose(features, others)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_the_last_convolution_took_gives_its_gradient(name: str) -> None:
    """Nothing comes after it but what is added, so that the gradient at its output is that at the logits."""
    network, batch = default(name).eval(), images(2, side=48)
    traced = forward_traced(network, batch)
    inside = torch.ones(2, 48, 48, dtype=torch.bool)
    found = gradient_embedding(traced.logits.detach(), traced.taken.detach(), inside, kernel_px=traced.kernel_px)
    last = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
    for case in range(2):
        loss = nn.functional.cross_entropy(traced.logits[case : case + 1], traced.logits[case : case + 1].argmax(1))
        (expected,) = torch.autograd.grad(loss, last.weight, retain_graph=True)
        torch.testing.assert_close(found[case], expected.flatten(), atol=1e-6, rtol=1e-3)


def test_a_network_without_bottleneck_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Conv2d.*unet"):
        forward_traced(nn.Conv2d(1, 2, 1), images(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_feature_dropout_reaches_what_the_decoder_sees_and_leaves_the_encoder_alone(name: str) -> None:
    """Against the network walked by hand: down undisturbed, then up over features whose channels are dropped."""
    network, batch = default(name).eval(), images(3, side=48)

    def walk(block: nn.Module, deep: Tensor, draw: torch.Generator) -> Tensor:
        if not isinstance(block, nn.Sequential):
            return drop(block(deep), draw)  # the bottleneck
        features = block[0](deep)
        below = walk(block[1].get_submodule("submodule"), features, draw)
        answer: Tensor = block[2](torch.cat([drop(features, draw), below], dim=1))
        return answer

    def drop(features: Tensor, draw: torch.Generator) -> Tensor:
        kept = torch.rand(features.shape[0], features.shape[1], generator=draw) >= 0.5
        return torch.where(kept[:, :, None, None], features / 0.5, torch.zeros(()))

    with feature_dropout(network, p=0.5, generator=torch.Generator().manual_seed(4)):
        found = network(batch)
    expected = walk(network.get_submodule("model"), batch, torch.Generator().manual_seed(4))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, network(batch))


def test_feature_dropout_ends_with_its_block_and_leaves_the_global_generator_alone() -> None:
    network, batch, state = default("unet_tiny"), images(2), torch.get_rng_state()
    plain = network(batch)
    with feature_dropout(network, p=0.0, generator=torch.Generator()):
        torch.testing.assert_close(network(batch), plain)
    with pytest.raises(RuntimeError), feature_dropout(network, p=0.5, generator=torch.Generator()):
        network(images(1, channels=2))
    assert torch.equal(network(batch), plain)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(TypeError, match="bottleneck"), feature_dropout(nn.Conv2d(1, 2, 1), p=0.5, generator=torch.Generator()):
        pass


@pytest.mark.parametrize("training", [True, False])
def test_probabilities_are_without_dropout_and_gradient_and_leave_the_mode(training: bool) -> None:
    network, batch = default("unet_tiny", dropout=0.3).train(training), images(2)
    probs = probabilities(network, batch)
    assert network.training is training
    assert not probs.requires_grad
    torch.testing.assert_close(probs, network.eval()(batch).softmax(1).detach())


# ------------------------------------------------------------------------------------------------ per-sample gradients


@pytest.mark.parametrize("norm", ["instance", "group"])
@pytest.mark.parametrize("name", [name for name, spec in NETWORKS.items() if spec.per_sample_gradients])
def test_per_sample_gradients_equal_one_image_gradients(name: str, norm: str) -> None:
    """What patient-level differential privacy rests on, for network and loss; in float64, so equal means equal."""
    network = default(name, norm=norm).double()
    batch = images(3).double()
    labels = torch.randint(0, 4, (3, 32, 32), generator=torch.Generator().manual_seed(2))
    labels[0] = 0  # a slice without any foreground
    alone = []
    for index in range(3):
        one = slice(index, index + 1)
        loss = losses.supervised(network(batch[one]), labels[one])
        alone.append(torch.autograd.grad(loss, list(network.parameters())))

    sampled = GradSampleModule(copy.deepcopy(network), loss_reduction="mean", strict=True)
    torch.autograd.backward(losses.supervised(sampled(batch), labels))
    trainable = [parameter for parameter in sampled.parameters() if parameter.requires_grad]
    assert len(trainable) == len(alone[0]) > 0
    for position, parameter in enumerate(trainable):
        expected = torch.stack([gradients[position] for gradients in alone])
        found = getattr(parameter, "grad_sample", None)
        assert found is not None
        assert found.shape == (3, *parameter.shape)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)


# ----------------------------------------------------------------------------------------------------------------- CUDA


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_gives_the_answers_and_gradients_of_the_cpu() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    network, batch = default(), images(2, side=64)
    twin = copy.deepcopy(network).cuda()
    labels = torch.randint(0, 4, (2, 64, 64), generator=torch.Generator().manual_seed(2))
    here = forward_traced(network, batch)
    torch.autograd.backward(losses.supervised(here.logits, labels))
    there = forward_traced(twin, batch.cuda())
    torch.autograd.backward(losses.supervised(there.logits, labels.cuda()))
    torch.testing.assert_close(there.logits.cpu(), here.logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(there.features.cpu(), here.features, rtol=1e-3, atol=1e-3)
    whole = torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None])
    other = torch.cat([parameter.grad.flatten().cpu() for parameter in twin.parameters() if parameter.grad is not None])
    assert (whole - other).norm() < 1e-3 * whole.norm()


@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (1, 2, 1, 1), (0, 3, 4, 4)])
def test_the_class_map_is_argmax_and_ties_go_to_the_first(shape: tuple[int, ...]) -> None:
    scores = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(class_map(scores), torch.from_numpy(scores.numpy().argmax(1)))


def test_networks_together_say_the_mean_of_what_each_says_in_evaluation_mode() -> None:
    networks = [default("unet_tiny", seed=seed, dropout=0.5).train() for seed in (0, 1)]
    with torch.no_grad():
        together = mean_probabilities(networks, images(2))
        one, other = (network.eval()(images(2)).softmax(1) for network in networks)
    assert torch.allclose(together, (one + other) / 2)
    assert torch.allclose(together.sum(1), torch.ones(2, 32, 32))


def test_an_evidential_heads_softmax_is_the_mean_of_its_dirichlet() -> None:
    """The same network but for the head: α = exp(z) + 1, softmax(ln α) = α / S, and whoever is unsure has no evidence."""
    plain, evidential = default(), default(head="evidential")
    z, log_alpha = plain(images(2)), evidential(images(2))
    alpha = z.exp() + 1
    torch.testing.assert_close(log_alpha.exp(), alpha)
    torch.testing.assert_close(log_alpha.softmax(dim=1), alpha / alpha.sum(dim=1, keepdim=True))
    assert (log_alpha >= 0).all()


def test_an_evidential_head_learns_where_it_has_no_evidence_yet() -> None:
    """With ReLU(z) in place of exp(z) a class without evidence has no gradient, and stays without."""
    head = Evidence()
    z = torch.full((1, 3, 2, 2), -2.0, requires_grad=True)
    losses.evidential(head(z), torch.ones(1, 2, 2, dtype=torch.int64)).backward()
    assert z.grad is not None
    assert (z.grad[:, 1] < 0).all(), "more evidence for the true class"
