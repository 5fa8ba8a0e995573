"""Local training: hidden labels can't matter, a repeated round is the same round, each framework does what is its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from train_support import NOW, OPEN, same

from client.faults import SiteFault
from client.plan import Plan
from client.site import Site
from client.train import When, _weighted, train
from strategies.global_model import parts_of
from strategies.records import Weights
from strategies.semi import FRAMEWORKS
from strategies.semi.mean_teacher import update_teacher

Made = tuple[Site, Plan, Weights]
Make = Callable[..., Made]


SAMS = [
    ("sam.enabled=false",),
    OPEN,
    (*OPEN, "sam.mask=true", "sam.min_stability=0.1"),
    (*OPEN[:3], "sam.trust=true"),
    (*OPEN, "sam.adapt=decoder", "sam.adapt_steps=2"),
    (*OPEN, "sam.beside=true", "preprocess.neighbours=1"),
]


@pytest.mark.parametrize(
    ("framework", "sam"), [("mean_teacher", sam) for sam in SAMS] + [(f, OPEN) for f in FRAMEWORKS if f != "mean_teacher"]
)
def test_labels_of_unlabelled_cases_cannot_reach_loss_or_gradients(joined: Make, framework: str, sam: tuple[str, ...]) -> None:
    """The leak test: noise in place of every hidden label that was not bought leaves the round bit-identical."""
    site, plan, weights = joined(f'train.framework="{framework}"', *sam, "train.local_steps=3")
    before = train(site, plan, NOW, weights, helpers={})
    rng = np.random.default_rng(1)
    for path in (site.workspace / "hidden").glob("*.npz"):
        with np.load(path) as file:
            shape = file["mask"].shape
        np.savez(path, mask=rng.integers(0, 3, shape).astype(np.uint8))
    after = train(site, plan, NOW, weights, helpers={})
    assert same(before.model, after.model)
    assert before.helpers.keys() == after.helpers.keys()
    assert all(same(before.helpers[name], after.helpers[name]) for name in before.helpers)
    assert before.losses == after.losses


def test_a_label_that_was_bought_does_matter(joined: Make) -> None:
    """The counterpart, without which the leak test could not fail."""
    site, plan, weights = joined()
    before = train(site, plan, NOW, weights, helpers={})
    more, _, _ = joined("experts.boundary_px=6.0", name="other")
    after = train(more, plan, NOW, weights, helpers={})
    assert not same(before.model, after.model)


def test_rounds_repeat_and_differ_from_each_other(joined: Make) -> None:
    site, plan, weights = joined()
    first = train(site, plan, NOW, weights, helpers={})
    again = train(site, plan, NOW, weights, helpers={})
    other = train(site, plan, When(1, 2, 2, 8), weights, helpers={})
    assert same(first.model, again.model)
    assert not same(first.model, other.model)


def test_the_teacher_is_a_moving_average_of_the_global_model(joined: Make) -> None:
    """From round to round; what the site's own student does to it within a round is not kept."""
    site, plan, weights = joined()
    before = {name: torch.full_like(torch.from_numpy(value), 3.0) for name, value in weights.items()}
    after = train(site, plan, When(1, 2, 50, 100), weights, helpers={"teacher": before}, since=48)
    kept = (48 / 49) * (49 / 50)  # by two steps of α = t/(t + 1)
    for name, value in after.helpers["teacher"].items():
        torch.testing.assert_close(value, 3.0 * kept + (1 - kept) * torch.from_numpy(weights[name]))
    away = train(site, plan, When(1, 9, 16, 100), weights, helpers={"teacher": before}, since=0)
    new = train(site, plan, When(1, 1, 0, 100), weights, helpers={})
    for done in (away, new):  # a teacher as old as the run is the initial model, of which nothing is left
        assert all(torch.equal(value, torch.from_numpy(weights[name])) for name, value in done.helpers["teacher"].items())


