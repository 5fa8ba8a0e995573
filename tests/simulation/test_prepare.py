"""Simulated hospitals: what a site is given, what stays hidden from it, and that a kill costs nothing."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pytest

import simulation.prepare
import simulation.sources
from client.formats import FORMATS
from client.formats.image import keyed_hash
from client.sam_checkpoint import SMALL, SamUnavailable
from configs.load import load_site
from configs.schema import Run
from simulation.phantom import CLASS_NAMES
from simulation.prepare import prepare, site_key, warnings_of

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
CLASSES: dict[str, int | list[str]] = {"core": 1, "rim": 2}


def plane(rng: np.random.Generator, size: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """A disc in a ring on noise; (image float, labels), both (size, size)."""
    rows, columns = np.mgrid[:size, :size]
    radius = np.hypot(rows - rng.uniform(9, 15), columns - rng.uniform(9, 15))
    labels = np.select([radius < 4, radius < 7], [1, 2], 0).astype(np.uint8)
    return 100.0 * labels + rng.uniform(0, 30, labels.shape), labels


def write_index(root: Path, rows: list[tuple[str, str, str]]) -> None:
    lines = ["case,patient,site", *(",".join(row) for row in rows)]
    (root / "index.csv").write_text("\n".join(lines) + "\n")


def volumes(root: Path, *, patients: int = 8, sites: int = 2, labels: Callable[[np.ndarray], np.ndarray] = np.copy) -> Path:
    """NIfTI volumes, two of patient p0; patients alternate between sites A, B, …"""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    cases = [(f"c{i}", f"p{i}", "ABCDEF"[i % sites]) for i in range(patients)] + [("c0b", "p0", "A")]
    for case, _, _ in cases:
        planes = [plane(rng) for _ in range(3)]
        image, mask = (np.stack(parts, axis=2) for parts in zip(*planes, strict=True))
        for folder, values in (("images", image.astype(np.float32)), ("labels", labels(mask))):
            file: Any = nib.Nifti1Image(values, AFFINE)
            nib.save(file, root / folder / f"{case}.nii.gz")
    write_index(root, cases)
    return root


def pictures(root: Path, *, patients: int = 7) -> Path:
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(patients):
        image, mask = plane(rng)
        colour = np.stack([image, image / 2, 255 - image], axis=2).clip(0, 255).astype(np.uint8)
        PIL.Image.fromarray(colour).save(root / "images" / f"c{number}.png")
        PIL.Image.fromarray(mask).save(root / "masks" / f"c{number}.png")
    (root / "index.csv").write_text("case\n" + "".join(f"c{n}\n" for n in range(patients)))
    return root


def settings(root: Path | None = None, **tables: Any) -> Run:
    data = {"format": "nifti", "root": str(root)} if root else {}
    return Run.model_validate({"classes": CLASSES, "data": data, **tables})


def listed(site: Path) -> list[dict[str, str]]:
    with (site / "images.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---------------------------------------------------------------------------------------------------- what is written


def test_each_site_is_what_a_hospital_has_and_hidden_labels_beside_it(tmp_path: Path) -> None:
    run = settings(volumes(tmp_path / "set"), privacy={"share": "updates", "min_patients": 2}, threads=3)
    assert prepare(run, tmp_path / "out") == ["A", "B"]
    everyone: list[str] = []
    for name in ("A", "B"):
        site = tmp_path / "out" / "sites" / name
        at_site = load_site(site / "site.toml")
        assert (at_site.name, at_site.format, at_site.annotator) == (name, "nifti", "oracle")
        assert (at_site.share, at_site.min_patients, at_site.threads) == ("updates", 2, 3)
        assert list(at_site.classes.items()) == list(CLASSES.items())
        assert at_site.key == site_key(name, split_seed=0)
        roles: dict[str, set[str]] = {}
        for row in listed(site):
            roles.setdefault(row["patient"], set()).add(row["role"])
            assert Path(row["path"]).is_absolute()
            assert Path(row["path"]).exists()
            hidden = site / "hidden" / f"{keyed_hash(row['image'], key=at_site.key)}.npz"
            assert hidden.exists() == (row["role"] == "pool"), "labels are hidden for the pool and for nobody else"
            assert bool(row["truth"]) == (row["role"] != "pool"), "the site must not know where the pool's truth lies"
            assert not row["truth"] or Path(row["truth"]).exists()
        assert all(len(held) == 1 for held in roles.values()), "a patient has one role"
        assert {role for held in roles.values() for role in held} == {"pool", "validation", "test"}
        everyone += roles
    assert sorted(everyone) == [f"p{i}" for i in range(8)], "every patient is at one site"


def hidden_and_true(run: Run, site: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each pool image's hidden mask, and its true one read afresh."""
    at_site, pairs = load_site(site / "site.toml"), []
    form = FORMATS[at_site.format]
    for row in listed(site):
        if row["role"] == "pool":
            path = Path(row["path"])
            with np.load(site / "hidden" / f"{keyed_hash(row['image'], key=at_site.key)}.npz") as file:
                hidden = file["mask"]
            image = form.read_image(path, key=at_site.key, patient=row["patient"])
            truth = Path(run.data.root) / "labels" / path.name
            pairs.append((hidden, form.read_mask(truth, image, classes=at_site.classes)))
    return pairs


