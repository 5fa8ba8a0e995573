"""Make the hospitals of a simulated run: data, sites, held-out patients, and labels for simulated experts to give.

What is written for each site is what a real hospital would have (`site.toml`, `images.csv`), and beside it `hidden/`,
which only the oracle reads (with `split.start = "foreground"` images.csv tells which slices of it show a class). A kill
at any moment loses the work on one site or hospital; the next call goes on there.

    data/<hospital>/<patient>/…     phantoms, as DICOM; or, under `split.sites = "scanner"`, restyled copies
    data/prepared.json              which settings all of it was made from, the sites, and warnings
    sites/<name>/site.toml          settings of the site, annotator "oracle"
    sites/<name>/images.csv         patient, image (its name), path, role, truth (of held-out patients only), start
    sites/<name>/hidden/            masks of the pool as the expert draws them, and the mark of a finished site
    sites/<name>/schedule.json      when the expert answers

Everything random follows from `split_seed` (data, sites, held-out patients) and `seed` (the experts), by name of site
and case, so that neither order nor interruption changes a byte.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.formats.image import keyed_hash
from client.query_check import check as check_query
from client.sam_checkpoint import check as check_sam
from client.sam_checkpoint import digest, path_of
from configs.files import read_object, write_bytes, write_text
from configs.load import dump
from configs.schema import Run, Site
from simulation.experts import expert_mask, schedule
from simulation.sources import Progress, Source, file_format, indexed, phantoms, restyled, truth
from simulation.split import DataFault, Role, Sites, by_column, by_label, by_size, equal_parts, hold_out
from simulation.styles import Style, styles
from strategies.randomness import numpy_rng

_DELETE = "delete it and go on with --resume; what is missing is made again, the same"
"""What to do about a damaged file that a call of `prepare` left for the next."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")


def prepare(run: Run, out: Path, *, progress: Progress | None = None) -> list[str]:
    """Write the sites of `run` below `out`; what is there already is kept.

    Returns:
        The names of the sites, in ascending order.

    Raises:
        DataFault: the data does not fit the settings, or `out` was prepared from others; names the file or the key,
            and what to do. `FormatError`, one of these, where an image or a mask cannot be read.
        SamUnavailable: SAM's checkpoint can't be used as the run asks.
        ConfigError: the query strategy can't be loaded.
        StorageFault: the disk is full or read-only, or what an earlier call left is damaged.
    """
    check_sam(run)
    check_query(run)
    out = out.resolve()
    tell = progress or (lambda what, done, total: None)
    state = _begin(run, out)
    if state.get("sites"):
        for name in state["sites"]:
            write_site_toml(run, out / "sites" / name)
        return list(state["sites"])
    sources = phantoms(run, out / "data", tell) if run.data.format == "phantom" else indexed(run)
    sites = _sites(run, sources, tell)
    looks = dict(zip(sites, styles(len(sites), split_seed=run.split.split_seed), strict=True))
    pixels = np.zeros(len(run.classes), dtype=np.int64)
    for done, (name, patients) in enumerate(sites.items()):
        tell(f"preparing site {name}", done, len(sites))
        own = [source for source in sources if source.patient in set(patients)]
        pixels += _prepare_site(run, out, name, own, looks[name])
    tell("all sites are ready", len(sites), len(sites))
    _write_json(_state_path(out), {**state, "sites": sorted(sites), "warnings": _absent(run, pixels, len(sources))})
    return sorted(sites)


def is_prepared(out: Path) -> bool:
    """Whether `prepare` has come to its end in `out`."""
    path = _state_path(out.resolve())
    return path.exists() and bool(read_object(path, remedy=_DELETE).get("sites"))


def warnings_of(out: Path) -> list[str]:
    """What `prepare` found odd but usable: one sentence for each class that no image shows."""
    path = _state_path(out.resolve())
    return list(read_object(path, remedy=_DELETE).get("warnings", [])) if path.exists() else []


def site_key(name: str, *, split_seed: int) -> str:
    """The secret of a *simulated* site's keyed hashes: 64 hex digits that follow from the seed, so that runs repeat.

    Nobody's privacy may rest on it. A real site draws its key from the operating system.
    """
    return hashlib.sha256(f"wardround simulated site\0{split_seed}\0{name}".encode()).hexdigest()


# --------------------------------------------------------------------------------------------------------------- split


