"""With patients or volumes as units a grant asks for all slices of as many of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from client.annotate.worklist import carry_out, collect
from client.plan import Plan
from client.site import Site
from configs.load import load
from server.app import settings_for_sites
from simulation.run import simulate
from strategies.records import Choice


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


def test_an_image_is_opened_once_for_all_its_slices_that_are_asked_for_together(
    tiny_config: Callable[..., Path], tmp_path: Path
) -> None:
    """Opening alone costs anything here: a minute for a volume, and another one for a slice of it that is asked for later."""
    cost = ("cost.image=1", "cost.slice=0", "cost.contour=0", "cost.length_px=0")
    folder = simulate(tiny_config(), cost, out=tmp_path / "run", prepare_only=True)
    plan = Plan.read(settings_for_sites(load(tiny_config(), cost)))
    with Site(folder / "sites" / "north") as site:
        site.take_in(plan.preprocess)
        images = sorted({case.image for case in site.store.cases("unlabelled")})
        together = [case for case in site.store.cases("unlabelled") if (case.image, case.index) != (images[0], 3)]
        for number, cases in enumerate((together, site.store.cases("unlabelled"))):
            waiting = {case.id for case in site.store.cases("unlabelled")}
            choices = [Choice(case.id, 0.0, "as a test") for case in cases if case.id in waiting]
            site.store.request("r", number, cases=len(choices), choices=choices, tick=number)
            collect(site, plan, run="r", cycle=number, tick=number)
        minutes = [minutes for _, minutes in site.store.costs()]
        assert sorted(minutes) == [0.0] * (len(minutes) - len(images) - 1) + [1.0] * (len(images) + 1)
        assert minutes[-1] == 1.0, "the slice that came later"