def test_a_faultless_expert_gives_the_truth_and_another_errs(tmp_path: Path) -> None:
    root = volumes(tmp_path / "set")
    exact, erring = settings(root), settings(root, experts={"boundary_px": 1.0})
    for run, out in ((exact, tmp_path / "exact"), (erring, tmp_path / "erring")):
        prepare(run, out)
    pairs = hidden_and_true(exact, tmp_path / "exact" / "sites" / "A")
    assert pairs
    for hidden, truth in pairs:
        assert hidden.dtype == np.uint8
        assert hidden.shape == (3, 24, 24)
        np.testing.assert_array_equal(hidden, truth)
    pairs = hidden_and_true(erring, tmp_path / "erring" / "sites" / "A")
    assert all((hidden != truth).any() and (hidden == truth).mean() > 0.8 for hidden, truth in pairs)


def test_the_schedule_knows_every_case_of_the_pool_and_no_other(tmp_path: Path) -> None:
    run = settings(volumes(tmp_path / "set"), experts={"delay": 2, "absence": 0.5}, federation={"cycles": 9})
    prepare(run, tmp_path / "out")
    for name in ("A", "B"):
        site = tmp_path / "out" / "sites" / name
        key = site_key(name, split_seed=0)
        plan = json.loads((site / "schedule.json").read_text())
        pool = [row for row in listed(site) if row["role"] == "pool"]
        wanted = {
            f"{keyed_hash(row['patient'], key=key)}.{keyed_hash(row['image'], key=key)}.{index:04d}"
            for row in pool
            for index in range(3)
        }
        assert set(plan["delay"]) == wanted
        assert set(plan["delay"].values()) <= {0, 1, 2}
        assert 0 < len(plan["absent_cycles"]) < 9


def test_held_out_patients_follow_the_split_seed_and_expert_errors_the_seed(tmp_path: Path) -> None:
    root = volumes(tmp_path / "set", patients=12)

    def made(name: str, **tables: Any) -> tuple[list[dict[str, str]], dict[str, bytes]]:
        prepare(settings(root, experts={"boundary_px": 1.0}, **tables), tmp_path / name)
        site = tmp_path / name / "sites" / "A"
        return listed(site), {k: v for k, v in content(site / "hidden").items() if k.endswith("npz")}

    rows, masks = made("one")
    other_seed, other_masks = made("two", seed=5)
    assert other_seed == rows
    assert other_masks.keys() == masks.keys()
    assert all(other_masks[name] != masks[name] for name in masks)
    other_split, _ = made("three", split={"split_seed": 5})
    assert [row["role"] for row in other_split] != [row["role"] for row in rows]


