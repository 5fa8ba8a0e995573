"""Configurations: what is wrong is told all at once, and what is right survives being written and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.load import ConfigError, dump, explain, load, load_site
from configs.schema import Data, Query, Run, Site, Train

GOOD = '[classes]\nliver = 1\n"left kidney" = ["LK*", "left_kidney"]\n'
KEY = "0123456789abcdef" * 4


def write(folder: Path, text: str, name: str = "run.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def faults(folder: Path, text: str, overrides: tuple[str, ...] = ()) -> dict[str, str]:
    """Lines of the error by their dotted key."""
    with pytest.raises(ConfigError) as caught:
        load(write(folder, text), overrides)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[0].startswith(str(folder / "run.toml")), "the message opens with the file"
    return {line.split(" = ")[0].split(":")[0].split(" (from")[0]: line for line in lines[1:] or lines}


def test_a_file_of_classes_alone_is_a_run_of_defaults(tmp_path: Path) -> None:
    run = load(write(tmp_path, GOOD))
    assert run == Run(classes={"liver": 1, "left kidney": ["LK*", "left_kidney"]})
    assert run.class_names == ["liver", "left kidney"]


def test_all_faults_are_told_at_once_each_with_key_value_and_remedy(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        'name = "a b"\n[train]\nlocal_step = 3\nsize_px = 64\nseed = 1\nlearning_rate = -1.0\naugment = "yes"\n'
        '[split]\nsites = "colum"\n[data.phantom]\npatients = [4, 0]\n[trian]\nx = 1\n' + GOOD,
    )
    assert "64: unknown key: size_px belongs in [data.phantom] or in [preprocess]" in found["train.size_px"]
    assert "did you mean train.local_steps?" in found["train.local_step"]
    assert "at the top of the file" in found["train.seed"]
    assert "-1.0: must be greater than 0" in found["train.learning_rate"]
    assert '"yes": must be true or false' in found["train.augment"]
    assert '"colum": must be one of column, dirichlet, size, scanner; did you mean column?' in found["split.sites"]
    assert "0: must be at least 1" in found["data.phantom.patients[1]"]
    assert "did you mean train?" in found["trian"]
    assert "must match" in found["name"]
    assert len(found) == 9


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("strategy = 'typiclust+cap'", ['query.strategy = "typiclust" or "probcover", not "typiclust+cap"']),
        ("strategy = 'typiclust'\nunit = 'volume'", ['it takes query.unit = "slice", not "volume"']),
        ("strategy = 'random'\nunit = 'patient'", ['not "random"', 'not "patient"']),
    ],
)
def test_what_a_coordinated_budget_does_not_take_is_named_in_full(tmp_path: Path, query: str, told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, f"[budget]\nrule = 'coordinated'\n[query]\n{query}\n{GOOD}"))
    found = [str(fault) for fault in caught.value.faults]
    assert len(found) == len(told), found
    assert all(text in line for text, line in zip(told, found, strict=True)), found


def test_checks_across_keys_are_told_beside_other_faults(tmp_path: Path) -> None:
    found = faults(tmp_path, "seed = -1\n[train]\nbogus = 1\n[query]\nstrategy = 'bald'\n" + GOOD)
    assert any("set network.dropout above 0" in line for line in found.values()), found
    assert {"seed", "train.bogus"} <= set(found)


@pytest.mark.parametrize(
    ("model", "passes", "dropout", "fault"),
    [
        ("both", 1, 0.0, None),
        ("both", 1, 0.1, None),
        ("both", 2, 0.1, None),
        ("both", 2, 0.0, "set network.dropout above 0"),
        ("global", 2, 0.0, "set network.dropout above 0"),
        ("global", 1, 0.1, "query.passes = 1 leaves one"),
        ("switch", 1, 0.1, "query.passes = 1 leaves one"),
    ],
)
@pytest.mark.parametrize("strategy", ["bald", "vote_entropy+cap"])
def test_predictions_are_compared_of_passes_with_dropout_or_of_two_models(
    tmp_path: Path, strategy: str, model: str, passes: int, dropout: float, fault: str | None
) -> None:
    query = f"[query]\nstrategy = '{strategy}'\nmodel = '{model}'\npasses = {passes}\n[network]\ndropout = {dropout}\n"
    if fault is None:
        load(write(tmp_path, query + GOOD))
    else:
        (found,) = faults(tmp_path, query + GOOD).values()
        assert fault in found


def test_a_check_across_keys_does_not_judge_the_default_of_a_wrong_key(tmp_path: Path) -> None:
    found = faults(tmp_path, "[network]\ndropout = 'high'\n[query]\nstrategy = 'bald'\n" + GOOD)
    assert list(found) == ["network.dropout"]


def test_missing_classes_are_named_and_hide_nothing(tmp_path: Path) -> None:
    found = faults(tmp_path, "[data]\nformat = 'nifti'\n")
    assert "missing" in found["classes"]
    assert "root is empty" in found["data"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("threads = '2'\n", "a whole number"),
        ("threads = true\n", "a whole number"),
        ("threads = 2.5\n", "a whole number"),
        ("[train]\nweight_decay = inf\n", "finite"),
        ("[train]\nlearning_rate = nan\n", "finite"),
        ("name = 2024-01-01\n", "quotes"),
        ("[data]\nwindow = [1, 2, 3]\n", "at most 2"),
        ("train = 3\n", "table of settings"),
    ],
)
def test_values_of_another_type_are_refused_not_guessed(tmp_path: Path, text: str, why: str) -> None:
    found = faults(tmp_path, text + GOOD)
    assert len(found) == 1
    assert why in next(iter(found.values()))


def test_a_class_is_a_label_or_names_and_says_so_once(tmp_path: Path) -> None:
    found = faults(tmp_path, '[classes]\nliver = "GTV*"\n')
    assert found["classes.liver"].count("must be") == 1
    assert "a whole number or a list" in found["classes.liver"]


def test_toml_errors_have_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.toml: is not valid TOML at line 2, column 8 .*: name = run"):
        load(write(tmp_path, "seed = 1\nname = run\n"))


def test_unreadable_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


def test_a_missing_file_lists_the_shipped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("configs.load.shipped", lambda: [Path("configs/acdc.toml"), Path("configs/demo.toml")])
    with pytest.raises(ConfigError, match=r"mean configs/demo\.toml\?.* Shipped.*: configs/acdc\.toml, "):
        load(Path("configs/demos.toml"))


# ----------------------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.local_steps=5", 5),
        (" train.local_steps = 5 ", 5),
        ("split.sites=size", "size"),
        ('split.sites="size"', "size"),
        ("sam.enabled=false", False),
        ("data.phantom.patients=[3, 4, 5, 6]", [3, 4, 5, 6]),
        ("data.phantom={hospitals = 2}", {"hospitals": 2, "patients": [12], "slices": 8, "size_px": 96}),
        ('classes."left kidney"=7', 7),
        ("data.root=/path/with=sign and spaces", "/path/with=sign and spaces"),
        ("train.learning_rate=1e-4", 1e-4),
    ],
)
def test_overrides(tmp_path: Path, override: str, value: Any) -> None:
    run: Any = load(write(tmp_path, GOOD), [override]).model_dump()
    for part in override.split("=")[0].strip().split("."):
        run = run[part.strip('"')]
    assert run == value or list(run) == value


def test_later_overrides_win_and_the_file_is_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "seed = 1\n" + GOOD)
    assert load(path, ["seed=2", "seed=3"]).seed == 3
    assert load(path).seed == 1


def test_wrong_overrides_are_told_with_the_file_s_own_faults(tmp_path: Path) -> None:
    found = faults(
        tmp_path, "sead = 1\n" + GOOD, ("train.local_steps", "split.sites=[1", "train.bogus=1", "seed.x=1", "name.y=2")
    )
    text = "\n".join(found.values())
    assert "--set train.local_steps: write it as --set key=value" in text
    assert "split.sites = [1 (from --set): is not a TOML value" in text
    assert "train.bogus = 1 (from --set): unknown key" in text
    assert "sead = 1: unknown key" in text
    assert "seed" in found


def test_an_override_cannot_smuggle_a_second_key(tmp_path: Path) -> None:
    found = faults(tmp_path, GOOD, ("seed=1\nthreads=9",))
    assert list(found) == ["seed"]


def test_an_override_below_a_single_value_is_told(tmp_path: Path) -> None:
    found = faults(tmp_path, "seed = 1\n" + GOOD, ("seed.x=1",))
    assert "seed is a single value, not a table" in found["seed.x"]


# --------------------------------------------------------------------------------------------------------- environment


def test_environment_variables_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDROUND_DATA", "/somewhere")
    path = write(tmp_path, '[data]\nformat = "nifti"\nroot = "${WARDROUND_DATA}/acdc"\n[classes]\nliver = 1\n')
    assert load(path).data.root == "/somewhere/acdc"
    assert load(path, ["data.root=${WARDROUND_DATA}/other"]).data.root == "/somewhere/other"


def test_an_unset_variable_is_one_fault_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WARDROUND_DATA", raising=False)
    found = faults(tmp_path, 'sead = 1\n[data]\nformat = "nifti"\nroot = "${WARDROUND_DATA}/acdc"\n' + GOOD)
    assert "WARDROUND_DATA is not set" in found["data.root"]
    assert "export WARDROUND_DATA=" in found["data.root"]
    assert set(found) == {"data.root", "sead"}


# ------------------------------------------------------------------------------------------------------------- writing

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda text: "${" not in text)
REAL = st.floats(min_value=1e-12, max_value=1e12)

runs = st.builds(
    Run,
    name=st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}", fullmatch=True),
    seed=st.integers(0, 2**40),
    save_pictures=st.booleans(),
    classes=st.dictionaries(TEXT, st.lists(TEXT, min_size=1, max_size=3), min_size=1),
    data=st.builds(
        Data,
        format=st.just("dicom"),
        root=TEXT.filter(bool),
        window=st.none() | st.tuples(REAL, REAL),
        slice_axis=st.sampled_from([0, 1, 2]),
    ),
    train=st.builds(Train, learning_rate=REAL, max_update_norm=st.none() | REAL, local_steps=st.integers(1, 10**6)),
    query=st.builds(Query, power_beta=REAL),
)


def written_and_read(run: Run, folder: Path) -> Run:
    return load(write(folder, dump(run)))


@given(run=runs)
def test_what_is_written_reads_as_equal_in_the_same_order(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    again = written_and_read(run, tmp_path_factory.mktemp("dump"))
    assert again == run
    assert again.class_names == run.class_names, "the order of the classes is their label"


def test_a_site_is_written_and_read_though_a_table_stands_among_its_keys(tmp_path: Path) -> None:
    site = Site(name="A", key=KEY, format="dicom", classes={"b": ["x*"], "a": 2}, window=(40.0, 400.0), min_patients=3)
    path = write(tmp_path, dump(site), "site.toml")
    assert load_site(path) == site
    assert list(load_site(path).classes) == ["b", "a"]


def test_a_site_s_secret_is_never_shown(tmp_path: Path) -> None:
    text = 'name = "A"\nkey = "tiny-secret"\nformat = "dicom"\nformt = 1\n[classes]\na = 1\n'
    with pytest.raises(ConfigError, match="at least 32 characters") as caught:
        load_site(write(tmp_path, text))
    assert "tiny-secret" not in str(caught.value)
    assert "formt" in str(caught.value)


def test_every_key_is_explained() -> None:
    rows = {row.key: row for row in explain()}
    assert rows["train.local_steps"].type == "whole number, at least 1"
    assert rows["data.window"].default == "none"
    assert rows["preprocess.spacing_mm"].type == "number, above 0"
    assert rows["classes"].default == "required"
    assert rows["split.sites"].type == "column | dirichlet | size | scanner"
    assert "train" not in rows
    assert all(row.description for row in rows.values()), "a key without a description"
