"""What a site tells of its scores: numbers over enough cases of enough patients, and finite ones alone."""

from __future__ import annotations

import numpy as np
import pytest

from client.score import demand_of
from strategies.records import Scores
from strategies.wire import QUANTILES


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
