"""The coordinator's part in finding kinds of cases, and sharing them out: federated TypiClust and ProbCover."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from server.sites import Problems, Sites
from strategies import wire
from strategies.query.coordinate import MOST_CLUSTERS, Census, Floats, first_centroids, next_centroids, share_out
from strategies.randomness import numpy_rng
from strategies.records import Weights

STEPS = 8
"""Of k-means. Kinds need be about right, not converged: each step is a message to every site."""


@dataclass(frozen=True)
class Kinds:
    """Where kinds lie, and which of them each site asks for, one entry a case."""

    centroids: Floats
    of_site: Mapping[str, list[int]]
    traffic: Mapping[str, Mapping[str, int]]


def find_kinds(
    sites: Sites, problems: Problems, *, features: int, labels: int, total: int, covering: bool, seed: int, cycle: int
) -> Kinds:
    """Ask all sites for sums until kinds are found, then share `total` cases out among them.

    As many kinds as there will be labels, at most `MOST_CLUSTERS`. A site that does not answer a step has no part in it.

    Args:
        features: length of an embedding.
        labels: of all sites so far.
        covering: ProbCover's order, else TypiClust's.
    """
    rng = numpy_rng(seed, "kinds", cycle)
    traffic: dict[str, dict[str, int]] = {}

    def ask(asked: Weights) -> dict[str, Weights]:
        answers = {}
        requests = dict.fromkeys(sites.names, wire.Request(cycle=cycle))
        for answer in sites.ask(wire.KINDS, requests, problems, unpack=wire.unpack_kinds, weights=wire.pack_weights(asked)):
            answers[answer.site] = answer.record
            sums = traffic.setdefault(answer.site, {"bytes_up": 0, "bytes_down": 0})
            sums["bytes_up"] += answer.bytes_up
            sums["bytes_down"] += answer.bytes_down
        return dict(sorted(answers.items()))

    said = ask({"moments": np.zeros((2, features)), "cases": np.zeros(1, dtype=np.int64)})
    cases = sum(int(one["cases"][0]) for one in said.values())
    clusters = max(1, min(labels + total, MOST_CLUSTERS))
    if cases == 0:
        return Kinds(np.zeros((clusters, features)), {name: [] for name in sites.names}, traffic)
    sums = np.sum([one["moments"] for one in said.values()], axis=0)
    centroids = first_centroids(sums, cases, clusters=clusters, rng=rng)
    for _ in range(STEPS):
        said = ask({"centroids": centroids, "counts": np.zeros(clusters, dtype=np.int64)})
        sums = np.sum([one["centroids"] for one in said.values()], axis=0)
        counts = np.sum([one["counts"] for one in said.values()], axis=0)
        centroids = next_centroids(centroids, sums, counts)
    zeros = np.zeros(clusters, dtype=np.int64)
    said = ask({"centroids": centroids, "waiting": zeros, "annotated": zeros})
    censuses = {name: Census(one["waiting"].astype(np.int64), one["annotated"].astype(np.int64)) for name, one in said.items()}
    shared = share_out(censuses, total=total, covering=covering, rng=rng)
    return Kinds(centroids, {name: shared.get(name, []) for name in sites.names}, traffic)
