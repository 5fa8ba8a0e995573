"""How many cases each site may ask its experts for. Pool sizes in, grants out; both by site name."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def fixed(pools: Mapping[str, int | None], *, per_site: int) -> dict[str, int]:
    """`per_site` for everyone, or the whole pool where it is smaller.

    Args:
        pools: unlabelled cases by site; None where a site withholds the number (it then trims the grant itself).
        per_site: cases a site, 0 or more.

    Raises:
        ValueError: a negative number.
    """
    _check(pools, per_site)
    return {site: per_site if pool is None else min(per_site, pool) for site, pool in pools.items()}


def proportional(pools: Mapping[str, int | None], *, per_site: int) -> dict[str, int]:
    """`per_site` × sites in all (or all there is), spread in proportion to the pools by largest remainder.

    No grant exceeds its pool and nothing that could be granted is lost: a site's exact share total · pool / Σ pools is
    at most its pool once the total is at most Σ pools, and so is that share rounded up. Equal remainders go to the
    larger pool, then to the name that sorts first; the next cycle's smaller pool evens that out.

    Raises:
        ValueError: a negative number, or a site that withholds its pool size.
    """
    _check(pools, per_site)
    withheld = sorted(site for site, pool in pools.items() if pool is None)
    if withheld:
        raise ValueError(
            f'budget.rule = "proportional" needs the pool size of every site, and {", ".join(withheld)} shared none: '
            'set budget.rule = "fixed", or privacy.share = "updates+sums" at those sites'
        )
    sizes = {site: pool for site, pool in pools.items() if pool is not None}
    everything = sum(sizes.values())
    total = min(per_site * len(sizes), everything)
    if total == 0:
        return dict.fromkeys(sizes, 0)
    grants = {site: total * size // everything for site, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda site: (-(total * sizes[site] % everything), -sizes[site], site))
    for site in by_remainder[: total - sum(grants.values())]:
        grants[site] += 1
    return grants


BUDGETS: dict[str, Callable[..., dict[str, int]]] = {"fixed": fixed, "proportional": proportional}


def _check(pools: Mapping[str, int | None], per_site: int) -> None:
    if per_site < 0:
        raise ValueError(f"{per_site} cases per site: a budget is 0 or more")
    for site, pool in pools.items():
        if pool is not None and pool < 0:
            raise ValueError(f"site {site} reports a pool of {pool} cases: a pool is 0 or more")
