"""A site's part in finding kinds of cases with the others: sums and counts of SAM's embeddings over groups of enough patients.

What is asked comes as arrays of zeros beside the centroids, and what is told fills them, so that the gate's rule for updates (the
names, dtypes and shapes that came with the request, and no others) is the rule here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.faults import SiteFault
from client.groups import groups_of
from client.look import looks
from client.plan import Plan
from client.site import Site, Slices
from strategies.query.coordinate import Floats, Groups, census, cluster_sums, kinds_of, moments, most_typical_of
from strategies.query.typiclust import TYPICLUST
from strategies.query.vectors import unit_length
from strategies.records import Case, Weights


@dataclass(frozen=True)
class Teachable:
    """All cases of a site that may teach: N cases by id, their embeddings (N, F) and the group (N,) each is told with, or −1.

    Labelled, asked for, waiting or set aside: the same cases in every cycle, so that no difference of two cycles is of those
    that were annotated in between.
    """

    cases: list[Case]
    features: NDArray[np.float32]
    group: NDArray[np.intp]

    @classmethod
    def at(cls, site: Site, plan: Plan) -> Teachable:
        """Those of a site."""
        cases = sorted(site.store.cases("unlabelled", "requested", "labelled", "skipped"))
        features = embedded(site, plan, cases)
        return cls(cases, features, groups_of(site, cases, features))

    @property
    def fewest_patients(self) -> int:
        """Patients of the group that has fewest; 0 where nothing is told."""
        behind: dict[int, set[str]] = {}
        for case, number in zip(self.cases, self.group.tolist(), strict=True):
            if number >= 0:
                behind.setdefault(number, set()).add(case.patient)
        return min(map(len, behind.values()), default=0)


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
    """What the coordinator asks for, filled in, and the fewest patients behind any sum that it can make of it; 0 behind zeros.

        moments (2, F), cases (1,)                     sums and sums of squares, and how many cases
        centroids (K, F), counts (K,)                  a k-means step: centroids come, sums go back
        centroids (K, F), radius (1,), waiting, annotated, bare (K,)
                                                       the census: zeros go back in the place of what came

    Everything is of whole groups (`client/groups.py`), so what can be added and subtracted of it, in one step or over many, is
    of no fewer patients than the smallest group has, and to no more than a half of one of them (where `min_patients` is above 1).

    Raises:
        SiteFault: the site shares updates only, the run's budget needs no kinds, or its SAM's embeddings are of another length.
    """
    if not site.shares_sums:
        raise SiteFault("bad-request", "this site shares updates only, and kinds of cases are found from sums")
    if not plan.coordinated:
        raise SiteFault("bad-request", 'kinds of cases were asked for, but the run\'s budget.rule is not "coordinated"')
    known = Teachable.at(site, plan)
    length = next(array.shape[1] for array in asked.values() if array.ndim == 2)
    if known.cases and known.features.shape[1] != length:
        raise SiteFault(
            "sam-unavailable",
            f"the run finds kinds of cases by embeddings of {length} numbers, this site's SAM gives {known.features.shape[1]}: "
            "set sam_checkpoint in site.toml to a checkpoint of the run's sam.size",
        )
    pool, least = {case.id for case in site.store.cases("unlabelled")}, known.fewest_patients
    annotated = {case.id for case in site.store.cases("labelled", "requested")}
    groups = Groups.of(
        known.features.reshape(len(known.cases), length),
        known.group,
        waits=np.array([case.id in pool for case in known.cases], dtype=bool),
        annotated=np.array([case.id in annotated for case in known.cases], dtype=bool),
    )
    if "moments" in asked:
        return {"moments": moments(groups), "cases": groups.cases.sum(keepdims=True)}, least
    centroids = np.asarray(asked["centroids"], dtype=np.float64)
    if "counts" in asked:
        sums, counts = cluster_sums(groups, centroids)
        return {"centroids": sums, "counts": counts}, least
    said = census(groups, centroids, radius=float(asked["radius"][0]))
    zeros = {"centroids": np.zeros_like(centroids), "radius": np.zeros(1)}
    return {**zeros, "waiting": said.waiting, "annotated": said.annotated, "bare": said.bare}, least


def most_typical(site: Site, plan: Plan, *, kinds: Sequence[int], centroids: Floats, luck: np.random.Generator) -> list[Case]:
    """Of each kind that the site was given the most typical case that waits; fewer where the pool has lost some since."""
    known = Teachable.at(site, plan)
    pool = {case.id for case in site.store.cases("unlabelled")}
    rows = [row for row, case in enumerate(known.cases) if case.id in pool]
    if not rows:
        return []
    kind = kinds_of(known.features, known.group, centroids)[rows]
    chosen = most_typical_of(kinds, known.features[rows], kind, centroids, luck.permutation(len(rows)))
    return [known.cases[rows[place]] for place in chosen]
