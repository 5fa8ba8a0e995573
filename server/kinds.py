"""The coordinator's part in finding kinds of cases, and sharing them out: federated TypiClust and ProbCover."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from server.sites import Problems, Sites
from strategies import wire
from strategies.query.coordinate import (
    MOST_CLUSTERS,
    Census,
    Floats,
    first_centroids,
    next_centroids,
    reach,
    refilled,
    share_out,
)
from strategies.randomness import numpy_rng
from strategies.records import Weights

STEPS = 8
"""Of k-means. Kinds need be about right, not converged: each step is a message to every site."""

CASES_A_KIND = 5
"""At least so many cases for each kind: of fewer no one would be typical."""


@dataclass(frozen=True)
class Kinds:
    """Where kinds lie (K, F), and which of them each site asks for, one entry a case; what the messages weighed, by site.

    `of_site` has the sites alone that answered every message, and had enough patients to tell of a case.
    """

    centroids: Floats
    of_site: Mapping[str, list[int]]
    traffic: Mapping[str, Mapping[str, int]]


def find_kinds(
    sites: Sites, problems: Problems, *, features: int, labels: int, per_site: int, covering: bool, seed: int, cycle: int
) -> Kinds:
    """Ask the sites for sums until kinds are found, then share `per_site` cases for each of them out among them.

    As many kinds as there will be labels, but `MOST_CLUSTERS`, and `CASES_A_KIND` on average. A site that does not answer a
    message, or tells of no case, is not asked the next one and has no kinds; where nobody is left, nobody has. What would be its
    grant goes to nobody else.

    Args:
        features: length of an embedding.
        labels: of all sites so far.
        covering: ProbCover's order, else TypiClust's.
    """
    rng = numpy_rng(seed, "kinds", cycle)
    traffic: dict[str, dict[str, int]] = {}
    there = list(sites.names)

    def ask(asked: Weights) -> dict[str, Weights]:
        answers = {}
        requests = dict.fromkeys(there, wire.Request(cycle=cycle))
        for answer in sites.ask(wire.KINDS, requests, problems, unpack=wire.unpack_kinds, weights=wire.pack_weights(asked)):
            answers[answer.site] = answer.record
            sums = traffic.setdefault(answer.site, {"bytes_up": 0, "bytes_down": 0})
            sums["bytes_up"] += answer.bytes_up
            sums["bytes_down"] += answer.bytes_down
        there[:] = sorted(answers)
        return {name: answers[name] for name in there}

    def summed(said: Mapping[str, Weights], name: str, like: Floats) -> Floats:
        return np.asarray(sum((np.asarray(one[name], dtype=np.float64) for one in said.values()), np.zeros_like(like)))

    said = ask({"moments": np.zeros((2, features)), "cases": np.zeros(1, dtype=np.int64)})
    there[:] = [name for name in there if said[name]["cases"][0]]  # who tells of no case is not shown the others' centroids
    cases, sums = int(summed(said, "cases", np.zeros(1))[0]), summed(said, "moments", np.zeros((2, features)))
    clusters = max(1, min(labels + per_site * len(there), MOST_CLUSTERS, cases // CASES_A_KIND))
    none = np.zeros(clusters, dtype=np.int64)
    if cases == 0:
        return Kinds(np.zeros((clusters, features)), {}, traffic)
    centroids = first_centroids(sums, cases, clusters=clusters, rng=rng)
    counts = none
    for step in range(STEPS):
        said = ask({"centroids": centroids, "counts": none})
        counts = summed(said, "counts", np.zeros(clusters)).astype(np.int64)
        centroids = next_centroids(centroids, summed(said, "centroids", centroids), counts)
        if step < STEPS - 1:
            centroids = refilled(centroids, counts, rng)
    said = ask(
        {"centroids": centroids, "radius": np.array([reach(centroids, counts)]), "waiting": none, "annotated": none, "bare": none}
    )
    censuses = {
        name: Census(*(one[which].astype(np.int64) for which in ("waiting", "annotated", "bare"))) for name, one in said.items()
    }
    telling = {name: one for name, one in censuses.items() if (one.waiting + one.annotated).any()}
    return Kinds(centroids, share_out(telling, total=per_site * len(telling), covering=covering, rng=rng), traffic)
