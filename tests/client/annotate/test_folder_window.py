"""A window is for the network: people get the image as it is stored, and set one of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from client.annotate.worklist import carry_out, collect
from client.plan import Plan
from client.site import Site
from configs.load import dump
from configs.schema import Run
from configs.schema import Site as SiteSettings
from server.app import settings_for_sites

KEY = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize("window", [None, (100.0, 50.0)])
def test_a_requested_picture_is_exported_as_it_is_stored(tmp_path: Path, window: tuple[float, float] | None) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (40, 48), dtype=np.uint8)
    PIL.Image.fromarray(stored).save(tmp_path / "one.png")
    (tmp_path / "images.csv").write_text(f"patient,path,role\np1,{tmp_path / 'one.png'},pool\n")
    settings = SiteSettings(name="a", key=KEY, format="picture", classes={"bar": 1}, window=window, threads=1, device="cpu")
    (tmp_path / "site.toml").write_text(dump(settings))
    run = Run.model_validate({"classes": {"bar": 1}, "sam": {"enabled": False}, "preprocess": {"size_px": 32}})
    plan = Plan.read(settings_for_sites(run))
    with Site(tmp_path) as site:
        site.take_in(plan.preprocess)
        carry_out(site, plan, run="r", cycle=0, cases=1, tick=1)
        collect(site, plan, run="r", cycle=0, tick=1)
        (request,) = site.store.open_requests()
        with PIL.Image.open(tmp_path / "worklist" / request.case.id / "image.png") as exported:
            np.testing.assert_array_equal(np.asarray(exported), stored)
