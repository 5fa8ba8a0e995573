"""Which model each strategy reads, and what of it: what `look` finds where the models differ, against loops over pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy.special import digamma, gammaln
from torch import Tensor

from strategies.query import STRATEGIES
from strategies.query.parse import parse_query
from strategies.query.strategy import Columns, Model, Seen

CASES, CLASSES, SIDE = 3, 2, 4
LABELLED = (40.0, 7.0, 0.0)
Pixel = list[float]
"""A number for each class, background first."""


def seen(*models: Model) -> Seen:
    """A batch of which no two models say the same, as logits ≥ 0, so that they serve as ln α too; one case has padding."""
    generator = torch.Generator().manual_seed(3)
    drawn: dict[Model, dict[str, Tensor]] = {}
    for model in ("global", "local", "local_only"):
        drawn[model] = {
            "logits": 2 * torch.rand(1, CASES, CLASSES + 1, SIDE, SIDE, generator=generator),
            "features": torch.randn(CASES, 6, generator=generator),
            "taken": torch.randn(CASES, 5, SIDE, SIDE, generator=generator),
        }
    inside = torch.ones(CASES, SIDE, SIDE, dtype=torch.bool)
    inside[1, 2:] = False
    logits, features, taken = ({model: drawn[model][name] for model in models} for name in ("logits", "features", "taken"))
    return Seen(inside, logits, features, taken, LABELLED, embedding=torch.randn(CASES, 7, generator=generator))


def looked(name: str, of: Seen) -> Columns:
    strategy = parse_query(name)
    assert strategy.look is not None
    return strategy.finish(strategy.look(of))


def pixels(of: Seen, case: int, *models: Model) -> Iterator[list[Pixel]]:
    """The logits of each model at each pixel inside."""
    for row in range(SIDE):
        for column in range(SIDE):
            if of.inside[case, row, column]:
                yield [of.logits[model][0, case, :, row, column].tolist() for model in models]


def mean(values: Iterator[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def by_case(of: Seen, told: Callable[..., float], *models: Model) -> list[float]:
    """The mean over a case's pixels of what is told of its models' logits."""
    return [mean(told(*logits) for logits in pixels(of, case, *models)) for case in range(CASES)]


def softmax(logits: Pixel) -> Pixel:
    total = sum(math.exp(z) for z in logits)
    return [math.exp(z) / total for z in logits]


def entropy(logits: Pixel) -> float:
    return -sum(p * math.log(p) for p in softmax(logits))


# ------------------------------------------------------------------------------------------------- one model, or several


@pytest.mark.parametrize("model", ["global", "local"])
def test_entropy_is_of_the_model_that_is_asked(model: Model) -> None:
    of = seen(model)
    assert looked("entropy", of)["values"] == pytest.approx(by_case(of, entropy, model), rel=1e-5)


def test_entropy_of_two_models_is_that_of_their_mean() -> None:
    def of_mean(one: Pixel, other: Pixel) -> float:
        return -sum((p + q) / 2 * math.log((p + q) / 2) for p, q in zip(softmax(one), softmax(other), strict=True))

    of = seen("global", "local")
    assert looked("entropy", of)["values"] == pytest.approx(by_case(of, of_mean, "global", "local"), rel=1e-5)


def test_clasp_pe_weighs_each_class_by_its_probability() -> None:
    of = seen("local")
    found = looked("clasp_pe", of)
    assert found["values"] == pytest.approx(by_case(of, entropy, "local"), rel=1e-5)
    for class_ in (1, 2):
        expected = by_case(of, lambda logits, c=class_: entropy(logits) * softmax(logits)[c], "local")
        assert found["by_class"][:, class_ - 1] == pytest.approx(expected, rel=1e-5)


def test_random_fg_asks_where_anything_but_background_leads() -> None:
    of = seen("local")
    of.logits["local"][0, 0, 0] = 9.0
    of.logits["local"][0, 1, 0, :2] = 9.0  # the rest of case 1 is padding
    assert looked("random_fg", of)["foreground"].tolist() == [False, False, True]


@pytest.mark.parametrize("model", ["global", "local"])
def test_coreset_compares_features_of_the_model_that_is_asked(model: Model) -> None:
    of = seen(model)
    np.testing.assert_array_equal(looked("coreset", of)["features"], of.features[model].numpy())


@pytest.mark.parametrize("model", ["global", "local"])
def test_badge_takes_gradients_of_the_model_that_is_asked(model: Model) -> None:
    """(p − onehot(ŷ)) ⊗ what the kernel's middle saw, over the pixels inside."""
    of = seen(model)
    found = looked("badge", of)["features"].reshape(CASES, CLASSES + 1, 5, 3, 3)
    for case in range(CASES):
        expected = np.zeros((CLASSES + 1, 5))
        places = np.argwhere(of.inside[case].numpy())
        for row, column in places:
            p = np.array(softmax(of.logits[model][0, case, :, row, column].tolist()))
            p[p.argmax()] -= 1
            expected += np.outer(p, of.taken[model][case, :, row, column].numpy()) / len(places)
        np.testing.assert_allclose(found[case, :, :, 1, 1], expected, atol=1e-6)


