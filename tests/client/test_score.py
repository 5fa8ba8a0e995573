"""What a site finds of its pool and of what is annotated, and what it tells: over enough cases of enough patients, and finite."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from client.faults import SiteFault
from client.look import class_pixels
from client.plan import Plan, network_with
from client.preprocess import inside
from client.score import demand_of, load_scores, save_scores, score, strategy_of
from client.site import Site, Slices
from strategies.networks import forward_traced
from strategies.query.strategy import Columns, Model, Seen
from strategies.records import Choice, Scores, Weights
from strategies.wire import QUANTILES

Make = Callable[..., tuple[Site, Plan, Weights]]


def scores(*, cases: int, patients: int) -> Scores:
    names = [f"{number:04d}" for number in range(cases)]
    return Scores(names, [f"patient{number % patients}" for number in range(cases)], np.linspace(0, 1, cases))


def test_quantiles_stand_for_min_patients_and_four_cases_each() -> None:
    told = demand_of(scores(cases=4 * QUANTILES, patients=2), units=2, min_patients=2)
    assert (told.unlabelled, told.units, len(told.quantiles)) == (4 * QUANTILES, 2, QUANTILES)
    assert list(told.quantiles) == sorted(told.quantiles)


@pytest.mark.parametrize(
    ("cases", "patients"),
    [(4 * QUANTILES, 1), (100 * QUANTILES, 1), (4 * QUANTILES - 1, 2)],
    ids=["one patient", "one patient with many cases", "few cases"],
)
def test_quantiles_of_too_few_patients_or_cases_are_withheld(cases: int, patients: int) -> None:
    told = demand_of(scores(cases=cases, patients=patients), units=cases, min_patients=2)
    assert told.quantiles == ()
    assert told.unlabelled == cases, "the grant needs the count"


@pytest.mark.parametrize("scale", [1e-9, 0.00123, 1.0, 4321.0])
def test_quantiles_are_coarse_but_as_coarse_for_small_scores_as_for_large_ones(scale: float) -> None:
    """Within 5 %, and in two digits: sites whose scores are a thousandth must not all tell the same, or twice the truth."""
    whole = scores(cases=4 * QUANTILES, patients=2)
    values = scale * (1 + np.asarray(whole.values))
    told = demand_of(Scores(whole.case_ids, whole.patients, values), units=1, min_patients=2)
    np.testing.assert_allclose(told.quantiles, np.quantile(values, np.linspace(0.1, 0.9, QUANTILES)), rtol=0.05)
    assert all(quantile == float(f"{quantile:.2g}") for quantile in told.quantiles)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["values", "features", "labelled_features"])
def test_scores_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    array = np.array([0.1, bad]) if name == "values" else np.array([[0.1, 0.2], [bad, 0.4]])
    with pytest.raises(FloatingPointError, match=f"{name}.* is not finite: the model diverged") as caught:
        Scores(["a", "b"], ["p", "q"], **{name: array})
    assert ("case b" in str(caught.value)) == (name != "labelled_features"), "the case is named where it is one of the pool"


@pytest.mark.parametrize("name", ["entropy", "feal"])
def test_a_site_stops_at_a_case_that_a_model_can_say_nothing_finite_of(joined: Make, name: str) -> None:
    head = "evidential" if name == "feal" else "softmax"
    site, plan, weights = joined(f'query.strategy="{name}"', f'network.head="{head}"')
    cases = site.store.cases("unlabelled")
    only = Slices(site, plan.preprocess).take([cases[2]])

    def diverged(_module: nn.Module, images: tuple[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        return torch.where((images[0] == only).flatten(1).all(1)[:, None, None, None], torch.nan, logits)

    models: dict[Model, nn.Module] = {"global": network_with(plan, weights), "local": network_with(plan, weights)}
    models["global"].register_forward_hook(diverged)
    with pytest.raises(SiteFault, match=f"of case {re.escape(cases[2].id)} is not finite") as caught:
        score(site, plan, strategy_of(plan), models, cycle=1)
    assert caught.value.code == "invariant-broken"


def test_a_labelled_case_of_which_nothing_finite_is_known_is_named(joined: Make) -> None:
    """They are looked at after the pool: here the second has NaN."""
    site, plan, weights = joined('query.strategy="coreset"', labels=3)
    odd, seen_before = len(site.store.cases("unlabelled")) + 1, 0
    see = strategy_of(plan).look
    assert see is not None

    def look(seen: Seen) -> Columns:
        nonlocal seen_before
        columns = dict(see(seen))
        rows = seen_before + np.arange(len(columns["features"]))
        seen_before += len(rows)
        return {**columns, "features": np.where((rows == odd)[:, None], np.float32(np.nan), columns["features"])}

    models: dict[Model, nn.Module] = {"global": network_with(plan, weights)}
    with pytest.raises(SiteFault, match=f"features of case {re.escape(site.store.cases('labelled')[1].id)} is not finite"):
        score(site, plan, replace(strategy_of(plan), look=look), models, cycle=1)


@pytest.mark.parametrize("case_ids", [["b", "a"], ["a", "a"]], ids=["out of order", "twice"])
def test_scores_in_the_pools_own_order_are_refused(case_ids: list[str]) -> None:
    """The generator decides between equals by place: by the pool's own, the same seed would choose otherwise elsewhere."""
    with pytest.raises(ValueError, match="unique and in ascending order"):
        Scores(case_ids, ["p", "q"])


