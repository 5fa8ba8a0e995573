"""Bad input meets the whole loop: a clear answer that names the file or key and the remedy, and nothing is lost."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests_support import events

import client.app as client_app
from client.app import make_app
from client.faults import SiteFault
from client.sam_checkpoint import SMALL, SamUnavailable
from client.site import Site
from configs.files import StorageFault, locked
from configs.load import dump, load, load_site
from configs.schema import Preprocess
from server.sites import FederationFault
from simulation.inline import InlineGrid
from simulation.run import simulate, start
from simulation.split import DataFault

Config = Callable[..., Path]
SITES = ["north", "south", "west"]


@pytest.fixture
def copy_of_data(tiny_data: Path, tmp_path: Path) -> Path:
    """A set that a test may damage."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def logged(folder: Path, site: str, reference: str) -> str:
    """What the site's own log holds under a reference."""
    text = (folder / "sites" / site / "site.log").read_text()
    assert reference in text
    return text[text.index(reference) :]


def refusals(folder: Path) -> dict[str, dict[str, str]]:
    return {site: why for event in events(folder) if event["event"] == "refused" for site, why in event["sites"].items()}


def test_an_image_with_nan_is_named_before_the_run(tiny_config: Config, copy_of_data: Path, tmp_path: Path) -> None:
    path = copy_of_data / "images" / "south1.nii.gz"
    voxels = np.asarray(nib.Nifti1Image.from_filename(path).dataobj).copy()
    voxels[3, 3, 1] = np.nan
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0])), path)
    with pytest.raises(ValueError, match=r"south1\.nii\.gz holds 1 of .*NaN.*repair"):
        simulate(tiny_config(root=str(copy_of_data)), out=tmp_path / "run")


def test_an_image_that_breaks_after_the_start_costs_only_its_site(
    tiny_config: Config, copy_of_data: Path, tmp_path: Path
) -> None:
    config = tiny_config(root=str(copy_of_data), cycles=1)
    folder = simulate(config, out=tmp_path / "run", prepare_only=True)
    (copy_of_data / "images" / "south1.nii.gz").write_bytes(b"torn")
    simulate(config, out=folder, resume=True)
    refused = refusals(folder)
    assert set(refused) == {"south"}
    assert refused["south"]["code"] == "bad-data"
    assert "south1.nii.gz" in logged(folder, "south", refused["south"]["reference"])
    assert "south1" not in (folder / "history.jsonl").read_text()
    assert set(next(event for event in events(folder) if event["event"] == "train")["sites"]) == {"north", "west"}


def test_a_label_outside_the_classes_is_named(tiny_config: Config, copy_of_data: Path, tmp_path: Path) -> None:
    path = copy_of_data / "labels" / "west2.nii.gz"
    nib.save(nib.Nifti1Image(np.full((24, 32, 4), 9, np.uint8), np.diag([1.0, 1.0, 2.0, 1.0])), path)
    with pytest.raises(ValueError, match=r"west2\.nii\.gz holds the label values 9.*bar = 2.*\[classes\], or relabel the mask"):
        simulate(tiny_config(root=str(copy_of_data)), out=tmp_path / "run")


def test_an_image_and_a_label_of_different_shape_are_named(tiny_config: Config, copy_of_data: Path, tmp_path: Path) -> None:
    path = copy_of_data / "labels" / "west2.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((24, 30, 4), np.uint8), np.diag([1.0, 1.0, 2.0, 1.0])), path)
    with pytest.raises(ValueError, match=r"west2\.nii\.gz has shape .*24, 30.*Resample"):
        simulate(tiny_config(root=str(copy_of_data)), out=tmp_path / "run", prepare_only=True)


def test_a_site_without_any_foreground_is_told(tiny_config: Config, copy_of_data: Path, tmp_path: Path) -> None:
    for path in (copy_of_data / "labels").glob("west*.nii.gz"):
        nib.save(nib.Nifti1Image(np.zeros((24, 32, 4), np.uint8), np.diag([1.0, 1.0, 2.0, 1.0])), path)
    with pytest.raises(DataFault, match=r"west: none of its 5 masks.*disc, bar.*\[classes\], or leave the site out of the index"):
        simulate(tiny_config(root=str(copy_of_data)), out=tmp_path / "run")