def _sites(run: Run, sources: Sequence[Source], tell: Progress) -> Sites:
    """Site name to patients, by the rule that `split.sites` names."""
    split = run.split
    where = "the phantoms" if run.data.format == "phantom" else str(Path(run.data.root) / run.data.index)
    patients = {source.patient for source in sources}
    try:
        match split.sites:
            case "column":
                sites = by_column(_site_of(sources))
            case "dirichlet":
                shares = _class_shares(run, sources, tell)
                sites = by_label(shares, count=split.count, alpha=split.alpha, split_seed=split.split_seed)
            case "size":
                sites = by_size(patients, count=split.count, alpha=split.alpha, split_seed=split.split_seed)
            case "scanner":
                if file_format(run) == "dicom":
                    raise DataFault(
                        'split.sites = "scanner" writes restyled copies of NIfTI volumes and pictures, not of DICOM: '
                        'set it to "column" for sites with scanners of their own, or to "dirichlet" or "size"'
                    )
                sites = equal_parts(patients, count=split.count, split_seed=split.split_seed)
    except ValueError as error:
        key = " (see data.phantom.patients)" if run.data.format == "phantom" else ""
        raise DataFault(f"cannot make sites from {where}{key}: {error}") from error
    for name in sites:
        if not _NAME.fullmatch(name):
            raise DataFault(
                f"{where}: site {name!r} cannot name a folder. Use 1 to 64 letters, digits, dots, hyphens and "
                "underscores, and no dot in front"
            )
    return dict(sorted(sites.items()))


def _site_of(sources: Iterable[Source]) -> dict[str, str | None]:
    site_of: dict[str, str | None] = {}
    for source in sources:
        if site_of.setdefault(source.patient, source.site) != source.site:
            raise DataFault(
                f"the patient of case {source.case} stands at two sites, {site_of[source.patient]} and {source.site}: "
                "all images of a patient belong to one"
            )
    return site_of


def _class_shares(run: Run, sources: Sequence[Source], tell: Progress) -> dict[str, NDArray[np.floating[Any]]]:
    """Patient to the share of its pixels in each class, background first."""
    pixels: dict[str, NDArray[np.int64]] = {}
    for done, source in enumerate(sources):
        tell("counting the classes of each patient", done, len(sources))
        count = np.bincount(truth(run, source).ravel(), minlength=len(run.classes) + 1)
        pixels[source.patient] = pixels.get(source.patient, np.zeros_like(count)) + count
    return {patient: counts / counts.sum() for patient, counts in pixels.items()}


# ---------------------------------------------------------------------------------------------------------------- site


def _prepare_site(run: Run, out: Path, name: str, sources: Sequence[Source], style: Style) -> NDArray[np.int64]:
    """Write one site, or find it written; (C,) pixels of each class in its truth."""
    folder = out / "sites" / name
    marker = folder / "hidden" / "done.json"
    write_site_toml(run, folder)
    if marker.exists():
        return np.asarray(read_object(marker, keys=["pixels"], remedy=_DELETE)["pixels"], dtype=np.int64)
    if run.split.sites == "scanner":
        sources = restyled(run, out / "data" / name, sources, style)
    roles = hold_out(
        {source.patient for source in sources},
        test_fraction=run.split.test_fraction,
        validation_fraction=run.split.validation_fraction,
        split_seed=run.split.split_seed,
        folds=run.split.folds,
        fold=run.split.fold,
    )
    pixels, shown = _write_hidden(run, folder, sources, roles)
    _write_images_csv(run, folder / "images.csv", sources, roles, shown)
    if not pixels.any():
        raise DataFault(
            f"site {name}: none of its {len(sources)} masks shows a pixel of {', '.join(run.class_names)}. "
            "Check the label values or ROI names in [classes], or leave the site out of the index"
        )
    write_schedule(run, folder, [case for cases in shown.values() for case in cases])
    _write_json(marker, {"pixels": pixels.tolist()})
    return pixels


def write_schedule(run: Run, folder: Path, case_ids: Iterable[str]) -> None:
    """When the expert of the site in `folder` answers, for all cases that may be asked for."""
    plan = schedule(
        case_ids,
        delay=run.experts.delay,
        absence=run.experts.absence,
        cycles=run.federation.cycles,
        rng=numpy_rng(run.seed, "schedule", folder.name),
    )
    _write_json(folder / "schedule.json", dict(plan))


