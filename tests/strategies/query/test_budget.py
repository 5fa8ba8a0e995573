"""Grants add up, stay within the pools, and follow them."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.query.budget import BUDGETS, Pools, adaptive, fixed, proportional
from strategies.records import Demand


def told(pools: dict[str, int | None], **quantiles: tuple[float, ...]) -> Pools:
    """What sites with these pools tell."""
    return {site: None if pool is None else Demand(pool, pool, quantiles.get(site, ())) for site, pool in pools.items()}


pools = st.dictionaries(st.text("ABCDE", min_size=1, max_size=3), st.integers(0, 60), max_size=8)


@given(pools=pools, per_site=st.integers(0, 30))
def test_fixed_is_the_same_for_all(pools: dict[str, int], per_site: int) -> None:
    assert fixed(told({**pools}), per_site=per_site) == {site: min(pool, per_site) for site, pool in pools.items()}


@given(pools=pools, per_site=st.integers(0, 30))
def test_proportional_spends_everything_and_stays_within_the_pools(pools: dict[str, int], per_site: int) -> None:
    grants = proportional(told({**pools}), per_site=per_site)
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
    assert proportional(told({**shuffled}), per_site=per_site) == proportional(told({**pools}), per_site=per_site)


def test_largest_remainder_by_hand() -> None:
    """12 for pools of 10, 20, 41 in 71: shares 1.69, 3.38, 6.93; floors 1, 3, 6; the two left go to .93 and .69."""
    assert proportional(told({"A": 10, "B": 20, "C": 41}), per_site=4) == {"A": 2, "B": 3, "C": 7}


def test_small_pools_leave_the_rest_to_the_others() -> None:
    assert proportional(told({"A": 0, "B": 1, "C": 100}), per_site=10) == {"A": 0, "B": 0, "C": 30}
    assert proportional(told({"A": 0, "B": 1, "C": 40}), per_site=13) == {"A": 0, "B": 1, "C": 38}
    assert proportional(told({"A": 2, "B": 3}), per_site=10) == {"A": 2, "B": 3}


@given(pools=st.dictionaries(st.sampled_from("ABCDEF"), st.integers(0, 40), max_size=6), per_site=st.integers(0, 20))
@pytest.mark.parametrize("rule", BUDGETS)
def test_a_site_of_unknown_pool_gets_the_equal_share_and_the_others_what_they_would_without_it(
    rule: str, pools: dict[str, int], per_site: int
) -> None:
    known = BUDGETS[rule](told({**pools}), per_site=per_site, floor=0.5)
    assert BUDGETS[rule](told({"X": None, **pools}), per_site=per_site, floor=0.5) == {"X": per_site, **known}


def test_pools_are_counted_in_units() -> None:
    """A has 2 volumes of 20 slices each: more than 2 volumes granted there would be lost to B."""
    demands = {"A": Demand(40, 2, (0.9,)), "B": Demand(40, 20, (0.1,))}
    assert fixed(demands, per_site=8) == {"A": 2, "B": 8}
    assert proportional(demands, per_site=8) == {"A": 1, "B": 15}
    assert adaptive(demands, per_site=8, floor=0.5) == {"A": 2, "B": 14}


@pytest.mark.parametrize("rule", BUDGETS.values(), ids=BUDGETS)
def test_negative_numbers_are_refused(rule: object) -> None:
    assert callable(rule)
    with pytest.raises(ValueError, match="-1 per site"):
        rule(told({"A": 3}), per_site=-1, floor=0.5)
    with pytest.raises(ValueError, match="site A reports a pool of -3"):
        rule(told({"A": -3}), per_site=1, floor=0.5)


# ------------------------------------------------------------------------------------------------------------- adaptive

quantiles = st.lists(st.floats(-2, 3), min_size=5, max_size=5).map(lambda q: tuple(sorted(q)))


@given(
    pools=st.dictionaries(
        st.sampled_from("ABCDEF"), st.tuples(st.integers(0, 40), st.one_of(st.just(()), quantiles)), max_size=6
    ),
    per_site=st.integers(0, 20),
    floor=st.floats(0, 1),
)
def test_adaptive_spends_everything_within_the_pools_and_keeps_its_floor(
    pools: dict[str, tuple[int, tuple[float, ...]]], per_site: int, floor: float
) -> None:
    demands = {site: Demand(pool, pool, tops) for site, (pool, tops) in pools.items()}
    grants = adaptive(demands, per_site=per_site, floor=floor)
    assert list(grants) == list(demands)
    assert sum(grants.values()) == min(per_site * len(demands), sum(demand.unlabelled for demand in demands.values()))
    for site, demand in demands.items():
        assert min(math.ceil(floor * per_site - 1e-9), demand.unlabelled) <= grants[site] <= demand.unlabelled


def test_more_is_granted_where_the_model_doubts_more() -> None:
    """Floors of 2, then ten more by D'Hondt at weights .6 and .2: quotients .6/3, .6/4, … until nine to three (.6/9 = .2/3)."""
    demands = told({"A": 50, "B": 50}, A=(0.1, 0.2, 0.3, 0.5, 0.6), B=(0.0, 0.1, 0.1, 0.1, 0.2))
    assert adaptive(demands, per_site=6, floor=0.33) == {"A": 9, "B": 3}
    assert adaptive(demands, per_site=6, floor=1.0) == {"A": 6, "B": 6}


def test_a_site_that_tells_no_quantiles_counts_as_the_mean() -> None:
    demands = told({"A": 50, "B": 50, "C": 50}, A=(0.6,), B=(0.2,))
    grants = adaptive(demands, per_site=12, floor=0.0)
    assert grants == {"A": 18, "B": 6, "C": 12}


def test_a_full_site_leaves_the_rest_to_the_others() -> None:
    demands = told({"A": 3, "B": 50}, A=(0.9,), B=(0.1,))
    assert adaptive(demands, per_site=5, floor=0.0) == {"A": 3, "B": 7}


@pytest.mark.parametrize("floor", [-0.1, 1.1])
def test_a_floor_is_a_share(floor: float) -> None:
    with pytest.raises(ValueError, match=r"budget\.floor"):
        adaptive(told({"A": 3}), per_site=1, floor=floor)


def test_without_doubts_all_are_alike() -> None:
    assert adaptive(told({"A": 9, "B": 9}, A=(0.0,), B=(0.0,)), per_site=3, floor=0.0) == {"A": 3, "B": 3}
    assert adaptive(told({"A": 9, "B": 9}), per_site=3, floor=0.0) == {"A": 3, "B": 3}