def test_scores_of_another_cycle_or_run_do_not_choose(tmp_path: Path) -> None:
    """A site that was away when its pool was scored has those of a cycle before, by models that it has no more."""
    kept = scores(cases=3, patients=2)
    save_scores(tmp_path, kept, run="r", cycle=2)
    found = load_scores(tmp_path, run="r", cycle=2)
    assert found is not None
    assert (found.case_ids, found.patients) == (kept.case_ids, kept.patients)
    np.testing.assert_array_equal(np.asarray(found.values), np.asarray(kept.values))
    assert load_scores(tmp_path, run="r", cycle=3) is None
    assert load_scores(tmp_path, run="other", cycle=2) is None


def test_chance_counts_as_little_as_the_run_says(joined: Make) -> None:
    """A large β is the top: with the default of 1, of twenty scores as near as these, each is as likely as any."""
    _, plan, _ = joined('query.strategy="entropy+power"', "query.power_beta=1e6", labels=0)
    pool = Scores([f"{n:02d}" for n in range(20)], ["p"] * 20, np.linspace(0.9, 1, 20))
    assert strategy_of(plan).choose(pool, 3, np.random.default_rng(0)).case_ids == ["19", "18", "17"]


def test_pixels_of_annotated_classes_are_counted_without_the_padding(joined: Make) -> None:
    site, plan, _ = joined()
    slices, cases = Slices(site, plan.preprocess), site.store.cases("labelled")
    rows, columns = inside(slices.image(cases[0].image).place)
    masks = slices.labels(cases)[:, rows, columns].numpy()
    assert masks[0].size < plan.preprocess.size_px**2, "there is some"
    expected = [[(mask == class_).sum() for class_ in range(3)] for mask in masks]
    assert class_pixels(slices, cases, classes=2).tolist() == expected


def request_one(site: Site) -> None:
    """A case more that experts are asked for, and have not answered yet."""
    case = site.store.cases("unlabelled")[0]
    site.store.request("r", 1, cases=1, choices=[Choice(case.id, 0.0, "as a test")], tick=2)


def test_who_keeps_away_from_annotated_cases_is_shown_those_that_are_asked_for_too(joined: Make) -> None:
    site, plan, weights = joined('query.strategy="coreset"')
    request_one(site)
    network = network_with(plan, weights).eval()
    found = score(site, plan, strategy_of(plan), {"global": network}, cycle=1)
    slices = Slices(site, plan.preprocess)
    with torch.inference_mode():
        for told, states in ((found.features, ("unlabelled",)), (found.labelled_features, ("labelled", "requested"))):
            expected = forward_traced(network, slices.take(site.store.cases(*states))).features
            assert told is not None
            np.testing.assert_allclose(told, expected.numpy(), atol=1e-5)
    assert found.labelled_features is not None
    assert len(found.labelled_features) == 3


@pytest.mark.parametrize("unit", ["volume", "patient"])
def test_what_is_annotated_by_volumes_is_told_by_volumes(joined: Make, unit: str) -> None:
    """The mean of a volume's slices, as of volumes that wait; one that is asked for counts as an annotated one."""
    site, plan, weights = joined('query.strategy="coreset"', f'query.unit="{unit}"', labels=1)
    waits = site.store.cases("unlabelled")[0]
    slices_of_it = [Choice(case.id, 0.0, "as a test") for case in site.store.cases("unlabelled") if case.image == waits.image]
    site.store.request("r", 1, cases=1, choices=slices_of_it, tick=2)
    network = network_with(plan, weights).eval()
    found = score(site, plan, strategy_of(plan), {"global": network}, cycle=1).labelled_features
    known = site.store.cases("labelled", "requested")
    with torch.inference_mode():
        features = forward_traced(network, Slices(site, plan.preprocess).take(known)).features.numpy()
    images = sorted({case.image for case in known})
    assert len(images) == 2
    expected = [features[[case.image == image for case in known]].mean(axis=0) for image in images]
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["typiclust", "probcover"])
def test_before_training_too(joined: Make, name: str) -> None:
    site, plan, _ = joined(f'query.strategy="{name}"')
    request_one(site)
    found = score(site, plan, strategy_of(plan), {}, cycle=1)
    assert found.features is not None
    assert found.labelled_features is not None
    assert len(found.labelled_features) == 3
    assert found.labelled_features.shape[1] == found.features.shape[1]


