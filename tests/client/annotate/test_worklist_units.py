"""With patients or volumes as units a grant asks for all slices of as many of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from client.annotate.worklist import carry_out
from client.plan import Plan
from client.site import Site
from configs.load import load
from server.app import settings_for_sites
from simulation.run import simulate


@pytest.mark.parametrize(("unit", "slices"), [("slice", 2), ("volume", 8), ("patient", 8)])
def test_a_grant_counts_units(tiny_config: Callable[..., Path], tmp_path: Path, unit: str, slices: int) -> None:
    overrides = (f"query.unit={unit}",)
    folder = simulate(tiny_config(), overrides, out=tmp_path / "run", prepare_only=True)
    plan = Plan.read(settings_for_sites(load(tiny_config(), overrides)))
    with Site(folder / "sites" / "north") as site:
        site.take_in(plan.preprocess)
        pool = site.store.cases("unlabelled")
        assert carry_out(site, plan, run="r", cycle=0, cases=2, tick=1) == slices
        asked = [request.case for request in site.store.open_requests()]
        if unit != "slice":
            images = {case.image for case in asked}
            assert len(images) == 2
            assert sorted(case.id for case in asked) == [case.id for case in pool if case.image in images]
            assert [case.index for case in asked] == [0, 1, 2, 3] * 2, "slices of a volume stand together, in order"
        assert carry_out(site, plan, run="r", cycle=1, cases=1000, tick=2) == len(pool) - slices
