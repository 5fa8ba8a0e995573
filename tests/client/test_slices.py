"""2.5D: what the network sees of a slice, at the ends of a volume and in the middle, and that SAM sees the slice alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests_support import events

from client.plan import Plan
from client.sam_cache import EmbeddingCache
from client.site import Site, Slices
from configs.load import load
from server.app import settings_for_sites
from simulation.run import simulate
from strategies.records import Case

Config = Callable[..., Path]


def opened(config: Path, folder: Path, *overrides: str) -> tuple[Site, Plan]:
    run = simulate(config, overrides, out=folder, prepare_only=True)
    site, plan = Site(run / "sites" / "north"), Plan.read(settings_for_sites(load(config, overrides)))
    site.take_in(plan.preprocess)
    return site, plan


@pytest.mark.parametrize("around", [1, 2])
def test_channels_are_the_slices_from_before_to_behind_and_the_ends_repeat(
    tiny_config: Config, tmp_path: Path, around: int
) -> None:
    site, plan = opened(tiny_config(), tmp_path / "run", f"preprocess.neighbours={around}")
    slices = Slices(site, plan.preprocess)
    cases = site.store.cases("unlabelled")[:4]
    assert [case.index for case in cases] == [0, 1, 2, 3]
    volume = np.asarray(slices.image(cases[0].image).slices)
    seen = slices.take(cases).numpy()
    assert seen.shape == (4, 2 * around + 1, *volume.shape[2:])
    for row, case in enumerate(cases):
        for channel, step in enumerate(range(-around, around + 1)):
            expected = volume[min(max(case.index + step, 0), 3), 0]
            assert np.array_equal(seen[row, channel], expected), (row, channel)


def test_prepared_images_are_the_same_with_and_without_neighbours(tiny_config: Config, tmp_path: Path) -> None:
    site, plan = opened(tiny_config(), tmp_path / "run")
    deep = plan.preprocess.model_copy(update={"neighbours": 1})
    case = site.store.cases("unlabelled")[1]
    flat, stacked = Slices(site, plan.preprocess).take([case]), Slices(site, deep).take([case])
    assert torch.equal(stacked[:, 1:2], flat)
    assert len(list((site.workspace / "cache").glob("slices-*"))) == 1


def test_a_federation_learns_in_two_and_a_half_dimensions_with_sam_looking_at_the_slice_alone(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[torch.Size] = []
    honest = EmbeddingCache.embeddings

    def embeddings(self: EmbeddingCache, keys: Sequence[str], images: Any, **more: Any) -> torch.Tensor:
        embedded.append(images.shape)
        return honest(self, keys, images, **more)

    monkeypatch.setattr(EmbeddingCache, "embeddings", embeddings)
    options = ("preprocess.neighbours=1", "sam.enabled=true", "sam.beside=true", "sam.trust=false", "sam.min_iou=0.0")
    folder = simulate(tiny_config(cycles=1), [*options, "sam.min_agreement=0.0"], out=tmp_path / "run")
    assert events(folder)[-1]["event"] == "end"
    assert embedded
    assert all(shape[1] == 1 for shape in embedded)


def test_a_case_beside_is_of_the_same_volume(tiny_config: Config, tmp_path: Path) -> None:
    site, plan = opened(tiny_config(), tmp_path / "run")
    slices = Slices(site, plan.preprocess)
    cases = site.store.cases("unlabelled")
    for step in (-1, 1):
        for case, other in zip(cases, slices.beside(cases, step), strict=True):
            assert (other.image, other.patient) == (case.image, case.patient)
            assert other.index == min(max(case.index + step, 0), 3)
    assert isinstance(slices.beside(cases[:1], 0)[0], Case)