def test_an_empty_site_is_told(tiny_config: Config, tmp_path: Path) -> None:
    folder = simulate(tiny_config(), out=tmp_path / "run", prepare_only=True)
    (folder / "sites" / "north" / "images.csv").write_text("patient,path,role,truth\n")
    told = r"north/images\.csv is not usable: it has no rows.*Add a row for each image"
    with Site(folder / "sites" / "north") as site, pytest.raises(SiteFault, match=told):
        site.take_in(Preprocess())


def test_a_site_with_nothing_to_label_is_told_and_the_others_go_on(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(cycles=1, rounds_per_cycle=1)
    folder = simulate(config, out=tmp_path / "run", prepare_only=True)
    images = folder / "sites" / "south" / "images.csv"
    lines = images.read_text().splitlines(keepends=True)
    images.write_text("".join(line.replace(",pool,", ",test,/mask.nii") for line in lines))
    simulate(config, out=folder, resume=True)
    refused = refusals(folder)
    assert set(refused) == {"south"}
    assert refused["south"]["code"] == "bad-data"
    said = logged(folder, "south", refused["south"]["reference"])
    assert f"{images} has no row with role pool" in said
    assert "give the rows of some patients that role" in said
    assert set(next(event for event in events(folder) if event["event"] == "train")["sites"]) == {"north", "west"}
    assert events(folder)[-1]["event"] == "end"
    images.write_text("".join(lines))  # the remedy: no image was taken in with the role it would have to keep
    with Site(folder / "sites" / "south") as site:
        site.take_in(Preprocess(size_px=32))
        assert site.store.images("pool")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("p1,/x.nii,pool,\np1,/y.nii,test,/m.nii", "line 2: its patient is on two sides"),
        ("p1,/x.nii,training,", "role is 'training', not one of pool, validation, test"),
        ("p1,/x.nii,test,", "needs the path of its mask"),
        ("p1,,pool,", "line 2: no path"),
        ("p1,/x.nii,pool,\np2,/x.nii,pool,", "listed twice"),
    ],
)
def test_a_wrong_list_of_images_is_explained_by_line_and_names_no_patient(
    tiny_config: Config, tmp_path: Path, row: str, told: str
) -> None:
    folder = simulate(tiny_config(), out=tmp_path / "run", prepare_only=True)
    (folder / "sites" / "north" / "images.csv").write_text(f"patient,path,role,truth\n{row}\n")
    with Site(folder / "sites" / "north") as site, pytest.raises(SiteFault, match=re.escape(told)) as caught:
        site.take_in(Preprocess())
    assert "p1" not in str(caught.value)