def write_site_toml(run: Run, folder: Path) -> None:
    site = Site(
        name=folder.name,
        key=site_key(folder.name, split_seed=run.split.split_seed),
        format=file_format(run),
        slice_axis=run.data.slice_axis,
        window=run.data.window,
        classes=run.classes,
        annotator="oracle",
        share=run.privacy.share,
        min_patients=run.privacy.min_patients,
        # A site may run in another process and folder, so the path must not depend on where this one was started.
        sam_checkpoint=str(path_of(run.sam.checkpoint).resolve()),
        save_pictures=run.save_pictures,
        threads=run.threads,
        device=run.device,
    )
    write_text(folder / "site.toml", dump(site))


def _write_images_csv(
    run: Run, path: Path, sources: Iterable[Source], roles: Mapping[str, Role], shown: Mapping[str, Mapping[str, bool]]
) -> None:
    """The site's table of images; with `split.start = "foreground"` it names the slices where the expert sees a class."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["patient", "image", "path", "role", "truth", "start"])
    for source in sources:
        role = roles[source.patient]
        slices = enumerate(shown.get(source.case, {}).values() if run.split.start == "foreground" else ())
        start = " ".join(str(index) for index, shows in slices if shows)
        table.writerow([source.patient, source.case, source.image, role, "" if role == "pool" else source.label, start])
    write_text(path, text.getvalue())


def _write_hidden(
    run: Run, folder: Path, sources: Iterable[Source], roles: Mapping[str, Role]
) -> tuple[NDArray[np.int64], dict[str, dict[str, bool]]]:
    """Write what the expert draws on the pool.

    Returns:
        (C,) pixels in the truth of all images; and of each source in the pool, by name, its cases' ids in the order of
        the slices, with whether the expert draws anything there.

    Held-out truth is read as well: a mask that cannot be used is told before the run, not at its first evaluation.
    """
    key = site_key(folder.name, split_seed=run.split.split_seed)
    pixels = np.zeros(len(run.classes) + 1, dtype=np.int64)
    shown: dict[str, dict[str, bool]] = {}
    for source in sources:
        true = truth(run, source)
        pixels += np.bincount(true.ravel(), minlength=len(pixels))
        if roles[source.patient] != "pool":
            continue
        rng = numpy_rng(run.seed, "expert", folder.name, source.case)
        drawn = expert_mask(true, boundary_px=run.experts.boundary_px, rng=rng)
        patient, image = keyed_hash(source.patient, key=key), keyed_hash(source.case, key=key)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, mask=drawn)
        write_bytes(folder / "hidden" / f"{image}.npz", buffer.getvalue())
        shown[source.case] = {f"{patient}.{image}.{index:04d}": bool(plane.any()) for index, plane in enumerate(drawn)}
    return pixels[1:], shown


# --------------------------------------------------------------------------------------------------------------- state


def _state_path(out: Path) -> Path:
    return out / "data" / "prepared.json"


def _begin(run: Run, out: Path) -> dict[str, Any]:
    """The state of `out`: that of an earlier call with the same settings, or a new one.

    Raises:
        DataFault: `out` was prepared from other settings; names them.
    """
    path = _state_path(out)
    settings = run.model_dump(mode="json", include={"seed", "data", "split", "experts"})
    settings["classes"] = [[name, value] for name, value in run.classes.items()]  # their order is their label
    settings["federation.cycles"] = run.federation.cycles
    settings["the file of sam.checkpoint"] = digest(path_of(run.sam.checkpoint)) if run.reads_sam else ""
    if not path.exists():
        _write_json(path, {"settings": settings})
        return {"settings": settings}
    state = read_object(path, keys=["settings"], remedy=_DELETE)
    changed = sorted(key for key in settings if state["settings"].get(key) != settings[key])
    if changed:
        raise DataFault(
            f"{out} was prepared with other settings ({', '.join(changed)} differ), and what it holds belongs to those: "
            "choose another folder with --out, or delete this one"
        )
    return state


def _absent(run: Run, pixels: NDArray[np.int64], images: int) -> list[str]:
    return [
        f"classes.{name}: none of {images} masks shows a pixel of it, so nothing can learn it. "
        "Check its label value or ROI names in [classes], or take it out"
        for name, count in zip(run.class_names, pixels, strict=True)
        if count == 0
    ]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, sort_keys=True))
