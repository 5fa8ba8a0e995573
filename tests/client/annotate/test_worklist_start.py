"""A site may name the slices that its experts begin with; before any training those are asked for first."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from client.annotate.worklist import carry_out
from client.faults import SiteFault
from client.images_csv import Listed, read_images
from client.plan import Plan
from client.site import Site
from configs.load import load
from server.app import settings_for_sites
from simulation.run import simulate


def hospital(tiny_config: Callable[..., Path], root: Path, *overrides: str) -> tuple[Path, Plan]:
    """The prepared site "north", with four slices in each image, and the plan of its run."""
    folder = simulate(tiny_config(), overrides, out=root / "run", prepare_only=True)
    return folder / "sites" / "north", Plan.read(settings_for_sites(load(tiny_config(), overrides)))


def name_slices(workspace: Path, starts: Mapping[int, str]) -> list[str]:
    """Fill the column start of some rows of the pool, counted from 0; the images of the pool, by row."""
    with (workspace / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    pool = [row for row in rows if row["role"] == "pool"]
    for number, start in starts.items():
        pool[number]["start"] = start
    with (workspace / "images.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return [row["image"] for row in pool]


def asked_for(site: Site) -> list[str]:
    return [request.case.id for request in site.store.open_requests()]


def test_the_first_request_is_for_named_slices_and_then_for_others(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    workspace, plan = hospital(tiny_config, tmp_path)
    name_slices(workspace, {0: "1 2", 1: "3"})
    with Site(workspace) as site:
        site.take_in(plan.preprocess)
        named = site.start_cases()
        assert sorted(int(case[-4:]) for case in named) == [1, 2, 3]
        carry_out(site, plan, run="r", cycle=0, cases=4, tick=1)
        asked = asked_for(site)
        assert set(asked[:3]) == named
        assert len(set(asked)) == 4


def test_named_slices_come_before_kinds_that_were_shared_out(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    """Also where the coordinator says of which kinds the first cases are to be: a site knows best what to begin with."""
    workspace, plan = hospital(tiny_config, tmp_path, "query.strategy=typiclust", "budget.rule=coordinated")
    name_slices(workspace, {0: "1 2"})
    centroids = np.eye(2, 64)
    with Site(workspace) as site:
        site.take_in(plan.preprocess)
        carry_out(site, plan, run="r", cycle=0, cases=2, tick=1, kinds=(0, 0), centroids=centroids)
        assert set(asked_for(site)) == site.start_cases()
        carry_out(site, plan, run="r", cycle=1, cases=2, tick=2, kinds=(0, 1), centroids=centroids)
        reasons = [request.reason for request in site.store.open_requests()[2:]]
        assert any("all sites together have annotated least" in reason for reason in reasons), "later ones follow kinds"


@pytest.mark.parametrize("unit", ["volume", "patient"])
def test_one_named_slice_names_its_volume_and_its_patient(tiny_config: Callable[..., Path], tmp_path: Path, unit: str) -> None:
    workspace, plan = hospital(tiny_config, tmp_path, f"query.unit={unit}")
    name_slices(workspace, {2: "3"})
    with Site(workspace) as site:
        site.take_in(plan.preprocess)
        (named,) = site.start_cases()
        carry_out(site, plan, run="r", cycle=0, cases=1, tick=1)
        assert {case.rpartition(".")[0] for case in asked_for(site)} == {named.rpartition(".")[0]}


def test_names_count_before_the_first_training_only(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    """Where a site was away when its pool was scored, any case may be asked for."""
    workspace, plan = hospital(tiny_config, tmp_path)
    name_slices(workspace, {0: "0"})
    with Site(workspace) as site:
        site.take_in(plan.preprocess)
        for cycle in (1, 2):
            carry_out(site, plan, run="r", cycle=cycle, cases=1, tick=cycle)
        reasons = {request.reason for request in site.store.open_requests()}
        assert reasons == {"chosen at random: the pool was not scored here in this cycle"}, "the expert is told so"
    assert (workspace / "site.log").read_text().count("its cases are chosen at random") == 2


def test_the_table_is_read_once_for_a_grant(
    tiny_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hospital may have many thousands of images, and reading its table takes a moment."""
    workspace, plan = hospital(tiny_config, tmp_path)
    read: list[Path] = []

    def watched(path: Path) -> list[Listed]:
        read.append(path)
        return read_images(path)

    with Site(workspace) as site:
        site.take_in(plan.preprocess)
        monkeypatch.setattr("client.site.read_images", watched)
        carry_out(site, plan, run="r", cycle=0, cases=2, tick=1)
    assert len(read) == 1


@pytest.mark.parametrize(
    ("start", "told"),
    [
        ("4", r"has 4 slices, counted from 0, but column start of images\.csv names 4: correct it"),
        ("1 7 9", r"names 7, 9"),
        ("1;2", r"line \d+: start is '1;2', not slice numbers from 0 with blanks between them"),
        ("-1", r"start is '-1', not slice numbers"),
    ],
)
def test_a_slice_that_is_not_there_is_told_when_the_site_joins(
    tiny_config: Callable[..., Path], tmp_path: Path, start: str, told: str
) -> None:
    workspace, plan = hospital(tiny_config, tmp_path)
    name_slices(workspace, {0: start})
    with Site(workspace) as site, pytest.raises(SiteFault, match=told) as caught:
        site.take_in(plan.preprocess)
    assert caught.value.code == "bad-data"


def test_held_out_images_have_no_slices_to_begin_with(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    workspace, plan = hospital(tiny_config, tmp_path)
    path = workspace / "images.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(f"{line}1" if ",test," in line else line for line in lines) + "\n")
    with Site(workspace) as site, pytest.raises(SiteFault, match="but a test image is not theirs to draw: leave it empty"):
        site.take_in(plan.preprocess)


def test_a_simulated_site_names_the_slices_that_show_a_class(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    """The oracle's masks of what is asked for first are never empty; with `any` no slice is named."""
    anywhere, plan = hospital(tiny_config, tmp_path / "any")
    workspace, _ = hospital(tiny_config, tmp_path / "foreground", "split.start=foreground")
    with Site(anywhere) as site:
        site.take_in(plan.preprocess)
        assert site.start_cases() == set()
    with Site(workspace) as site:
        site.take_in(plan.preprocess)
        showing = set()
        for image in site.store.images("pool"):
            with np.load(workspace / "hidden" / f"{image.id}.npz") as file:
                shows = file["mask"].any(axis=(1, 2))
            showing |= {case.id for case in site.store.cases("unlabelled") if case.image == image.id and shows[case.index]}
        assert site.start_cases() == showing
        assert showing
