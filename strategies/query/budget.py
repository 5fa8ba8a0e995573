"""How much each site may ask its experts for. What sites told of their pools in, grants out; both by site name.

A site may tell nothing (None), or how much waits and coarse quantiles of the scores (`Demand`). Pools and grants count the same
units: slices, volumes or patients. A site of which nothing is known is granted `per_site` by every rule, and trims that itself:
no rule can weigh what it does not know, and one such site must not stop the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from strategies.records import Demand

Pools = Mapping[str, Demand | None]


def fixed(pools: Pools, *, per_site: int, floor: float = 0.0) -> dict[str, int]:
    """`per_site` for everyone, or the whole pool where it is smaller.

    Args:
        per_site: units a site, 0 or more.
        floor: of no account here.

    Raises:
        ValueError: a negative number.
    """
    _check(pools, per_site)
    return {site: per_site if pool is None else min(per_site, pool.units) for site, pool in pools.items()}


def proportional(pools: Pools, *, per_site: int, floor: float = 0.0) -> dict[str, int]:
    """`per_site` × sites in all (or all there is), spread in proportion to the pools by largest remainder.

    No grant exceeds a known pool and nothing that could be granted is lost: a site's exact share total · pool / Σ pools is
    at most its pool once the total is at most Σ pools, and so is that share rounded up. Equal remainders go to the
    larger pool, then to the name that sorts first; the next cycle's smaller pool evens that out.

    Raises:
        ValueError: a negative number.
    """
    _check(pools, per_site)
    sizes = {site: demand.units for site, demand in pools.items() if demand is not None}
    everything = sum(sizes.values())
    total = min(per_site * len(sizes), everything)
    grants = dict.fromkeys(pools, per_site)
    if everything == 0:
        return {**grants, **dict.fromkeys(sizes, 0)}
    grants |= {site: total * size // everything for site, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda site: (-(total * sizes[site] % everything), -sizes[site], site))
    for site in by_remainder[: total - sum(grants[site] for site in sizes)]:
        grants[site] += 1
    return grants


def adaptive(pools: Pools, *, per_site: int, floor: float) -> dict[str, int]:
    """`per_site` × sites in all (or all there is): a floor for each, and the rest where the model's doubts are greatest.

    A site's weight is the highest of its score quantiles: what the cases are like that it would ask for next. That takes scores
    which mean the same everywhere, not ones scaled within a pool (the configuration refuses FEAL's). Sites that tell no quantiles
    (too few patients, or a strategy without scores) count as the mean of those that do. The rest is spread by D'Hondt's rule, one
    unit at a time to the highest weight per unit granted, and never beyond a known pool.

    Args:
        floor: share of `per_site`, in [0, 1], that every site is granted in any case: without it a site whose model is sure
            of itself, rightly or not, would never learn that it is wrong.

    Raises:
        ValueError: a negative number, or a floor outside [0, 1].
    """
    _check(pools, per_site)
    if not 0 <= floor <= 1:
        raise ValueError(f"budget.floor is {floor}: it is a share of budget.per_cycle, from 0 to 1")
    demands = {site: demand for site, demand in pools.items() if demand is not None}
    tops = {site: max(demand.quantiles) for site, demand in demands.items() if demand.quantiles}
    usual = sum(tops.values()) / len(tops) if tops else 1.0
    lowest = min(0.0, *tops.values(), usual) if tops else 0.0
    weights = {site: tops.get(site, usual) - lowest for site in demands}
    if not any(weights.values()):
        weights = dict.fromkeys(demands, 1.0)
    total = min(per_site * len(demands), sum(demand.units for demand in demands.values()))
    grants = dict.fromkeys(pools, per_site)
    grants |= {site: min(math.ceil(floor * per_site - 1e-9), demand.units) for site, demand in demands.items()}
    for _ in range(total - sum(grants[site] for site in demands)):
        open_ = [site for site in sorted(demands) if grants[site] < demands[site].units]
        best = max(open_, key=lambda site: (weights[site] / (grants[site] + 1), -grants[site]))
        grants[best] += 1
    return grants


BUDGETS: dict[str, Callable[..., dict[str, int]]] = {"fixed": fixed, "proportional": proportional, "adaptive": adaptive}


def _check(pools: Pools, per_site: int) -> None:
    if per_site < 0:
        raise ValueError(f"{per_site} per site: a budget is 0 or more")
    for site, pool in pools.items():
        if pool is not None and pool.units < 0:
            raise ValueError(f"site {site} reports a pool of {pool.units}: a pool is 0 or more")
