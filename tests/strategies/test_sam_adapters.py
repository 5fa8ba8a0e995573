"""An adapter starts as nothing, changes what its name says, and two sites' average is what averaging should mean."""

import numpy as np
import pytest
import torch

from strategies.aggregate import Mean
from strategies.sam_adapters import effective, initial_adapter, lora_a
from strategies.sam_parts import SIZES, Parts

SEED = 7


@pytest.fixture(scope="module")
def own() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(Parts(SIZES["small"]).named_parameters())


def drawn(adapter: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=array.shape).astype(np.float32) for name, array in adapter.items()}


def tensors(adapter: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in adapter.items()}


@pytest.mark.parametrize("adapt", ["decoder", "lora"])
def test_a_new_adapter_changes_nothing(own: dict[str, torch.Tensor], adapt: str) -> None:
    changed = effective(own, tensors(initial_adapter("small", adapt=adapt, rank=4)), seed=SEED)
    assert changed
    assert all(torch.equal(value, own[name]) for name, value in changed.items())


def test_what_is_adapted_is_what_the_name_says(own: dict[str, torch.Tensor]) -> None:
    decoder = effective(own, tensors(initial_adapter("small", adapt="decoder", rank=4)), seed=SEED)
    assert set(decoder) == {name for name in own if name.startswith("mask_decoder.")}
    lora = effective(own, tensors(initial_adapter("small", adapt="lora", rank=4)), seed=SEED)
    assert len(lora) == SIZES["small"].depth
    assert all(name.startswith("image_encoder.blocks.") for name in lora)
    assert initial_adapter("small", adapt="none", rank=4) == {}


@pytest.mark.parametrize("adapt", ["decoder", "lora"])
def test_the_aggregate_of_two_sites_is_the_mean_of_what_they_trained(own: dict[str, torch.Tensor], adapt: str) -> None:
    """With A trained as well this fails: mean(B)·mean(A) is not mean(B·A)."""
    start = initial_adapter("small", adapt=adapt, rank=4)
    one, other = drawn(start, 1), drawn(start, 2)
    mean = Mean(start)
    mean.add(one, 3.0)
    mean.add(other, 1.0)
    together = effective(own, tensors(mean.result()), seed=SEED)
    first, second = (effective(own, tensors(adapter), seed=SEED) for adapter in (one, other))
    for name, value in together.items():
        expected = 0.75 * first[name] + 0.25 * second[name]
        assert torch.allclose(value, expected, atol=1e-5), name
        assert not torch.allclose(value, own[name], atol=1e-2), "the adapters did something"


def test_a_is_the_same_at_every_site_and_differs_by_layer_and_seed() -> None:
    name = "image_encoder.blocks.0.attn.qkv.weight"
    a = lora_a(name, rank=4, features=128, seed=SEED)
    assert torch.equal(a, lora_a(name, rank=4, features=128, seed=SEED))
    assert not torch.equal(a, lora_a(name.replace("0", "1"), rank=4, features=128, seed=SEED))
    assert not torch.equal(a, lora_a(name, rank=4, features=128, seed=SEED + 1))


@pytest.mark.parametrize("features", [24, 96, 1280])
def test_what_a_hands_on_is_as_large_as_what_it_is_given_whatever_the_width(features: int) -> None:
    """Each number of A·x, for x of ones and minus ones, is a draw of variance 1: a learning rate suits every size of SAM."""
    a = lora_a("image_encoder.blocks.0.attn.qkv.weight", rank=1000, features=features, seed=SEED)
    assert float(a.std()) * features**0.5 == pytest.approx(1, abs=0.03)
    signs = torch.ones(features)
    signs[::2] = -1
    assert float((a @ signs).std()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("adapt", ["decoder", "lora"])
def test_gradients_flow_into_the_adapter(own: dict[str, torch.Tensor], adapt: str) -> None:
    adapter = {n: t.requires_grad_() for n, t in tensors(initial_adapter("small", adapt=adapt, rank=4)).items()}
    sum(value.sum() for value in effective(own, adapter, seed=SEED).values()).backward()  # type: ignore[union-attr]
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in adapter.values())
