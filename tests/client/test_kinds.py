"""What a site tells so that sites find kinds of cases together: sums, over enough patients, and only where it shares sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from client.faults import SiteFault
from client.kinds import embedded, told
from client.plan import Plan
from client.site import Site
from strategies.records import Weights

COORDINATED = ('query.strategy="typiclust"', 'budget.rule="coordinated"')
LENGTH = 64
"""Of an embedding of the small SAM."""

Make = Callable[..., tuple[Site, Plan, Weights]]


def zeros(kinds: int) -> Any:
    return np.zeros(kinds, dtype=np.int64)


@pytest.fixture
def asked() -> dict[str, Weights]:
    centroids = np.random.default_rng(0).normal(size=(2, LENGTH))
    return {
        "moments": {"moments": np.zeros((2, LENGTH)), "cases": zeros(1)},
        "step": {"centroids": centroids, "counts": zeros(2)},
        "census": {
            "centroids": centroids,
            "radius": np.array([9.0]),
            "waiting": zeros(2),
            "annotated": zeros(2),
            "bare": zeros(2),
        },
    }


def test_moments_and_counts_are_those_of_the_embeddings(joined: Make, asked: dict[str, Weights]) -> None:
    site, plan, _ = joined(*COORDINATED)
    cases = sorted([*site.store.cases("unlabelled"), *site.store.cases("labelled")])
    features = embedded(site, plan, cases).astype(np.float64)
    assert features.shape == (len(cases), LENGTH)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    said, behind = told(site, plan, asked["moments"])
    np.testing.assert_allclose(
        np.asarray(said["moments"], dtype=np.float64), [features.sum(axis=0), np.square(features).sum(axis=0)], rtol=1e-6
    )
    assert said["cases"].tolist() == [len(cases)]
    assert behind == 1, "each case is told of by itself where min_patients is 1"
    step, _ = told(site, plan, asked["step"])
    assert step["counts"].sum() == len(cases), "labelled ones too: or the difference of two cycles would tell who they are"
    np.testing.assert_allclose(step["centroids"].sum(axis=0), features.sum(axis=0), rtol=1e-6)
    census, _ = told(site, plan, asked["census"])
    assert (census["waiting"].sum(), census["annotated"].sum()) == (len(cases) - 2, 2)
    assert not census["centroids"].any(), "what came does not go back"
    assert not census["radius"].any()


@pytest.mark.parametrize("message", ["moments", "step", "census"])
def test_too_few_patients_are_told_as_nothing(joined: Make, asked: dict[str, Weights], message: str) -> None:
    site, plan, _ = joined(*COORDINATED, "privacy.min_patients=50")
    said, behind = told(site, plan, asked[message])
    assert behind == 0, "nothing stands behind zeros"
    assert said.keys() == asked[message].keys()
    assert not any(array.any() for array in said.values())


def test_a_site_that_shares_updates_alone_tells_nothing(joined: Make, asked: dict[str, Weights]) -> None:
    site, plan, _ = joined('privacy.share="updates"', 'query.strategy="typiclust"')
    with pytest.raises(SiteFault, match="shares updates only"):
        told(site, plan, asked["moments"])


def test_kinds_are_told_in_runs_that_share_them_out_alone(joined: Make, asked: dict[str, Weights]) -> None:
    site, plan, _ = joined('query.strategy="typiclust"')
    with pytest.raises(SiteFault, match=r"the run's budget\.rule is not \"coordinated\"") as caught:
        told(site, plan, asked["moments"])
    assert caught.value.code == "bad-request"


def test_embeddings_of_another_sam_are_refused(joined: Make) -> None:
    site, plan, _ = joined(*COORDINATED)
    with pytest.raises(SiteFault, match=rf"embeddings of 7 numbers, this site's SAM gives {LENGTH}: set sam_checkpoint"):
        told(site, plan, {"moments": np.zeros((2, 7)), "cases": zeros(1)})
