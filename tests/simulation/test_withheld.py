"""What a site keeps for itself though the run asks: numbers over too few patients, and pictures."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from tests_support import events

from client.site import Site, Slices
from client.store import ImageRow
from configs.load import dump, load_site
from simulation.run import simulate, start
from strategies.records import Case

Config = Callable[..., Path]
SITES = ["north", "south", "west"]


def nothing_found(site: Site, slices: Slices, network: object, image: ImageRow, cases: Sequence[Case]) -> NDArray[np.uint8]:
    """A prediction without foreground: a class then counts for those volumes alone whose truth has it."""
    return np.zeros_like(site.truth(image))


def erase_bar_of_one_test_patient(site: Path) -> None:
    with (site / "images.csv").open() as file:
        truth = next(row["truth"] for row in csv.DictReader(file) if row["role"] == "test")
    volume = nib.Nifti1Image.from_filename(truth)
    labels = np.asarray(volume.dataobj).copy()
    labels[labels == 2] = 0
    nib.save(nib.Nifti1Image(labels, volume.affine), truth)


@pytest.mark.parametrize(
    ("labelled", "losses"),
    [(1, {"consistency"}), (7, {"supervised"})],  # nor the total, from which the missing term could be worked out
    ids=["one patient with labels", "one patient without"],
)
def test_numbers_over_too_few_patients_are_null_and_no_site_is_refused(
    tiny_config: Config,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    labelled: int,
    losses: set[str],
) -> None:
    """Two patients are enough. A site has one for validation, two for test (one with a bar), two in a pool of 8 cases."""
    monkeypatch.setattr("client.evaluate.predicted_mask", nothing_found)
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    config = tiny_config(root=str(data), cycles=1, rounds_per_cycle=1, test_fraction="x")
    config.write_text(config.read_text().replace('"x"', "0.4"))
    options = ["privacy.min_patients=2", f"budget.cold_start={labelled}"]
    folder = simulate(config, options, out=tmp_path / "run", prepare_only=True)
    for name in SITES:
        erase_bar_of_one_test_patient(folder / "sites" / name)
    simulate(config, options, out=folder, resume=True)
    record = {event["event"]: event for event in events(folder)}
    assert "refused" not in record
    for site in record["train"]["sites"].values():
        assert site["labelled"] == labelled
        assert {term for term, mean in site["losses"].items() if mean is not None} == losses
        assert site["losses"]["total"] is None, "withheld is null in the record"
    for site in record["assess"]["sites"].values():
        assert site["dice"] is None
        assert site["dice_by_class"] is None
        disc, bar = site["dice_by_class_test"]
        assert bar is None, "one patient has it"
        assert site["dice_test"] == disc == 0.0, "two patients have it"
    assert record["assess"]["dice_mean"] is None
    assert record["assess"]["dice_mean_test"] == 0.0


def test_pictures_are_written_only_where_the_site_allows_them(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(cycles=1, rounds_per_cycle=1)
    folder = simulate(config, ["save_pictures=true"], out=tmp_path / "run", prepare_only=True)
    path = folder / "sites" / "south" / "site.toml"
    path.write_text(dump(load_site(path).model_copy(update={"save_pictures": False})))
    start(folder, SITES, engine="inline")
    written = {name: [path.name for path in (folder / "sites" / name).glob("pictures/*")] for name in SITES}
    assert written == {"north": ["cycle_001.npz"], "south": [], "west": ["cycle_001.npz"]}
    with np.load(folder / "sites" / "north" / "pictures" / "cycle_001.npz") as pictures:
        assert pictures["image"].shape == pictures["truth"].shape == pictures["prediction"].shape
