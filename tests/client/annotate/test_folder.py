"""Hand-over by folder: what people put back is checked; a wrong answer costs nothing and says what is wrong."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from client.annotate.show import render_worklist
from client.annotate.worklist import carry_out, collect
from client.plan import Plan
from client.site import Site
from configs.load import dump, load, load_site
from server.app import settings_for_sites
from simulation.run import simulate

open_nifti: Any = nib.load


@pytest.fixture
def asked(tiny_config: Callable[..., Path], tmp_path: Path) -> tuple[Site, Plan]:
    """A site whose people answer by folder, with two requested cases exported."""
    config = tiny_config()
    folder = simulate(config, out=tmp_path / "run", prepare_only=True) / "sites" / "north"
    settings = load_site(folder / "site.toml").model_copy(update={"annotator": "folder"})
    (folder / "site.toml").write_text(dump(settings))
    site, plan = Site(folder), Plan.read(settings_for_sites(load(config)))
    site.take_in(plan.preprocess)
    carry_out(site, plan, run="r", cycle=0, cases=2, tick=1)
    assert collect(site, plan, run="r", cycle=0, tick=1) == 0
    return site, plan


def answer(site: Site, number: int, mask: np.ndarray) -> Path:
    case = site.store.open_requests()[number].case.id
    path = site.workspace / "worklist" / case / "mask.nii.gz"
    nib.save(nib.Nifti1Image(mask, open_nifti(path.with_name("image.nii.gz")).affine), path)
    return path


def listed(site: Site) -> list[dict[str, str]]:
    return list(csv.DictReader((site.workspace / "worklist" / "worklist.csv").open()))


def test_requested_cases_lie_ready_with_their_reason(asked: tuple[Site, Plan]) -> None:
    site, _ = asked
    for request in site.store.open_requests():
        folder = site.workspace / "worklist" / request.case.id
        exported = np.asarray(open_nifti(folder / "image.nii.gz").dataobj)
        row = next(image for image in site.store.images("pool") if image.id == request.case.image)
        original = np.asarray(open_nifti(row.path).dataobj)
        np.testing.assert_allclose(exported[:, :, 0], original[:, :, request.case.index])
        text = (folder / "README.txt").read_text()
        assert request.reason in text
        assert "0 background, 1 disc, 2 bar" in text
    assert [row["case"] for row in listed(site)] == [r.case.id for r in site.store.open_requests()]


def test_a_good_mask_becomes_the_label(asked: tuple[Site, Plan]) -> None:
    site, plan = asked
    mask = np.zeros((24, 32, 1), np.uint8)
    mask[3:9, 5:20] = 2
    case = site.store.open_requests()[0].case.id
    answer(site, 0, mask)
    assert collect(site, plan, run="r", cycle=0, tick=2) == 1
    np.testing.assert_array_equal(site.store.label(case), mask[:, :, 0])
    assert len(listed(site)) == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (np.zeros((24, 31, 1), np.uint8), "shape"),
        (np.full((24, 32, 1), 7, np.uint8), "7"),
        (b"not a volume", "not a readable NIfTI"),
    ],
)
def test_a_wrong_mask_is_explained_and_nothing_is_lost(asked: tuple[Site, Plan], wrong: np.ndarray | bytes, told: str) -> None:
    site, plan = asked
    before = site.store.counts()
    case = site.store.open_requests()[0].case.id
    path = site.workspace / "worklist" / case / "mask.nii.gz"
    if isinstance(wrong, bytes):
        path.write_bytes(wrong)
    else:
        answer(site, 0, wrong)
    content = path.read_bytes()
    assert collect(site, plan, run="r", cycle=0, tick=2) == 0
    assert told in listed(site)[0]["problem"]
    assert site.store.counts() == before
    assert path.read_bytes() == content, "the person's file is untouched"
    path.unlink()
    answer(site, 0, np.ones((24, 32, 1), np.uint8))
    assert collect(site, plan, run="r", cycle=0, tick=3) == 1, "the next answer is taken"


def test_the_worklist_can_be_shown(asked: tuple[Site, Plan]) -> None:
    from rich.console import Console

    site, _ = asked
    console = Console(record=True, width=200)
    render_worklist(site.workspace, console)
    assert "2 requested" in console.export_text()


def test_a_trained_site_offers_a_proposal(asked: tuple[Site, Plan], tiny_config: Callable[..., Path]) -> None:
    from client.models import LocalModels, save_models
    from client.plan import network_for

    site, plan = asked
    state = network_for(plan).state_dict()
    last = [name for name in state if name.endswith("bias")][-1]
    state[last] = state[last] + 50 * (np.arange(3) == 1).astype(np.float32)  # it sees class 1 everywhere
    state["sam.mask_decoder.iou_token.weight"] = torch.zeros(1, 4)  # what was trained of SAM lies beside it
    save_models(site.workspace / "models" / "local.safetensors", LocalModels("r", 1, 1, 0, state))
    carry_out(site, plan, run="r", cycle=1, cases=1, tick=4)
    collect(site, plan, run="r", cycle=1, tick=4)
    request = site.store.open_requests()[-1]
    proposal = np.asarray(open_nifti(site.workspace / "worklist" / request.case.id / "proposal.nii.gz").dataobj)
    assert proposal.shape == (24, 32, 1)
    assert (proposal == 1).mean() > 0.9
