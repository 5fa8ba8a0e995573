"""How many cases each site may ask its experts for. What sites told of their pools in, grants out; both by site name.

A site may tell nothing (None), or how many cases wait and coarse quantiles of their scores (`Demand`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from strategies.records import Demand

Pools = Mapping[str, Demand | None]


def fixed(pools: Pools, *, per_site: int, floor: float = 0.0) -> dict[str, int]:
    """`per_site` for everyone, or the whole pool where it is smaller; a site that tells nothing trims the grant itself.

    Args:
        per_site: cases a site, 0 or more.
        floor: of no account here.

    Raises:
        ValueError: a negative number.
    """
    _check(pools, per_site)
    return {site: per_site if pool is None else min(per_site, pool.unlabelled) for site, pool in pools.items()}


def proportional(pools: Pools, *, per_site: int, floor: float = 0.0) -> dict[str, int]:
    """`per_site` × sites in all (or all there is), spread in proportion to the pools by largest remainder.

    No grant exceeds its pool and nothing that could be granted is lost: a site's exact share total · pool / Σ pools is
    at most its pool once the total is at most Σ pools, and so is that share rounded up. Equal remainders go to the
    larger pool, then to the name that sorts first; the next cycle's smaller pool evens that out.

    Raises:
        ValueError: a negative number, or a site that withholds its pool size.
    """
    _check(pools, per_site)
    sizes = {site: demand.unlabelled for site, demand in _told(pools, "proportional").items()}
    everything = sum(sizes.values())
    total = min(per_site * len(sizes), everything)
    if total == 0:
        return dict.fromkeys(sizes, 0)
    grants = {site: total * size // everything for site, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda site: (-(total * sizes[site] % everything), -sizes[site], site))
    for site in by_remainder[: total - sum(grants.values())]:
        grants[site] += 1
    return grants


def adaptive(pools: Pools, *, per_site: int, floor: float) -> dict[str, int]:
    """`per_site` × sites in all (or all there is): a floor for each, and the rest where the model's doubts are greatest.

    A site's weight is the highest of its score quantiles: what the cases are like that it would ask for next. Sites that tell
    no quantiles (too few patients, or a strategy without scores) count as the mean of those that do. The rest is spread by
    D'Hondt's rule, one case at a time to the highest weight per case granted, and never beyond a pool.

    Args:
        floor: share of `per_site`, in [0, 1], that every site is granted in any case: without it a site whose model is sure
            of itself, rightly or not, would never learn that it is wrong.

    Raises:
        ValueError: a negative number, a floor outside [0, 1], or a site that tells nothing.
    """
    _check(pools, per_site)
    if not 0 <= floor <= 1:
        raise ValueError(f"budget.floor is {floor}: it is a share of budget.per_cycle, from 0 to 1")
    demands = _told(pools, "adaptive")
    tops = {site: max(demand.quantiles) for site, demand in demands.items() if demand.quantiles}
    usual = sum(tops.values()) / len(tops) if tops else 1.0
    lowest = min(0.0, *tops.values(), usual) if tops else 0.0
    weights = {site: tops.get(site, usual) - lowest for site in demands}
    if not any(weights.values()):
        weights = dict.fromkeys(demands, 1.0)
    total = min(per_site * len(demands), sum(demand.unlabelled for demand in demands.values()))
    grants = {site: min(math.ceil(floor * per_site - 1e-9), demand.unlabelled) for site, demand in demands.items()}
    for _ in range(total - sum(grants.values())):
        open_ = [site for site in sorted(grants) if grants[site] < demands[site].unlabelled]
        best = max(open_, key=lambda site: (weights[site] / (grants[site] + 1), -grants[site]))
        grants[best] += 1
    return grants


BUDGETS: dict[str, Callable[..., dict[str, int]]] = {"fixed": fixed, "proportional": proportional, "adaptive": adaptive}


def _told(pools: Pools, rule: str) -> dict[str, Demand]:
    withheld = sorted(site for site, pool in pools.items() if pool is None)
    if withheld:
        raise ValueError(
            f'budget.rule = "{rule}" needs the pool size of every site, and {", ".join(withheld)} shared none: '
            'set budget.rule = "fixed", or privacy.share = "updates+sums" at those sites'
        )
    return {site: pool for site, pool in pools.items() if pool is not None}


def _check(pools: Pools, per_site: int) -> None:
    if per_site < 0:
        raise ValueError(f"{per_site} cases per site: a budget is 0 or more")
    for site, pool in pools.items():
        if pool is not None and pool.unlabelled < 0:
            raise ValueError(f"site {site} reports a pool of {pool.unlabelled} cases: a pool is 0 or more")