@pytest.mark.parametrize("rule", ["dirichlet", "size"])
def test_sites_are_made_where_the_index_has_none(tmp_path: Path, rule: str) -> None:
    run = settings(volumes(tmp_path / "set", patients=9), split={"sites": rule, "count": 3})
    assert prepare(run, tmp_path / "out") == ["site_1", "site_2", "site_3"]
    patients = [{row["patient"] for row in listed(tmp_path / "out" / "sites" / f"site_{n}")} for n in (1, 2, 3)]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 9
    assert sum(len(listed(tmp_path / "out" / "sites" / f"site_{n}")) for n in (1, 2, 3)) == 10, "both volumes of p0"


@pytest.mark.parametrize("kind", ["nifti", "picture"])
def test_scanner_sites_see_restyled_copies_on_the_same_grid(tmp_path: Path, kind: str) -> None:
    root = (volumes if kind == "nifti" else pictures)(tmp_path / "set", patients=7)
    run = settings(root, data={"format": kind, "root": str(root)}, split={"sites": "scanner", "count": 2})
    names = prepare(run, tmp_path / "out")
    form = FORMATS[kind]
    for name in names:
        for row in listed(tmp_path / "out" / "sites" / name):
            copy = Path(row["path"])
            assert copy.is_relative_to((tmp_path / "out" / "data").resolve())
            before = form.read_image(root / "images" / copy.name, key="k")
            after = form.read_image(copy, key="k")
            assert after.voxels.shape == before.voxels.shape
            assert (after.voxels != before.voxels).mean() > 0.5
            if before.affine is not None:
                np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
            if row["truth"]:
                assert Path(row["truth"]).parent.parent == root.resolve()
                form.read_mask(Path(row["truth"]), after, classes=CLASSES)


def test_a_checkpoint_s_path_does_not_depend_on_where_the_site_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(SMALL, "sam.safetensors")
    prepare(settings(volumes(tmp_path / "set"), sam={"checkpoint": "sam.safetensors"}), tmp_path / "out")
    assert load_site(tmp_path / "out" / "sites" / "A" / "site.toml").sam_checkpoint == str(tmp_path / "sam.safetensors")


# ------------------------------------------------------------------------------------------------------------ phantoms

PHANTOM = {"hospitals": 2, "patients": [3, 4], "slices": 4, "size_px": 64}


def phantom_run(**tables: Any) -> Run:
    return Run.model_validate({"classes": {name: [name] for name in CLASS_NAMES}, "data": {"phantom": PHANTOM}, **tables})


def test_phantom_hospitals_are_sites_with_dicom_of_their_own(tmp_path: Path) -> None:
    run = phantom_run()
    names = prepare(run, tmp_path / "out")
    assert len(names) == 2
    assert warnings_of(tmp_path / "out") == []
    rows = [listed(tmp_path / "out" / "sites" / name) for name in names]
    assert [len(site) for site in rows] == [3, 4]
    for name, site in zip(names, rows, strict=True):
        assert load_site(tmp_path / "out" / "sites" / name / "site.toml").format == "dicom"
        for row in site:
            assert Path(row["path"]).is_dir()
            assert Path(row["path"]).is_relative_to((tmp_path / "out" / "data").resolve())
    patients = [row["patient"] for site in rows for row in site]
    assert len(set(patients)) == 7, "no two hospitals share a patient"


def test_phantom_patients_are_one_number_or_one_each() -> None:
    with pytest.raises(ValueError, match=r"data\.phantom\.patients lists 3 numbers for 2 hospitals"):
        phantom_run(data={"phantom": {**PHANTOM, "patients": [3, 3, 3]}})
    with pytest.raises(ValueError, match=r"data\.phantom\.patients must be at least 3"):
        phantom_run(data={"phantom": {**PHANTOM, "patients": [2]}})