@pytest.mark.parametrize("name", ["coreset", "badge"])
def test_of_two_models_both_say_how_far_cases_are_apart(name: str) -> None:
    of = seen("global", "local")
    of_both, of_each = looked(name, of)["features"], [looked(name, of.only(model))["features"] for model in ("global", "local")]
    squares = [((features[0] - features[1]) ** 2).sum() for features in (of_both, *of_each)]
    assert squares[0] == pytest.approx(squares[1] + squares[2], rel=1e-5)
    assert min(squares) > 0


@pytest.mark.parametrize("name", ["typiclust", "probcover"])
def test_before_training_sams_embeddings_are_compared(name: str) -> None:
    of = seen()
    assert of.embedding is not None
    np.testing.assert_array_equal(looked(name, of)["features"], of.embedding.numpy())


# ------------------------------------------------------------------------------------------------ models with a part each


def test_feal_is_epistemic_of_the_federation_aleatoric_of_both_and_compares_the_sites_own_features() -> None:
    """α = exp(logits). Means over pixels first, then their product over the pool."""

    def differential_entropy(logits: Pixel) -> float:
        alpha = np.exp(logits)
        total = alpha.sum()
        log_beta = gammaln(alpha).sum() - gammaln(total)
        return float(log_beta + (total - len(alpha)) * digamma(total) - ((alpha - 1) * digamma(alpha)).sum())

    def mean_entropy(logits: Pixel) -> float:
        alpha = np.exp(logits)
        return float((alpha / alpha.sum() * (digamma(alpha.sum() + 1) - digamma(alpha + 1))).sum())

    of = seen("global", "local")
    epistemic = np.array(by_case(of, differential_entropy, "global"))
    scaled = (epistemic - epistemic.min()) / (epistemic.max() - epistemic.min())
    level = np.array(by_case(of, mean_entropy, "global")) + np.array(by_case(of, mean_entropy, "local"))
    found = looked("feal", of)
    assert found["values"] == pytest.approx(scaled * level, rel=1e-5)
    np.testing.assert_array_equal(found["features"], of.features["local"].numpy())


def test_feal_tells_cases_with_much_evidence_apart() -> None:
    """α near 4e5, of which entropies in single precision would be noise: the more evidence, the less is left to learn."""
    of = seen("global", "local")
    for case in range(CASES):
        for model in ("global", "local"):
            of.logits[model][0, case] = math.log(4e5) + 0.001 * case
    assert looked("feal", of)["values"].argsort().tolist() == [2, 1, 0]
    alpha = np.exp(of.logits["global"][0, :, :, 0, 0].double().numpy())
    total = alpha.sum(axis=1)
    log_beta = gammaln(alpha).sum(axis=1) - gammaln(total)
    expected = log_beta + (total - CLASSES - 1) * digamma(total) - ((alpha - 1) * digamma(alpha)).sum(axis=1)
    strategy = parse_query("feal")
    assert strategy.look is not None
    assert strategy.look(of)["epistemic"] == pytest.approx(expected, abs=1e-6)


def test_logo_scores_by_the_federation_and_tells_kinds_apart_by_the_model_trained_alone() -> None:
    of = seen("global", "local_only")
    found = looked("logo", of)
    assert found["values"] == pytest.approx(by_case(of, entropy, "global"), rel=1e-5)
    doubt = np.array(by_case(of, lambda logits: 1 - max(softmax(logits)), "local_only"))
    np.testing.assert_allclose(found["features"], doubt[:, None] * of.features["local_only"].numpy(), rtol=1e-5)


def test_kafal_compares_the_federation_with_the_sites_own_model_by_its_labels() -> None:
    def contradiction(one: Pixel, other: Pixel) -> float:
        shift = [math.log(n + 1) for n in LABELLED]
        p, q = (softmax([z + s for z, s in zip(logits, shift, strict=True)]) for logits in (one, other))
        return sum((a - b) * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)) / 2

    of = seen("global", "local")
    expected = by_case(of, contradiction, "global", "local")
    assert min(expected) > 0
    assert looked("kafal", of)["values"] == pytest.approx(expected, rel=1e-4)


# ------------------------------------------------------------------------------------------------------- what is asked for


def test_who_keeps_away_from_labelled_cases_looks_at_them() -> None:
    assert {name for name in STRATEGIES if parse_query(name).labelled} == {"coreset", "typiclust", "probcover"}
