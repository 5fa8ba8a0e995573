"""Hand-over by folder in every format: the image goes out, masks in the same format come back, junk is explained."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client.annotate.folder import NAMES
from client.annotate.worklist import carry_out, collect
from client.formats import FORMATS, classes_as_written
from client.formats.image import Image
from client.models import LocalModels, save_models
from client.plan import Plan, network_for
from client.site import Site
from configs.load import dump, load
from configs.schema import Site as SiteSettings
from server.app import settings_for_sites

KINDS = {"dicom": "dicom", "nifti": "nifti", "grey pictures": "picture", "RGB pictures": "picture"}
KEY = "k" * 32
CLASSES = ["disc", "bar"]
ROWS, COLUMNS = 24, 32
AFFINE = np.array([[0, 0, 0.9, -20.0], [0, 0.9, 0, -15.0], [2.5, 0, 0, 40.0], [0, 0, 0, 1]])


class Bench:
    """A site with two requested cases, exported in one format."""

    def __init__(self, kind: str, workspace: Path, plan: Plan) -> None:
        self.kind, self.plan = kind, plan
        self.format = KINDS[kind]
        self._files = FORMATS[self.format]
        self._image_name, self._ending = NAMES[self.format]
        self.originals = [self._write_original(workspace / "images", number) for number in range(3)]
        settings = SiteSettings(name="north", key=KEY, format=self.format, classes=self.classes, annotator="folder")
        (workspace / "site.toml").write_text(dump(settings))
        with (workspace / "images.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerows([("patient", "path", "role"), *((path.name, path, "pool") for path in self.originals)])
        self.site = Site(workspace)
        self.site.take_in(plan.preprocess)

    @property
    def classes(self) -> dict[str, int | list[str]]:
        return dict(classes_as_written(self.format, CLASSES))

    def ask(self, *, cycle: int) -> None:
        carry_out(self.site, self.plan, run="r", cycle=cycle, cases=2, tick=cycle)
        assert self.collect(tick=cycle) == 0

    def collect(self, *, tick: int) -> int:
        return collect(self.site, self.plan, run="r", cycle=0, tick=tick)

    def folder(self, number: int) -> Path:
        return self.site.workspace / "worklist" / self.site.store.open_requests()[number].case.id

    def exported(self, number: int) -> Image:
        return self.read(self.folder(number) / self._image_name)

    def read(self, path: Path) -> Image:
        image: Image = self._files.read_image(path, key=KEY, patient="x")
        return image

    def put_back(self, number: int, mask: NDArray[np.uint8], *, drawn_on: Image | None = None) -> Path:
        """As a person's tool would save it, (rows, columns), on the exported image or by mistake on another one."""
        path = self.folder(number) / f"mask.{self._ending}"
        self._files.write_mask(path, mask[None], drawn_on or self.exported(number), class_names=CLASSES)
        return path

    def proposal(self, number: int) -> NDArray[np.uint8]:
        path = self.folder(number) / f"proposal.{self._ending}"
        mask: NDArray[np.uint8] = self._files.read_mask(path, self.exported(number), classes=self.classes)
        return mask

    def smaller_image(self) -> Image:
        """One that was never exported, of fewer rows."""
        path = self.site.workspace / f"other.{self._ending}"
        path = path.with_suffix("") if self.format == "dicom" else path
        voxels = np.full((1, ROWS - 4, COLUMNS), 9)
        self._files.write_image(path, voxels, affine=AFFINE, patient="x")
        return self.read(path)

    def problem(self, number: int) -> str:
        listed = list(csv.DictReader((self.site.workspace / "worklist" / "worklist.csv").open()))
        return listed[number]["problem"]

    def _write_original(self, folder: Path, number: int) -> Path:
        """Volumes of two slices, or pictures."""
        rng = np.random.default_rng(number)
        slices = 1 if self.format == "picture" else 2
        shape: tuple[int, ...] = (slices, ROWS, COLUMNS, 3) if self.kind == "RGB pictures" else (slices, ROWS, COLUMNS)
        path = folder / (f"P{number}" if self.format == "dicom" else f"P{number}.{self._ending}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._files.write_image(path, rng.integers(0, 256, shape), affine=AFFINE, patient=f"P{number}")
        return path


@pytest.fixture(params=list(KINDS))
def bench(request: pytest.FixtureRequest, tiny_config: Callable[..., Path], tmp_path: Path) -> Iterator[Bench]:
    channels = 3 if request.param == "RGB pictures" else 1
    plan = Plan.read(settings_for_sites(load(tiny_config(), [f"preprocess.channels={channels}"])))
    made = Bench(request.param, tmp_path, plan)
    made.ask(cycle=0)
    yield made
    made.site.store.close()


def a_mask() -> NDArray[np.uint8]:
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[3:9, 5:20] = 2
    mask[12:20, 2:7] = 1
    return mask


def test_a_requested_slice_is_exported_as_it_is(bench: Bench) -> None:
    rows = {image.id: image for image in bench.site.store.images("pool")}
    for number, request in enumerate(bench.site.store.open_requests()):
        original, exported = bench.read(Path(rows[request.case.image].path)), bench.exported(number)
        np.testing.assert_array_equal(exported.voxels[0], original.voxels[request.case.index])
        assert exported.grid == (1, ROWS, COLUMNS)
        if original.affine is not None:
            assert exported.affine is not None
            place = np.array([request.case.index, 0, 0, 1])
            np.testing.assert_allclose(exported.affine @ [0, 0, 0, 1], original.affine @ place, atol=1e-4)


def test_a_mask_put_back_becomes_the_label(bench: Bench) -> None:
    case = bench.site.store.open_requests()[1].case.id
    bench.put_back(1, a_mask())
    assert bench.collect(tick=2) == 1
    np.testing.assert_array_equal(bench.site.store.label(case), a_mask())
    assert [request.case.id != case for request in bench.site.store.open_requests()] == [True], "the other one waits"


def text(bench: Bench) -> Path:
    path = bench.put_back(0, a_mask())
    path.write_bytes(b"not a mask")
    return path


def a_file_cut_off(bench: Bench) -> Path:
    path = bench.put_back(0, a_mask())
    path.write_bytes(path.read_bytes()[:-30])
    return path


def the_image_itself(bench: Bench) -> Path:
    path, image = bench.put_back(0, a_mask()), bench.folder(0) / NAMES[bench.format][0]
    path.write_bytes((next(image.iterdir()) if image.is_dir() else image).read_bytes())
    return path


def a_mask_of_another_image(bench: Bench) -> Path:
    return bench.put_back(0, np.zeros((ROWS - 4, COLUMNS), np.uint8), drawn_on=bench.smaller_image())


OTHER_SHAPE = r"has shape \(1, 20, 32\).*\(1, 24, 32\).*Resample"


@pytest.mark.parametrize(
    ("junk", "told"),
    [
        (text, ("not a DICOM file.*export it again", "not a readable NIfTI.*again", "not a readable picture.*again")),
        (a_file_cut_off, ("cut off.*export", "not a readable NIfTI.*again", "cut off.*save it again")),
        (the_image_itself, ("not a structure set.*or a segm", "holds the label values.*disc = 1", "label value")),
        (a_mask_of_another_image, ("another frame of reference.*pair", OTHER_SHAPE, OTHER_SHAPE)),
    ],
    ids=["text", "a file cut off", "the image itself", "a mask of another image"],
)
def test_junk_is_explained_and_nothing_is_lost(bench: Bench, junk: Callable[[Bench], Path], told: tuple[str, str, str]) -> None:
    """`told` is what is said of DICOM, NIfTI and pictures."""
    of_format = dict(zip(("dicom", "nifti", "picture"), told, strict=True))[bench.format]
    before = bench.site.store.counts()
    path = junk(bench)
    put = path.read_bytes()
    assert bench.collect(tick=2) == 0
    assert path.name in bench.problem(0)
    assert re.search(of_format, bench.problem(0)), bench.problem(0)
    assert bench.problem(1) == ""
    assert bench.site.store.counts() == before
    assert path.read_bytes() == put, "the person's file is untouched"
    path.unlink()
    bench.put_back(0, a_mask())
    assert bench.collect(tick=3) == 1, "the next answer is taken"


def test_a_proposal_is_a_mask_that_can_be_put_back(bench: Bench) -> None:
    state: dict[str, Any] = network_for(bench.plan).state_dict()
    last = [name for name in state if name.endswith("bias")][-1]
    state[last] = state[last] + 50 * (np.arange(3) == 1).astype(np.float32)  # it sees a disc everywhere
    save_models(bench.site.workspace / "models" / "local.safetensors", LocalModels("r", 1, 1, 0, state))
    bench.ask(cycle=1)
    number = len(bench.site.store.open_requests()) - 1
    case, proposal = bench.site.store.open_requests()[number].case.id, bench.proposal(number)
    assert proposal.shape == (1, ROWS, COLUMNS)
    assert (proposal == 1).mean() > 0.9
    ending = NAMES[bench.format][1]
    (bench.folder(number) / f"proposal.{ending}").rename(bench.folder(number) / f"mask.{ending}")
    assert bench.collect(tick=2) == 1
    np.testing.assert_array_equal(bench.site.store.label(case), proposal[0])