def test_others_are_shown_the_pool_alone(joined: Make) -> None:
    site, plan, weights = joined()
    assert score(site, plan, strategy_of(plan), {"global": network_with(plan, weights)}, cycle=1).labelled_features is None


def blank(network: nn.Module) -> nn.Module:
    """The network, but that it sees background everywhere."""
    network.register_forward_hook(lambda _module, _images, logits: logits * 0 + torch.tensor([9.0, 0.0, 0.0])[:, None, None])
    return network


def test_slices_next_to_an_annotated_structure_are_its_border(joined: Make) -> None:
    """Where the model sees nothing at all; every slice that experts annotate here shows a structure."""
    site, plan, weights = joined('query.strategy="random_fg"')
    known = {(case.image, case.index) for case in site.store.cases("labelled")}
    found = score(site, plan, strategy_of(plan), {"global": blank(network_with(plan, weights))}, cycle=1).foreground
    assert found is not None
    for case, border in zip(site.store.cases("unlabelled"), found, strict=True):
        assert border == bool(known & {(case.image, case.index + step) for step in (-1, 1)})
    assert found.any()
    assert not found.all()


@pytest.mark.parametrize("sees", [True, False])
def test_of_a_slice_that_waits_for_an_expert_the_model_says_whether_it_shows_one(joined: Make, sees: bool) -> None:
    site, plan, weights = joined('query.strategy="random_fg"', labels=0)
    request_one(site)
    (waiting,) = site.store.cases("requested")
    only = Slices(site, plan.preprocess).take([waiting])
    network = network_with(plan, weights)

    def answer(_module: nn.Module, images: tuple[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        """Foreground in the slice that waits alone."""
        asked = (images[0] == only).flatten(1).all(1) & sees
        return (
            logits * 0
            + torch.where(asked[:, None], torch.tensor([0.0, 9.0, 0.0]), torch.tensor([9.0, 0.0, 0.0]))[..., None, None]
        )

    network.register_forward_hook(answer)
    found = score(site, plan, strategy_of(plan), {"global": network}, cycle=1).foreground
    assert found is not None
    border = [case for case, near in zip(site.store.cases("unlabelled"), found, strict=True) if near]
    assert bool(border) == sees
    assert all(case.image == waiting.image and abs(case.index - waiting.index) == 1 for case in border)


def test_one_model_contradicts_itself_by_dropout_that_the_cycle_draws(joined: Make) -> None:
    """Some of its neurons are off in each pass: which they are is the same each time that this cycle scores."""
    site, plan, weights = joined('query.strategy="bald"', "query.passes=3", "network.dropout=0.4")

    def values(cycle: int) -> list[float]:
        torch.rand(cycle)  # wherever torch's own generator stands
        found = score(site, plan, strategy_of(plan), {"global": network_with(plan, weights)}, cycle=cycle).values
        assert found is not None
        return [float(value) for value in found]

    first = values(1)
    assert min(first) > 1e-6, "without dropout all passes agree"
    assert values(1) == first
    assert values(2) != first


def test_two_models_are_compared_without_dropout(joined: Make) -> None:
    """A pure ensemble: one pass each, in which nothing is left to chance, though the network has dropout."""
    options = ('query.strategy="bald"', 'query.model="both"', "query.passes=1", "network.dropout=0.4")
    site, plan, weights = joined(*options)
    networks = [network_with(plan, weights) for _ in range(2)]
    with torch.no_grad():
        for parameter in networks[1].parameters():
            parameter.mul_(1.5)
    strategy = strategy_of(plan)
    values = score(site, plan, strategy, {"global": networks[0], "local": networks[1]}, cycle=1).values
    assert values is not None
    cases, slices = site.store.cases("unlabelled"), Slices(site, plan.preprocess)
    with torch.inference_mode():
        p, q = (network.eval()(slices.take(cases)).softmax(1).double() for network in networks)
    apart = (p.xlogy(p) / 2 + q.xlogy(q) / 2 - ((p + q) / 2).xlogy((p + q) / 2)).sum(1)
    rows, columns = inside(slices.image(cases[0].image).place)
    np.testing.assert_allclose(values, apart[:, rows, columns].mean((1, 2)), atol=1e-6)
    assert apart.mean() > 1e-3