def test_within_a_round_the_teacher_follows_the_student(joined: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def watched(teacher: nn.Module, student: nn.Module, step: int) -> None:
        steps.append(step)
        update_teacher(teacher, student, step)

    monkeypatch.setattr("client.train.update_teacher", watched)
    site, plan, weights = joined()
    train(site, plan, When(1, 2, 50, 100), weights, helpers={})
    assert steps == [50, 51]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_round_of_every_framework_repeats_and_goes_on_from_its_helpers(joined: Make, framework: str, dropout: float) -> None:
    """What a killed round needs: the same weights and helpers give the same round, whatever ran before it."""
    site, plan, weights = joined(f'train.framework="{framework}"', f"network.dropout={dropout}")
    first = train(site, plan, NOW, weights, helpers={})
    averages = {name for name, kind in FRAMEWORKS[framework].helpers.items() if kind == "average"}
    assert set(first.helpers) == averages
    kept = {name: {key: value.clone() for key, value in state.items()} for name, state in first.helpers.items()}
    later, then = When(1, 2, 2, 8), {name: value.numpy() for name, value in first.model.items()}
    second, again = (train(site, plan, later, then, helpers=first.helpers) for _ in range(2))
    assert same(second.model, again.model)
    assert second.losses == again.losses
    for name, state in first.helpers.items():
        assert same(second.helpers[name], again.helpers[name])
        assert same(state, kept[name]), "the helpers that were given are left alone"
        assert not same(second.helpers[name], state)


def test_a_peer_begins_elsewhere_than_the_student(joined: Make) -> None:
    cross = 'train.framework="cross_pseudo"'
    weights, again, reseeded = (
        parts_of(joined(cross, f"seed={seed}", name=name, labels=0)[2]) for seed, name in ((1, "a"), (1, "b"), (2, "c"))
    )
    assert set(weights.peers) == {"second"}
    peer = weights.peers["second"]
    assert all(np.array_equal(again.peers["second"][name], value) for name, value in peer.items())
    for others in (weights.specialist, reseeded.peers["second"]):
        assert any(not np.array_equal(others[name], value) for name, value in peer.items())


def test_a_peer_goes_on_from_the_mean_of_all_sites_and_is_held_back_to_it(joined: Make) -> None:
    """One that stays at its site knows that site's labels alone, and teaches the student what is wrong."""
    moved = {}
    for mu in (0.0, 1000.0):
        site, plan, weights = joined('train.framework="cross_pseudo"', f"train.proximal_mu={mu}", name=f"mu{mu}")
        elsewhere = {name: np.add(value, 0.01) if name.startswith("peer.") else value for name, value in weights.items()}
        done, other = (train(site, plan, NOW, start, helpers={}) for start in (weights, elsewhere))
        assert done.helpers == {}, "nothing of it stays"
        names = [name for name in weights if name.startswith("peer.")]
        assert not same({name: done.model[name] for name in names}, other.model)
        moved[mu] = sum(float((done.model[name] - torch.from_numpy(weights[name])).square().sum()) for name in names)
    assert 0 < moved[1000.0] < moved[0.0]


def test_weights_without_the_peer_are_refused(joined: Make) -> None:
    site, plan, weights = joined('train.framework="cross_pseudo"')
    with pytest.raises(SiteFault, match="do not fit"):
        train(site, plan, NOW, parts_of(weights).specialist, helpers={})


@pytest.mark.parametrize(
    ("framework", "step", "expected"),
    [
        ("mean_teacher", 0, math.exp(-5)),
        ("mean_teacher", 4, 1.0),
        ("unimatch", 0, 4.0),
        ("unimatch", 4, 2.5),
        ("unimatch", 8, 1.0),
        ("unimatch", 9, 1.0),
        ("copy_paste", 0, 1.0),
        ("copy_paste", 8, 1.0),
    ],
)
def test_the_consistency_term_follows_the_ramp_or_the_line_of_its_framework(
    joined: Make, framework: str, step: int, expected: float
) -> None:
    _, plan, _ = joined(f'train.framework="{framework}"', "train.consistency_weight=3.0", labels=0)
    terms = {"supervised": torch.tensor(10.0), "consistency": torch.tensor(1.0)}
    found = _weighted(terms, FRAMEWORKS[framework], plan, step, 8)  # the ramp takes half of the 8 steps
    assert float(found) == pytest.approx(10 + 3 * FRAMEWORKS[framework].weight * expected)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_unless_told_otherwise_the_consistency_term_weighs_what_is_the_frameworks_own(joined: Make, framework: str) -> None:
    _, plan, _ = joined(f'train.framework="{framework}"', labels=0)
    terms = {"supervised": torch.tensor(10.0), "consistency": torch.tensor(1.0)}
    assert float(_weighted(terms, FRAMEWORKS[framework], plan, 8, 8)) == pytest.approx(10 + FRAMEWORKS[framework].weight)


@pytest.mark.parametrize(("when", "expected"), [(NOW, 4.0), (When(cycle=2, round=2, step=6, total_steps=8), 1.75)])
def test_unimatchs_weight_falls_over_the_run_and_does_not_begin_again_in_a_round(
    joined: Make, monkeypatch: pytest.MonkeyPatch, when: When, expected: float
) -> None:
    monkeypatch.setattr("strategies.semi.unimatch.THRESHOLD", 0.0)  # an untrained network is sure of nothing
    site, plan, weights = joined('train.framework="unimatch"', "train.local_steps=1")
    losses = train(site, plan, when, weights, helpers={}).losses
    assert losses["consistency"] > 0.1
    assert losses["total"] == pytest.approx(losses["supervised"] + expected * losses["consistency"], rel=1e-5)


def test_copy_paste_mixes_labelled_images_alone_in_the_first_fifth_of_the_run(joined: Make) -> None:
    site, plan, weights = joined('train.framework="copy_paste"')
    assert set(train(site, plan, When(1, 1, 0, 100), weights, helpers={}).losses) == {"supervised", "total"}
    assert set(train(site, plan, When(1, 9, 20, 100), weights, helpers={}).losses) == {"supervised", "consistency", "total"}


def test_supervised_uses_no_unlabelled_image(joined: Make) -> None:
    site, plan, weights = joined('train.framework="supervised"')
    done = train(site, plan, NOW, weights, helpers={})
    assert set(done.losses) == {"supervised", "total"}
    assert done.helpers == {}


def test_the_proximal_term_holds_the_weights_back(joined: Make) -> None:
    moved = {}
    for mu in (0.0, 1000.0):
        site, plan, weights = joined(f"train.proximal_mu={mu}", 'train.framework="supervised"', name=f"mu{mu}")
        done = train(site, plan, NOW, weights, helpers={})
        moved[mu] = sum(float((done.model[name] - torch.from_numpy(value)).square().sum()) for name, value in weights.items())
    assert moved[1000.0] < moved[0.0]


def test_weights_that_diverge_are_told_not_sent(joined: Make) -> None:
    site, plan, weights = joined('train.framework="supervised"')
    name = next(iter(weights))
    weights[name] = np.full_like(weights[name], np.nan)
    with pytest.raises(FloatingPointError, match=r"loss became nan in cycle 1, round 1.*Lower train\.learning_rate \(0\.001\)"):
        train(site, plan, NOW, weights, helpers={})


def test_weights_that_diverge_are_told_as_such_also_where_sam_would_be_asked(joined: Make) -> None:
    site, plan, weights = joined(*OPEN)
    name = next(iter(weights))
    weights[name] = np.full_like(weights[name], np.nan)
    with pytest.raises(FloatingPointError, match=r"NaN or Inf in cycle 1, round 1.*Lower train\.learning_rate \(0\.001\)"):
        train(site, plan, NOW, weights, helpers={})


def test_weights_of_another_network_are_refused(joined: Make) -> None:
    site, plan, weights = joined()
    weights.popitem()
    with pytest.raises(SiteFault, match="do not fit"):
        train(site, plan, NOW, weights, helpers={})


def test_training_learns(joined: Make) -> None:
    site, plan, weights = joined("train.local_steps=30", 'train.framework="supervised"', labels=6)
    first = train(site, plan, NOW, weights, helpers={})
    then = {name: value.numpy() for name, value in first.model.items()}
    second = train(site, plan, When(1, 2, 30, 60), then, helpers={})
    assert second.losses["supervised"] < 0.8 * first.losses["supervised"]
