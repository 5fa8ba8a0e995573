"""A site's workspace: where things lie, and the images made ready for the network.

site.toml     settings of this hospital       site.db       pool, requests, labels
images.csv    patient, image, path, role, …   cache/        images on the network's grid, SAM embeddings
models/       this site's student, teacher    scores/       the last scores of the pool
egress.jsonl  every reply that left           worklist/     requests handed to people, and their answers
site.log      what happened, with names       pictures/     example predictions, where that is allowed
sam.png       what SAM says, for people of this hospital (`wardround site sam`)
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.faults import SiteFault
from client.formats import FORMATS
from client.formats.image import Image, keyed_hash
from client.images_csv import read_images
from client.preprocess import VERSION, Geometry, geometry, mask_to_network, to_network
from client.store import ImageRow, Store
from configs.files import write_bytes, write_text
from configs.load import load_site
from configs.schema import Preprocess
from configs.schema import Site as SiteSettings
from strategies.records import Case


@dataclass(frozen=True)
class Ready:
    """An image on the network's grid: (S, K, size_px, size_px) float32, and how it lies there."""

    slices: NDArray[np.float32]
    place: Geometry


class Site:
    """One hospital's workspace, opened for the length of one message.

    Attributes:
        hidden_reads: the cases whose hidden labels were read meanwhile, once for each reading; a simulated expert's alone.
    """

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.settings: SiteSettings = load_site(workspace / "site.toml")
        self.name = self.settings.name
        self.log = site_log(workspace, self.name)
        self.hidden_reads: list[str] = []
        self.store = Store.at(workspace / "site.db")

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    @property
    def shares_sums(self) -> bool:
        return self.settings.share == "updates+sums"

    @cached_property
    def device(self) -> torch.device:
        """The device that this site computes on: `auto` is CUDA where it is there."""
        name = self.settings.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cuda" and not torch.cuda.is_available():
            raise SiteFault("bad-request", 'site.toml asks for device = "cuda", but torch finds no GPU here: set "auto"')
        return torch.device(name)

    # -------------------------------------------------------------------------------------------------------- images

    def take_in(self, prepare: Preprocess) -> None:
        """Read every image of images.csv that is not in the pool yet. Repeating it reads nothing twice.

        Raises:
            SiteFault: images.csv is missing or wrong, or no image is in the pool.
        """
        rows = read_images(self.workspace / self.settings.images)
        if not any(row.role == "pool" for row in rows) and not self.store.images("pool"):
            raise SiteFault(  # before an image is taken in, because it keeps its role from then on
                "bad-data",
                f"{self.workspace / self.settings.images} has no row with role pool, so there is nothing to label and nothing "
                "to train on: give the rows of some patients that role (they need no mask)",
            )
        known = {image.id: image for image in self.store.images()}
        for row in rows:
            identity = keyed_hash(row.image, key=self.settings.key)
            if identity in known:
                before = known[identity]
                if before.role != row.role:
                    raise SiteFault(
                        "bad-data",
                        f"image {row.image} was {before.role} and is {row.role} in {self.settings.images} now: an image "
                        "keeps its role, or a patient would be tested on what was trained on. Put the role back, or start a "
                        "new workspace",
                    )
                if (before.path, before.truth) != (row.path, row.truth):
                    self.store.move_image(identity, path=row.path, truth=row.truth)
                continue
            image = self.read(Path(row.path), patient=row.patient)
            patient = image.patient  # the keyed hash: from here on nothing knows the identity
            ready = self._make_ready(identity, image, prepare)
            cases = [Case(f"{patient}.{identity}.{index:04d}", patient, identity, index) for index in range(len(ready.slices))]
            self.store.add_image(ImageRow(identity, patient, row.path, row.role, row.truth, len(cases)), cases)
        self.start_cases()

    def start_cases(self) -> set[str]:
        """Ids of the cases that images.csv names for experts to begin with, labelled already or not.

        Raises:
            SiteFault: images.csv is wrong, or names a slice that an image does not have.
        """
        named = {keyed_hash(row.image, key=self.settings.key): row for row in read_images(self.workspace / self.settings.images)}
        found = set()
        for image in self.store.images("pool"):
            row = named.get(image.id)
            wrong = [] if row is None else [index for index in row.start if index >= image.slices]
            if row is not None and wrong:
                raise SiteFault(
                    "bad-data",
                    f"image {row.image} has {image.slices} slices, counted from 0, but column start of {self.settings.images} "
                    f"names {', '.join(map(str, wrong))}: correct it, or leave it empty",
                )
            found |= {f"{image.patient}.{image.id}.{index:04d}" for index in (row.start if row is not None else ())}
        return found

    def read(self, path: Path, *, patient: str = "unnamed", windowed: bool = True) -> Image:
        """The image at `path` in its own grid; `patient` is the identity to hash where it matters.

        People get it not `windowed`: they set a window of their own, and a picture cannot hold the network's 0 to 1.
        """
        reader = FORMATS[self.settings.format]
        image: Image = reader.read_image(
            path,
            key=self.settings.key,
            patient=patient,
            slice_axis=self.settings.slice_axis,
            window=self.settings.window if windowed else None,
        )
        return image

    def ready(self, image_id: str, prepare: Preprocess) -> Ready:
        """An image on the network's grid, memory-mapped from the cache; made again when the settings changed."""
        folder = self._cache(prepare)
        if not (folder / f"{image_id}.json").exists():
            row = next(image for image in self.store.images() if image.id == image_id)
            self._make_ready(image_id, self.read(Path(row.path)), prepare)
        place = Geometry(**json.loads((folder / f"{image_id}.json").read_text()))
        return Ready(np.load(folder / f"{image_id}.npy", mmap_mode="r"), place)

    def truth(self, image: ImageRow) -> NDArray[np.uint8]:
        """The true mask (slices, rows, columns) of a held-out image, kept on disk after the first reading.

        Raises:
            SiteFault: the image is in the pool; its truth is nobody's business but the experts'.
        """
        if image.role == "pool":
            raise SiteFault("invariant-broken", f"the truth of pool image {image.id} was asked for")
        reading = json.dumps([list(self.settings.classes.items()), self.settings.slice_axis, image.truth])
        cached = self.workspace / "cache" / f"truth-{hashlib.sha256(reading.encode()).hexdigest()[:8]}" / f"{image.id}.npy"
        if not cached.exists():
            mask = FORMATS[self.settings.format].read_mask(
                Path(image.truth),
                self.read(Path(image.path)),
                classes=self.settings.classes,
                slice_axis=self.settings.slice_axis,
            )
            write_bytes(cached, _npy(mask))
        loaded: NDArray[np.uint8] = np.load(cached)
        return loaded

    def _make_ready(self, image_id: str, image: Image, prepare: Preprocess) -> Ready:
        place = geometry(
            rows=image.voxels.shape[1],
            columns=image.voxels.shape[2],
            in_plane_mm=image.spacing_mm[1:] if image.spacing_mm else None,
            spacing_mm=prepare.spacing_mm,
            size_px=prepare.size_px,
        )
        slices = to_network(
            image.voxels,
            place,
            channels=prepare.channels,
            low_percentile=prepare.low_percentile,
            high_percentile=prepare.high_percentile,
        )
        folder = self._cache(prepare)
        write_bytes(folder / f"{image_id}.npy", _npy(slices))
        write_text(folder / f"{image_id}.json", json.dumps(asdict(place)))
        return Ready(slices, place)

    def _cache(self, prepare: Preprocess) -> Path:
        what = {"version": VERSION, "axis": self.settings.slice_axis, "window": self.settings.window}
        text = json.dumps({**prepare.model_dump(exclude={"neighbours"}), **what}, sort_keys=True)
        return self.workspace / "cache" / f"slices-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class Slices:
    """Cases as tensors on the network's grid, read from the memory-mapped cache when they are asked for."""

    def __init__(self, site: Site, prepare: Preprocess) -> None:
        self._site, self._prepare = site, prepare
        self._open: dict[str, Ready] = {}

    def image(self, image_id: str) -> Ready:
        if image_id not in self._open:
            self._open[image_id] = self._site.ready(image_id, self._prepare)
        return self._open[image_id]

    def take(self, cases: Sequence[Case]) -> Tensor:
        """What the network sees of each case, (B, K, size_px, size_px) float32 on the CPU.

        In 2.5D the channels are those of the slices around it, from `neighbours` before to as many behind it; a volume's
        first and last slice stand for those beyond.
        """
        around = self._prepare.neighbours
        if not around:
            return self._plain(cases)
        return torch.cat([self._plain(self.beside(cases, step)) for step in range(-around, around + 1)], dim=1)

    def beside(self, cases: Sequence[Case], step: int) -> list[Case]:
        """The cases `step` slices further on, or the last ones of their volumes; for their images alone, not their labels."""
        last = [len(self.image(case.image).slices) - 1 for case in cases]
        return [replace(case, index=min(max(case.index + step, 0), end)) for case, end in zip(cases, last, strict=True)]

    def _plain(self, cases: Sequence[Case]) -> Tensor:
        return torch.from_numpy(np.stack([self.image(case.image).slices[case.index] for case in cases]))

    def labels(self, cases: Sequence[Case]) -> Tensor:
        """The experts' masks of labelled cases, (B, size_px, size_px) uint8."""
        drawn = self._site.store.labels([case.id for case in cases])  # on the images' own grids
        masks = [mask_to_network(mask, self.image(case.image).place) for case, mask in zip(cases, drawn, strict=True)]
        return torch.from_numpy(np.stack(masks))

    def truths(self, cases: Sequence[Case]) -> Tensor:
        """The true masks of held-out cases, (B, size_px, size_px) uint8.

        Raises:
            SiteFault: a case is of the pool.
        """
        images = {image.id: image for image in self._site.store.images()}
        volumes = {name: self._site.truth(images[name]) for name in sorted({case.image for case in cases})}
        masks = [mask_to_network(volumes[case.image][case.index], self.image(case.image).place) for case in cases]
        return torch.from_numpy(np.stack(masks))


