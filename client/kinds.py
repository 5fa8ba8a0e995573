"""A site's part in finding kinds of cases with the others: sums and counts of SAM's embeddings over enough patients.

What is asked comes as arrays of zeros beside the centroids, and what is told fills them, so that the gate's rule for updates (the
names, dtypes and shapes that came with the request, and no others) is the rule here too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from client.faults import SiteFault
from client.look import looks
from client.plan import Plan
from client.site import Site, Slices
from strategies.query.coordinate import census, cluster_sums, moments
from strategies.query.typiclust import TYPICLUST
from strategies.query.vectors import unit_length
from strategies.records import Case, Weights


def embedded(site: Site, plan: Plan, cases: Sequence[Case]) -> NDArray[np.float32]:
    """(N, channels): SAM's embedding of each case, averaged over its image, of unit length."""
    slices = Slices(site, plan.preprocess)
    parts = [
        seen.embedding.float().cpu().numpy()
        for _, seen in looks(site, plan, slices, cases, strategy=TYPICLUST, models={}, labelled_pixels=())
        if seen.embedding is not None
    ]
    return unit_length(np.concatenate(parts)) if parts else np.empty((0, 0), np.float32)


def told(site: Site, plan: Plan, asked: Weights) -> tuple[Weights, int]:
    """What the coordinator asks for, filled in, and the fewest patients behind a sum of it that is not 0.

        moments (2, F), cases (1,)                     sums and sums of squares, and how many cases
        centroids (K, F), counts (K,)                  a k-means step: centroids come, sums go back
        centroids (K, F), radius (1,), waiting, annotated, bare (K,)
                                                       the census: zeros go back in the place of what came

    Sums are over all cases that may teach, labelled or not, so that they are the same in every cycle: from the difference of two
    the cases could be worked out that were annotated in between.

    Raises:
        SiteFault: the site shares updates only, or its SAM's embeddings are of another length.
    """
    if not site.shares_sums:
        raise SiteFault("bad-request", "this site shares updates only, and kinds of cases are found from sums")
    pool, known = site.store.cases("unlabelled"), site.store.cases("labelled", "requested")
    length = next(array.shape[1] for array in asked.values() if array.ndim == 2)
    everybody = sorted([*pool, *known])
    features, patients = embedded(site, plan, everybody), [case.patient for case in everybody]
    if len(everybody) and features.shape[1] != length:
        raise SiteFault(
            "sam-unavailable",
            f"the run finds kinds of cases by embeddings of {length} numbers, this site's SAM gives {features.shape[1]}: set "
            "sam_checkpoint in site.toml to a checkpoint of the run's sam.size",
        )
    features = features.reshape(len(everybody), length)
    least, behind = site.settings.min_patients, len(set(patients))
    if "moments" in asked:
        if behind < least:
            return {name: np.zeros_like(array) for name, array in asked.items()}, least
        return {"moments": moments(features), "cases": np.array([len(everybody)], dtype=np.int64)}, behind
    centroids = np.asarray(asked["centroids"], dtype=np.float64)
    if "counts" in asked:
        sums, counts = cluster_sums(features, patients, centroids, min_patients=least)
        return {"centroids": sums, "counts": counts}, max(least, 1)
    waits = np.array([case in set(pool) for case in everybody], dtype=bool)
    rows = [np.flatnonzero(waits), np.flatnonzero(~waits)]
    parts = [(features[own], [patients[row] for row in own.tolist()]) for own in rows]
    said = census(*parts[0], *parts[1], centroids, radius=float(asked["radius"][0]), min_patients=least)
    zeros = {"centroids": np.zeros_like(centroids), "radius": np.zeros(1)}
    return {**zeros, "waiting": said.waiting, "annotated": said.annotated, "bare": said.bare}, max(least, 1)
