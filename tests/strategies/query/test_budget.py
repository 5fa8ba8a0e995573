"""Grants add up, stay within the pools, and follow them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.query.budget import BUDGETS, fixed, proportional

pools = st.dictionaries(st.text("ABCDE", min_size=1, max_size=3), st.integers(0, 60), max_size=8)


@given(pools=pools, per_site=st.integers(0, 30))
def test_fixed_is_the_same_for_all(pools: dict[str, int], per_site: int) -> None:
    assert fixed(pools, per_site=per_site) == {site: min(pool, per_site) for site, pool in pools.items()}


@given(pools=pools, per_site=st.integers(0, 30))
def test_proportional_spends_everything_and_stays_within_the_pools(pools: dict[str, int], per_site: int) -> None:
    grants = proportional(pools, per_site=per_site)
    assert list(grants) == list(pools)
    assert sum(grants.values()) == min(per_site * len(pools), sum(pools.values()))
    assert all(0 <= grants[site] <= pools[site] for site in pools)
    for site, pool in pools.items():  # largest remainder: a grant is its exact share, rounded one way or the other
        if sum(pools.values()):
            share = Fraction(sum(grants.values()) * pool, sum(pools.values()))
            assert abs(grants[site] - share) < 1


@given(pools=pools, per_site=st.integers(0, 30), data=st.data())
def test_the_order_of_sites_does_not_matter(pools: dict[str, int], per_site: int, data: st.DataObject) -> None:
    names = data.draw(st.permutations(list(pools)))
    shuffled = {name: pools[name] for name in names}
    assert proportional(shuffled, per_site=per_site) == proportional(pools, per_site=per_site)


def test_largest_remainder_by_hand() -> None:
    """12 for pools of 10, 20, 41 in 71: shares 1.69, 3.38, 6.93; floors 1, 3, 6; the two left go to .93 and .69."""
    assert proportional({"A": 10, "B": 20, "C": 41}, per_site=4) == {"A": 2, "B": 3, "C": 7}


def test_small_pools_leave_the_rest_to_the_others() -> None:
    assert proportional({"A": 0, "B": 1, "C": 100}, per_site=10) == {"A": 0, "B": 0, "C": 30}
    assert proportional({"A": 0, "B": 1, "C": 40}, per_site=13) == {"A": 0, "B": 1, "C": 38}
    assert proportional({"A": 2, "B": 3}, per_site=10) == {"A": 2, "B": 3}


def test_a_withheld_pool_works_with_fixed_alone() -> None:
    assert fixed({"A": None, "B": 3}, per_site=5) == {"A": 5, "B": 3}
    with pytest.raises(ValueError, match=r'A shared none: set budget\.rule = "fixed"'):
        proportional({"A": None, "B": 3}, per_site=5)


@pytest.mark.parametrize("rule", BUDGETS.values(), ids=BUDGETS)
def test_negative_numbers_are_refused(rule: object) -> None:
    assert callable(rule)
    with pytest.raises(ValueError, match="-1 cases per site"):
        rule({"A": 3}, per_site=-1)
    with pytest.raises(ValueError, match="site A reports a pool of -3"):
        rule({"A": -3}, per_site=1)
