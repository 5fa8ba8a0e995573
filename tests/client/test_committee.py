"""Who scores a pool: the models that a strategy or the run asks for, or nobody where one of them is missing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from client.committee import _shares, committee, own_balance
from client.models import LocalModels, save_models
from client.plan import Plan, network_for, network_with
from client.preprocess import inside
from client.score import score, strategy_of
from client.site import Site, Slices
from strategies.records import Weights
from strategies.wire import Request

Make = Callable[..., tuple[Site, Plan, Weights]]
NOW = Request(cycle=1, run="r")


def site_with_its_own_model(
    joined: Make, *overrides: str, cycle: int = 1, rounds_missed: int = 0
) -> tuple[Site, Plan, nn.Module, Weights]:
    """The site, its plan, the federation's model, and the weights of the site's own, which are half as large."""
    site, plan, weights = joined(*overrides)
    local = {name: torch.from_numpy(array) * 0.5 for name, array in weights.items()}
    path = site.workspace / "models" / "local.safetensors"
    round_ = plan.train.rounds_per_cycle - rounds_missed
    save_models(path, LocalModels("r", cycle, round_, 1, local, {}, settings=plan.model_dump(mode="json"), total_steps=8))
    return site, plan, network_with(plan, weights).to(site.device), {name: tensor.numpy() for name, tensor in local.items()}


@pytest.mark.parametrize(("model", "names"), [("global", ["global"]), ("local", ["local"]), ("both", ["global", "local"])])
def test_the_run_says_whose_prediction_is_scored(joined: Make, model: str, names: list[str]) -> None:
    site, plan, of_federation, own = site_with_its_own_model(joined, f'query.model="{model}"')
    models = committee(site, plan, strategy_of(plan), NOW, of_federation=of_federation)
    assert models is not None
    assert list(models) == names
    if "global" in models:
        assert models["global"] is of_federation
    if "local" in models:
        state = models["local"].state_dict()
        assert all(torch.equal(state[name].cpu(), torch.from_numpy(array)) for name, array in own.items())


def test_a_strategy_without_a_model_has_none(joined: Make) -> None:
    site, plan, of_federation, _ = site_with_its_own_model(joined, 'query.strategy="typiclust"')
    assert committee(site, plan, strategy_of(plan), NOW, of_federation=of_federation) == {}


@pytest.mark.parametrize("strategy", ["kafal", "entropy"])
@pytest.mark.parametrize("age", [{"cycle": 0}, {"rounds_missed": 1}], ids=["of another cycle", "of another round"])
def test_a_model_that_is_not_of_the_last_round_is_none(joined: Make, strategy: str, age: dict[str, int]) -> None:
    """The site was away then: who scored without its model, or with that of an earlier round, would be another strategy."""
    site, plan, of_federation, _ = site_with_its_own_model(joined, f'query.strategy="{strategy}"', 'query.model="local"', **age)
    assert committee(site, plan, strategy_of(plan), NOW, of_federation=of_federation) is None


def test_a_model_that_is_trained_alone_knows_this_sites_labels_and_repeats(joined: Make) -> None:
    site, plan, of_federation, _ = site_with_its_own_model(joined, 'query.strategy="logo"', "train.local_steps=2")
    strategy = strategy_of(plan)
    states = []
    for _ in range(2):
        models = committee(site, plan, strategy, NOW, of_federation=of_federation)
        assert models is not None
        states.append(models["local_only"].state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    initial = network_for(plan).state_dict()
    assert not all(torch.equal(states[0][name].cpu(), initial[name]) for name in initial)
    values = score(site, plan, strategy, models or {}, cycle=1).values
    assert values is not None


def test_a_model_that_is_trained_alone_learns_from_labels_and_nothing_else(joined: Make) -> None:
    """It is the same in runs that learn from unlabelled cases too, each in its way."""
    site, plan, of_federation, _ = site_with_its_own_model(joined, 'query.strategy="logo"', "train.local_steps=2")
    states = []
    for framework in ("supervised", "mean_teacher", "unimatch"):
        of_framework = plan.model_copy(update={"train": plan.train.model_copy(update={"framework": framework})})
        models = committee(site, of_framework, strategy_of(plan), NOW, of_federation=of_federation)
        assert models is not None
        states.append(models["local_only"].state_dict())
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[name], states[0][name]) for name in state)


def test_what_a_model_finds_in_the_pool_is_found_without_the_padding(joined: Make) -> None:
    """Class 1 in all of the image, and class 2 in all of its padding."""
    site, plan, weights = joined('query.model="switch"')
    rows, columns = inside(Slices(site, plan.preprocess).image(site.store.cases("unlabelled")[0].image).place)

    def answer(_module: nn.Module, _images: tuple[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        said = torch.zeros_like(logits)
        said[:, 2] = 5.0
        said[:, 1, rows, columns] = 9.0
        return said

    network = network_with(plan, weights)
    network.register_forward_hook(answer)
    assert _shares(site, plan, network) == [1.0, 0.0]


def test_no_model_is_trained_alone_without_a_label(joined: Make) -> None:
    site, plan, weights = joined('query.strategy="logo"', labels=0)
    assert committee(site, plan, strategy_of(plan), NOW, of_federation=network_with(plan, weights)) is None


@pytest.mark.parametrize(("mean_balance", "heard"), [(0.0, "global"), (1.0, "local"), (-1.0, "local")])
def test_the_switch_takes_one_model(joined: Make, mean_balance: float, heard: str) -> None:
    """The site's own model is the federation's: they differ by nothing, s = 1 − γ̄/2, and classes alone decide.

    Where no site tells (−1) they are those of its own labels, which are nearly level.
    """
    site, plan, weights = joined('query.model="switch"')
    assert own_balance(site, plan, site.store.cases("labelled")) > 0.5
    path = site.workspace / "models" / "local.safetensors"
    same = {name: torch.from_numpy(array) for name, array in weights.items()}
    last = plan.train.rounds_per_cycle
    save_models(path, LocalModels("r", 1, last, 1, same, {}, settings=plan.model_dump(mode="json"), total_steps=8))
    request = Request(cycle=1, run="r", mean_balance=mean_balance)
    models = committee(site, plan, strategy_of(plan), request, of_federation=network_with(plan, weights).to(site.device))
    assert models is not None
    assert list(models) == [heard]


def test_how_level_classes_are_comes_from_the_masks(joined: Make) -> None:
    site, plan, _ = joined(labels=4)
    cases = site.store.cases("labelled")
    assert 0.0 <= own_balance(site, plan, cases) <= 1.0
    assert own_balance(site, plan, []) == 0.0, "nothing is known"