def test_phantoms_have_scanners_of_their_own() -> None:
    with pytest.raises(ValueError, match=r'"scanner" restyles NIfTI and pictures; for DICOM use "column"'):
        phantom_run(split={"sites": "scanner", "count": 2})


def test_a_checkpoint_that_can_t_be_used_as_asked_is_told_before_the_run(tmp_path: Path) -> None:
    root = volumes(tmp_path / "set")
    (tmp_path / "notes.pth").write_text("not weights")
    shutil.copy(SMALL, tmp_path / "own.safetensors")
    for sam, told in (
        ({"checkpoint": "nowhere.pth"}, r"no SAM checkpoint at .*nowhere\.pth.*sam\.checkpoint"),
        ({"checkpoint": "notes.pth"}, r"notes\.pth is damaged or is no checkpoint.*sam\.checkpoint"),
        (
            {"checkpoint": "own.safetensors", "adapt": "decoder", "size": "vit_b"},
            r'own\.safetensors is a small, .*sam\.size = "small"',
        ),
    ):
        asked = settings(root, sam={**sam, "checkpoint": str(tmp_path / sam["checkpoint"])})
        with pytest.raises(SamUnavailable, match=told):
            prepare(asked, tmp_path / "out")
        assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------- kills and repeats


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int) -> None:
    """The `call`-th call of a function, counted from 1, does not return."""
    real, calls = getattr(module, name), [0]

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, dying)


def count_writes(monkeypatch: pytest.MonkeyPatch, *, die_at: int | None = None) -> list[Path]:
    """Record what `prepare` writes from now on; the `die_at`-th write does not happen."""
    written: list[Path] = []
    for name in ("write_text", "write_bytes"):
        real = getattr(simulation.prepare, name)

        def write(path: Path, what: Any, real: Any = real) -> None:
            if len(written) + 1 == die_at:
                raise Killed
            written.append(path)
            real(path, what)

        monkeypatch.setattr(simulation.prepare, name, write)
    return written


def test_a_kill_at_any_write_and_a_second_call_give_what_one_call_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = settings(volumes(tmp_path / "set", patients=6), experts={"boundary_px": 1.0, "delay": 2})
    with monkeypatch.context() as patch:
        written = count_writes(patch)
        prepare(run, tmp_path / "whole")
    whole = content(tmp_path / "whole")
    assert len(written) == len(whole) + 1 >= 12, "the state is written twice, all else once"
    for number in range(1, len(written) + 1):
        out = tmp_path / f"killed_{number}"
        with monkeypatch.context() as patch:
            count_writes(patch, die_at=number)
            with pytest.raises(Killed):
                prepare(run, out)
        prepare(run, out)
        assert content(out) == whole, f"killed at write {number}, of {written[number - 1].name}"


def test_a_kill_among_the_copies_leaves_no_half_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = settings(volumes(tmp_path / "set"), split={"sites": "scanner", "count": 2})
    kill_at(monkeypatch, simulation.sources, "restyle", 3)
    with pytest.raises(Killed):
        prepare(run, tmp_path / "out")
    monkeypatch.undo()
    prepare(run, tmp_path / "out")
    copies = list((tmp_path / "out" / "data").rglob("*.nii.gz"))
    assert len(copies) == 9
    assert not list((tmp_path / "out" / "data").glob(".*.part"))


def test_what_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = settings(volumes(tmp_path / "set"))
    names = prepare(run, tmp_path / "out")
    before = content(tmp_path / "out")
    kill_at(monkeypatch, simulation.prepare, "truth", 1)
    assert prepare(run, tmp_path / "out") == names
    assert content(tmp_path / "out") == before


