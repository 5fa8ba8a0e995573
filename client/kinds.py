"""A site's part in finding kinds of cases with the others: sums and counts of SAM's embeddings, never an embedding.

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


def told(site: Site, plan: Plan, asked: Weights) -> Weights:
    """What the coordinator asks for, filled in.

        moments (2, F), cases (1,)                     sums and sums of squares over the pool, and how many cases
        centroids (K, F), counts (K,)                  a k-means step: centroids come, sums go back
        centroids (K, F), waiting (K,), annotated (K,) the census: zeros go back in the place of centroids

    Raises:
        SiteFault: the site shares updates only, or its SAM's embeddings are of another length.
    """
    if not site.shares_sums:
        raise SiteFault("bad-request", "this site shares updates only, and kinds of cases are found from sums")
    pool = site.store.cases("unlabelled")
    features, patients = embedded(site, plan, pool), [case.patient for case in pool]
    length = next(array.shape[1] for array in asked.values() if array.ndim == 2)
    if len(pool) and features.shape[1] != length:
        raise SiteFault(
            "sam-unavailable",
            f"the run finds kinds of cases by embeddings of {length} numbers, this site's SAM gives {features.shape[1]}: set "
            "sam_checkpoint in site.toml to a checkpoint of the run's sam.size",
        )
    features = features.reshape(len(pool), length)
    least = site.settings.min_patients
    if "moments" in asked:
        enough = len(set(patients)) >= least
        whole = moments(features) if enough else np.zeros(asked["moments"].shape)
        return {"moments": whole.astype(np.float64), "cases": np.array([len(pool) if enough else 0], dtype=np.int64)}
    centroids = np.asarray(asked["centroids"], dtype=np.float64)
    if "counts" in asked:
        sums, counts = cluster_sums(features, patients, centroids, min_patients=least)
        return {"centroids": sums, "counts": counts}
    known = site.store.cases("labelled", "requested")
    of_known = embedded(site, plan, known).reshape(len(known), length)
    said = census(features, patients, of_known, [case.patient for case in known], centroids, min_patients=least)
    return {"centroids": np.zeros_like(centroids), "waiting": said.waiting, "annotated": said.annotated}