def test_a_site_with_no_label_yet_sits_out_and_the_others_train(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(cycles=1)
    folder = simulate(config, out=tmp_path / "run", prepare_only=True)
    schedule = folder / "sites" / "south" / "schedule.json"
    schedule.write_text('{"delay": {}, "absent_cycles": [0, 1]}')
    simulate(config, out=folder, resume=True)
    assert refusals(folder)["south"]["code"] == "nothing-labelled"
    said = logged(folder, "south", refusals(folder)["south"]["reference"])
    assert "2 of its cases wait for an expert" in said
    assert f"`wardround site worklist {folder / 'sites' / 'south'}` lists them" in said
    assert set(next(event for event in events(folder) if event["event"] == "train")["sites"]) == {"north", "west"}
    assert events(folder)[-1]["event"] == "end"


def test_a_site_that_was_never_asked_says_which_budget_does(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest: Callable[..., int] = vars(client_app)["carry_out"]

    def carry_out(site: Site, *args: Any, **kwargs: Any) -> int:
        if site.name == "south":
            raise SiteFault("bad-data", "its disk is away")
        return honest(site, *args, **kwargs)

    monkeypatch.setattr(client_app, "carry_out", carry_out)
    folder = simulate(tiny_config(cycles=1, rounds_per_cycle=1), out=tmp_path / "run")
    refused = next(event for event in events(folder) if event["event"] == "refused" and event["step"] == "train")
    assert refused["sites"]["south"]["code"] == "nothing-labelled"
    said = logged(folder, "south", refused["sites"]["south"]["reference"])
    assert "no case has been requested here yet" in said
    assert "budget.cold_start asks for some before the first round, and asks again" in said


def test_other_classes_at_a_site_are_refused_at_the_door(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(cycles=1)
    folder = simulate(config, out=tmp_path / "run", prepare_only=True)
    path = folder / "sites" / "west" / "site.toml"
    settings = load_site(path)
    path.write_text(dump(settings.model_copy(update={"classes": {"bar": 2, "disc": 1}})))
    start(folder, SITES, engine="inline")
    refused = refusals(folder)
    assert refused["west"]["code"] == "classes-mismatch"
    assert "same order" in logged(folder, "west", refused["west"]["reference"])
    assert set(next(event for event in events(folder) if event["event"] == "join")["sites"]) == {"north", "south"}


def test_two_sites_of_one_name_stop_the_start(tiny_config: Config, tmp_path: Path) -> None:
    folder = simulate(tiny_config(), out=tmp_path / "run", prepare_only=True)
    path = folder / "sites" / "west" / "site.toml"
    path.write_text(dump(load_site(path).model_copy(update={"name": "north"})))
    with pytest.raises(FederationFault, match=r'"north".*name of its own'):
        start(folder, SITES, engine="inline")


def test_a_missing_sam_checkpoint_is_told_before_and_during_a_run(tiny_config: Config, tmp_path: Path) -> None:
    for asks in ("sam.enabled=true", "query.strategy=typiclust", "query.cold_start=probcover"):
        with pytest.raises(SamUnavailable, match=r"gone\.pth.*small"):
            simulate(tiny_config(cycles=1), [asks, f"sam.checkpoint={tmp_path}/gone.pth"], out=tmp_path / "run")
    config = tiny_config(cycles=1)
    folder = simulate(config, ["sam.enabled=true"], out=tmp_path / "other", prepare_only=True)
    path = folder / "sites" / "west" / "site.toml"
    path.write_text(dump(load_site(path).model_copy(update={"sam_checkpoint": str(tmp_path / "gone.pth")})))
    start(folder, SITES, engine="inline")
    refused = refusals(folder)
    assert refused["west"]["code"] == "sam-unavailable"
    assert "gone.pth" in logged(folder, "west", refused["west"]["reference"])


@pytest.mark.parametrize(
    "options",
    [["sam.enabled=true", "sam.adapt=decoder", "sam.adapt_steps=1"], ["query.strategy=typiclust", "budget.rule=coordinated"]],
)
def test_sites_with_different_sams_do_not_put_together_what_these_say(
    tiny_config: Config, tmp_path: Path, options: list[str]
) -> None:
    """Equal in size, so nothing else would notice; a copy of one file in another place is the same SAM."""
    config, other = tiny_config(cycles=1), tmp_path / "other.safetensors"
    folder = simulate(config, options, out=tmp_path / "run", prepare_only=True)
    path = folder / "sites" / "west" / "site.toml"
    path.write_text(dump(load_site(path).model_copy(update={"sam_checkpoint": str(other)})))
    weights = load_file(SMALL)
    save_file({**weights, "mask_decoder.iou_token.weight": weights["mask_decoder.iou_token.weight"] + 1}, other)
    with pytest.raises(FederationFault, match=r"different SAMs.*north, south: [0-9a-f]{16}; west: [0-9a-f]{16}.*sam_checkpoint"):
        start(folder, SITES, engine="inline")
    assert not (folder / "history.jsonl").exists()
    shutil.copy(SMALL, other)
    start(folder, SITES, engine="inline")
    assert events(folder)[-1]["event"] == "end"
    assert not refusals(folder)


def test_a_read_only_file_system_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import tempfile

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    from configs.files import write_text

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(StorageFault, match=r"config\.toml: Read-only file system.*--out"):
        write_text(tmp_path / "config.toml", "x")


def test_a_run_that_another_process_coordinates_is_left_alone(tiny_config: Config, tmp_path: Path) -> None:
    folder = simulate(tiny_config(), out=tmp_path / "run", prepare_only=True)
    with locked(folder / "checkpoint"), pytest.raises(Exception, match="in use by another"):
        start(folder, SITES, engine="inline")


def test_a_coordinator_of_another_version_is_refused(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flwr.app import Message

    from server.app import settings_for_sites
    from strategies import wire

    config = tiny_config()
    folder = simulate(config, out=tmp_path / "run", prepare_only=True)
    grid = InlineGrid(make_app(), [{"partition-id": 0}], run_config={"run-dir": str(folder)})
    request = wire.Request(protocol=99, settings=settings_for_sites(load(config)))
    node = next(iter(grid.get_node_ids()))
    (reply,) = grid.send_and_receive([Message(wire.pack_request(request), node, wire.JOIN)])
    refused = wire.unpack_refused(reply.content)
    assert refused is not None
    assert refused.code == "protocol-mismatch"