def own_channels(images: Tensor, prepare: Preprocess) -> Tensor:
    """The slice itself of 2.5D images (B, K·(2n + 1), H, W): SAM looks at one."""
    return images[:, prepare.neighbours * prepare.channels : (prepare.neighbours + 1) * prepare.channels]


def site_log(workspace: Path, name: str) -> logging.Logger:
    """The site's own log, in `site.log`: it may name files and cases, and never leaves."""
    log = logging.getLogger(f"wardround.site.{name}.{hashlib.sha256(str(workspace).encode()).hexdigest()[:8]}")
    if not log.handlers:
        handler = logging.FileHandler(workspace / "site.log", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    return log


def workspace_of(node_config: Mapping[str, Any], run_config: Mapping[str, Any]) -> Path:
    """The workspace a Flower node serves.

    A hospital's SuperNode names it: `--node-config 'site="/absolute/path"'`. A simulated node has a `partition-id`; it
    serves the folder of that rank, by name, under `sites` of the run's folder (`run-dir` in the run's configuration).
    """
    if "site" in node_config:
        return Path(str(node_config["site"]))
    if "partition-id" in node_config and run_config.get("run-dir"):
        folders = sorted(path.parent for path in (Path(str(run_config["run-dir"])) / "sites").glob("*/site.toml"))
        rank = int(node_config["partition-id"])
        if rank < len(folders):
            return folders[rank]
        raise SiteFault(
            "bad-request", f"this is simulated node {rank}, but the run has {len(folders)} sites: set num-supernodes to that"
        )
    raise SiteFault(
        "bad-request",
        "this node does not know its workspace: start the SuperNode with --node-config 'site=\"/absolute/path\"', "
        "or the simulation with --run-config 'run-dir=\"/absolute/path\"'",
    )


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