def test_another_run_s_folder_is_refused(tmp_path: Path) -> None:
    root = volumes(tmp_path / "set")
    prepare(settings(root), tmp_path / "out")
    with pytest.raises(ValueError, match=r"prepared with other settings \(experts, seed differ\).*--out"):
        prepare(settings(root, seed=1, experts={"delay": 1}), tmp_path / "out")
    turned = settings(root).model_copy(update={"classes": dict(reversed(CLASSES.items()))})
    with pytest.raises(ValueError, match="classes differ"):
        prepare(turned, tmp_path / "out")


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    prepare(settings(volumes(tmp_path / "set")), tmp_path / "out", progress=lambda *step: told.append(step))
    assert ("preparing site A", 0, 2) in told
    assert told[-1][1] == told[-1][2]
    assert all(0 <= done <= total for _, done, total in told)


# ----------------------------------------------------------------------------------------------------------- bad input


def test_a_class_that_no_image_shows_is_warned_of(tmp_path: Path) -> None:
    run = settings(volumes(tmp_path / "set"), classes={**CLASSES, "ghost": 9})
    prepare(run, tmp_path / "out")
    (warning,) = warnings_of(tmp_path / "out")
    assert warning.startswith("classes.ghost: none of 9 masks")


def test_a_site_without_foreground_is_told(tmp_path: Path) -> None:
    root = volumes(tmp_path / "set", labels=np.zeros_like)
    with pytest.raises(ValueError, match=r"site A: none of its 5 masks shows a pixel of core, rim.*\[classes\]"):
        prepare(settings(root), tmp_path / "out")


def test_a_missing_label_is_named(tmp_path: Path) -> None:
    root = volumes(tmp_path / "set")
    (root / "labels" / "c3.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"index\.csv(.|\n)*labels/c3\.nii\.gz"):
        prepare(settings(root), tmp_path / "out")


def test_labels_outside_the_classes_are_told_before_the_run(tmp_path: Path) -> None:
    root = volumes(tmp_path / "set")
    with pytest.raises(ValueError, match=r"labels/c.*\.nii\.gz"):
        prepare(settings(root, classes={"core": 1}), tmp_path / "out")


def test_a_site_with_too_few_patients_is_named(tmp_path: Path) -> None:
    root = volumes(tmp_path / "set", patients=8, sites=3)
    with pytest.raises(ValueError, match=r"index\.csv: these sites have fewer than 3 patients.*: C \(2\)"):
        prepare(settings(root), tmp_path / "out")


def test_a_patient_at_two_sites_is_told(tmp_path: Path) -> None:
    root = volumes(tmp_path / "set")
    write_index(root, [(f"c{i}", f"p{i % 4}", "AB"[i // 4]) for i in range(8)])
    with pytest.raises(ValueError, match=r"index\.csv: .*stands at two sites, A and B"):
        prepare(settings(root), tmp_path / "out")


def test_no_site_column_asks_for_a_split(tmp_path: Path) -> None:
    root = volumes(tmp_path / "set")
    (root / "index.csv").write_text("case\n" + "".join(f"c{i}\n" for i in range(8)))
    with pytest.raises(ValueError, match=r"8 of 8 patients have no site.*split\.sites"):
        prepare(settings(root), tmp_path / "out")


@pytest.mark.parametrize("name", ["..", ".hidden", "A B", "x" * 65])
def test_a_site_s_name_must_be_able_to_name_a_folder(tmp_path: Path, name: str) -> None:
    root = volumes(tmp_path / "set")
    write_index(root, [(f"c{i}", f"p{i}", name) for i in range(8)])
    with pytest.raises(ValueError, match="cannot name a folder"):
        prepare(settings(root), tmp_path / "out")
    assert not (tmp_path / "out" / "sites").exists()


def test_too_many_sites_name_the_key(tmp_path: Path) -> None:
    run = settings(volumes(tmp_path / "set"), split={"sites": "size", "count": 4})
    with pytest.raises(ValueError, match=r"index\.csv: split\.count = 4 .* at most 2"):
        prepare(run, tmp_path / "out")
