"""A whole comparison: done once, gone on with, and told in a page and a table."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from client.formats.image import FormatError
from client.store import Store
from configs.faults import ConfigError
from configs.files import locked
from configs.load import load
from server.rounds import Progress
from server.sites import FederationFault
from simulation.compare import record
from simulation.compare.arms import arms_of, run_of
from simulation.compare.run import compare
from simulation.run import RunFolderError, start


def test_a_comparison_has_its_baselines_and_is_done_once(
    tiny_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts dawdle and a step needs two sites: with all labels none is missing all the same, and a site alone is enough."""
    config, out = tiny_config(cycles=2, rounds_per_cycle=1, local_steps=1), tmp_path / "compare"
    slow = ["experts.delay=3", "federation.quorum=0.5", "federation.min_sites=2"]
    assert compare(config, slow, queries=["entropy"], seeds=[0], out=out) == out.resolve()
    names = sorted(path.parent.name for path in (out / "runs").glob("*/record.json"))
    assert names == ["all_labels-seed0", "each_site_alone-seed0", "entropy-seed0", "random-seed0", "random_fg-seed0"]
    runs = {name: record.read(out / "runs" / name / "record.json") for name in names}
    assert all(ran is not None for ran in runs.values())
    entropy, random = runs["entropy-seed0"], runs["random-seed0"]
    assert entropy is not None
    assert random is not None
    assert [point.labels for point in entropy.points] == [point.labels for point in random.points]
    assert entropy.points[0].test == random.points[0].test, "the first request is the same, and so is all that follows from it"
    assert entropy.points[0].test.keys() == {patient for ran in runs.values() if ran for patient in ran.points[-1].test}
    whole = runs["all_labels-seed0"]
    assert whole is not None
    assert whole.points[-1].foreground == 1.0
    alone = runs["each_site_alone-seed0"]
    assert alone is not None
    assert [point.bytes for point in alone.points] == [0, 0], "who trains alone sends nothing"
    assert entropy.points[-1].bytes > entropy.points[0].bytes > 0
    assert whole.points[-1].minutes > entropy.points[-1].minutes > entropy.points[0].minutes > 0

    page = (out / "compare.html").read_text()
    assert "complete" in page
    assert "entropy" in page
    arms = {"random", "random_fg", "entropy", "all labels", "each site alone"}
    tables = {name: rows_of(out / f"{name}.csv") for name in ("compare", "compare_runs", "compare_pairs")}
    assert {row["strategy"] for row in tables["compare"]} == {row["strategy"] for row in tables["compare_runs"]} == arms
    told = {row["strategy"]: row for row in tables["compare"]}["entropy"]
    last = [row for row in tables["compare_runs"] if row["strategy"] == "entropy"][-1]
    assert told["final_dice"] == last["dice_test"]
    assert (told["aubc"], told["aubc_validation"]) == (last["aubc_test"], last["aubc_validation"])
    assert f"{float(told['aubc']):.3f} <" in page, "the page and the table tell the same"
    assert len(tables["compare_pairs"]) == 2 * 10
    assert {row["over"] for row in tables["compare_pairs"]} == {"labels", "minutes"}

    def no_more(*_: object, **__: object) -> None:
        raise AssertionError("everything was there")

    monkeypatch.setattr("simulation.compare.run.start", no_more)
    compare(config, slow, queries=["entropy"], seeds=[0], out=out)
    assert (out / "compare.html").read_text() == page

    kept = tmp_path / "kept"
    kept.mkdir()
    for path in (out / "runs").glob("*/record.json"):
        path.rename(kept / f"{path.parent.name}.json")
    compare(config, slow, queries=["entropy"], seeds=[0], out=tmp_path / "elsewhere", records=kept)
    assert (tmp_path / "elsewhere" / "compare.csv").read_text() == (out / "compare.csv").read_text()

    with pytest.raises(RunFolderError, match=r"random, seed 0 has been run with network\.dropout = 0\.0, and would not be now"):
        compare(config, slow, queries=["entropy", "bald"], seeds=[0], out=out, records=kept)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_comparison_of_folds_goes_on_after_a_kill_and_has_tested_every_patient(
    tiny_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its fourth run of eight, between two federations of one site each; no part that had ended is begun again."""
    config, out = tiny_config(cycles=1, rounds_per_cycle=1, local_steps=1), tmp_path / "compare"
    started: list[Path] = []

    def begin(folder: Path, names: list[str], *, engine: str, shown: Progress) -> None:
        if len(started) == 4:
            started.append(folder)
            raise KeyboardInterrupt
        started.append(folder)
        start(folder, names, engine=engine, shown=shown)

    monkeypatch.setattr("simulation.compare.run.start", begin)
    with pytest.raises(SystemExit):
        compare(config, ["split.folds=2"], queries=[], seeds=[0], out=out)
    first = list(started)
    assert len(list((out / "runs").glob("*/record.json"))) == 3
    compare(config, ["split.folds=2"], queries=[], seeds=[0], out=out)
    assert len(list((out / "runs").glob("*/record.json"))) == 8
    assert not {*first[:3]} & {*started[5:]}, "runs that had ended stay"
    tested = [record.read(out / "runs" / f"random-seed0-fold{fold}" / "record.json") for fold in (0, 1)]
    patients = [{*ran.points[-1].test} for ran in tested if ran is not None]
    assert not patients[0] & patients[1]
    assert len(patients[0] | patients[1]) == 15
    page = (out / "compare.html").read_text()
    assert "complete" in page
    assert "<dt>Folds</dt><dd>2</dd>" in page


def test_a_run_that_another_process_is_at_is_left_to_it(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    config, out = tiny_config(cycles=1, rounds_per_cycle=1, local_steps=1), tmp_path / "compare"
    compare(config, [], queries=[], seeds=[], out=out)
    with locked(out / "runs" / "random-seed0"):
        compare(config, [], queries=[], seeds=[0], out=out)
    names = {path.parent.name for path in (out / "runs").glob("*/record.json")}
    assert names == {"random_fg-seed0", "all_labels-seed0", "each_site_alone-seed0"}
    assert "3 of 4 runs" in (out / "compare.html").read_text()
    compare(config, [], queries=[], seeds=[0], out=out)
    assert "complete" in (out / "compare.html").read_text()


def test_a_run_that_was_begun_with_another_network_is_begun_anew(
    tiny_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its first steps; then bald is asked for too, which needs dropout in all arms."""
    config, out = tiny_config(cycles=2, rounds_per_cycle=1, local_steps=1), tmp_path / "compare"

    def killed(folder: Path, names: list[str], *, engine: str, shown: Progress) -> None:
        start(folder, names, engine=engine, shown=shown)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("simulation.compare.run.start", killed)
        with pytest.raises(SystemExit):
            compare(config, [], queries=[], seeds=[0], out=out)
    (folder,) = (out / "runs").glob("random-seed0/all")
    assert load(folder / "config.toml").network.dropout == 0
    compare(config, [], queries=["bald"], seeds=[0], out=out)
    assert load(folder / "config.toml").network.dropout > 0
    ended = record.read(out / "runs" / "random-seed0" / "record.json")
    other = record.read(out / "runs" / "random_fg-seed0" / "record.json")
    assert ended is not None
    assert other is not None
    assert ended.points[0].test == other.points[0].test, "the same network, the same first request"


def test_runs_of_another_network_that_another_process_made_meanwhile_are_not_mixed_in(
    tiny_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first run goes on somebody starts the same comparison with bald, which needs dropout in all arms."""
    config, out = tiny_config(cycles=2, rounds_per_cycle=1, local_steps=1), tmp_path / "compare"
    begun: list[Path] = []

    def begin(folder: Path, names: list[str], *, engine: str, shown: Progress) -> None:
        begun.append(folder)
        if len(begun) == 1:
            compare(config, [], queries=["bald"], seeds=[0], out=out)
        start(folder, names, engine=engine, shown=shown)

    monkeypatch.setattr("simulation.compare.run.start", begin)
    with pytest.raises(
        RunFolderError, match=r"random_fg, seed 0 has been run with network\.dropout = 0\.1, and would not be now"
    ):
        compare(config, [], queries=[], seeds=[0], out=out)


def test_a_run_that_was_half_deleted_is_no_run_that_has_ended(
    tiny_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while a run of another network is deleted, whatever of it goes first: here its configuration."""
    config, out = tiny_config(cycles=2, rounds_per_cycle=1, local_steps=1), tmp_path / "compare"
    deleted: list[Path] = []

    def killed(folder: Path, names: list[str], *, engine: str, shown: Progress) -> None:
        start(folder, names, engine=engine, shown=shown)
        raise KeyboardInterrupt

    def half(folder: Path) -> None:
        deleted.append(folder)
        (folder / "config.toml").unlink()
        raise KeyboardInterrupt

    def begin(folder: Path, names: list[str], *, engine: str, shown: Progress) -> None:
        assert not (folder / "history.jsonl").exists(), "of the run that was deleted"
        raise KeyboardInterrupt

    for name, instead in (("start", killed), ("remove", half), ("start", begin)):
        with monkeypatch.context() as patch:
            patch.setattr(f"simulation.compare.run.{name}", instead)
            with pytest.raises(SystemExit):
                compare(config, [], queries=["bald"] if instead is not killed else [], seeds=[0], out=out)
    assert len(deleted) == 1
    assert not list((out / "runs").glob("*/*.old")), "what is left of it goes with the next start"


def test_a_run_that_can_not_go_on_leaves_the_others_their_page(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    """Experts are so slow that a site alone has no label when its first round begins."""
    config, out = tiny_config(cycles=2, rounds_per_cycle=1, local_steps=1), tmp_path / "compare"
    told = (
        r"(?s)^1 run stopped short and is missing from the page:\neach site alone, seed 0 \(.*each_site_alone-seed0\): train: "
        r"0 of 1.*go on with the same command.*federation\.deadline_polls"
    )
    for _ in range(2):
        with pytest.raises(FederationFault, match=told):
            compare(config, ["experts.delay=30"], queries=[], seeds=[0], out=out)
        page = (out / "compare.html").read_text()
        assert "3 of 4 runs" in page
        assert "Stopped short, with too few sites that could answer: each site alone, seed 0 (" in page
        assert "Sites had faults" not in page, "to wait for an expert is none"
    whole = record.read(out / "runs" / "all_labels-seed0" / "record.json")
    assert whole is not None
    assert whole.points[-1].foreground == 1.0, "with all labels experts answer at once"


@pytest.mark.parametrize("rule", ["fixed", "proportional"])
def test_a_site_alone_asks_for_as_many_as_among_the_others(rule: str, tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    config, out = tiny_config(cycles=3, rounds_per_cycle=1, local_steps=1), tmp_path / "compare"
    sizes = [f"budget.rule={rule}", "budget.per_cycle=3", "split.sites=size", "split.count=3"]
    compare(config, sizes, queries=[], seeds=[0], out=out)
    stores = {arm: (out / "runs").glob(f"{arm}-seed0/*/sites/*/site.db") for arm in ("random", "each_site_alone")}
    labels = {arm: {path.parent.name: Store.at(path).counts()["labelled"] for path in of} for arm, of in stores.items()}
    assert labels["each_site_alone"] == labels["random"]
    assert (len(set(labels["random"].values())) == 1) is (rule == "fixed")


def test_unknown_strategies_are_told_at_once(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    asked = ["entorpy", "marign", "entropy@mine", "typiclust@local", "kafal+cap@local", "logo@both"]
    models = "global, local, both, switch.*asks no model.*asks both models.*asks the federation's model and one of its own"
    with pytest.raises(ConfigError, match=rf"(?s)entorpy.*marign.*entropy@mine.*{models}"):
        compare(tiny_config(), [], queries=asked, seeds=[0], out=tmp_path / "c")


def test_strategies_that_never_choose_are_not_compared(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    """After the last cycle no label is bought; a first request is chosen before any, unless sites name its cases themselves."""
    idle = r"entropy, coreset: no strategy ever chooses here, with federation\.cycles = 1 and budget\.per_cycle = 2"
    once, none = tiny_config(cycles=1), ["budget.per_cycle=2"]
    with pytest.raises(ConfigError, match=idle):
        compare(once, none, queries=["entropy", "typiclust", "coreset"], seeds=[0], out=tmp_path / "c")
    assert arms_of(once, none, ["typiclust"])
    with pytest.raises(ConfigError, match=r"typiclust: no strategy ever chooses"):
        arms_of(once, [*none, "split.start=foreground"], ["typiclust"])
    with pytest.raises(ConfigError, match=r"random\+cap, typiclust\+cap: no strategy ever chooses"):
        arms_of(once, none, ["random+cap", "typiclust+cap"])
    with pytest.raises(ConfigError, match=r"budget\.per_cycle = 0"):
        arms_of(tiny_config(cycles=3), ["budget.per_cycle=0"], ["entropy"])


def test_arms_whose_scores_can_not_be_weighed_have_equal_budgets(tiny_config: Callable[..., Path]) -> None:
    adaptive = ["budget.rule=adaptive", "query.strategy=entropy"]
    asked = ["entropy", "entropy@local", "margin@both", "bald@switch", "coreset", "clasp_pe", "feal+power", "kafal", "logo"]
    rules = {
        arm.name: run_of(tiny_config(), adaptive, arm, seed=0).budget.rule for arm in arms_of(tiny_config(), adaptive, asked)
    }
    assert {name for name, rule in rules.items() if rule == "adaptive"} == {"entropy", "clasp_pe", "logo"}


def test_chance_chooses_the_first_request_of_all_baselines(tiny_config: Callable[..., Path]) -> None:
    first = ["query.cold_start=typiclust"]
    runs = {arm.name: run_of(tiny_config(), first, arm, seed=0) for arm in arms_of(tiny_config(), first, ["entropy"])}
    assert {name for name, run in runs.items() if run.query.cold_start == "random"} == {"random", "all labels", "each site alone"}


def test_no_arm_chooses_a_first_request_that_sites_name_themselves(tiny_config: Callable[..., Path]) -> None:
    named = ["split.start=foreground"]
    arms = arms_of(tiny_config(), named, ["typiclust"])
    assert {run_of(tiny_config(), named, arm, seed=0).query.cold_start for arm in arms} == {"random"}


def test_arms_have_what_their_strategy_needs(tiny_config: Callable[..., Path]) -> None:
    arms = {arm.name: arm for arm in arms_of(tiny_config(), [], ["bald@both", "feal+cap", "typiclust", "random"])}
    assert list(arms) == [
        *("random", "random_fg", "bald@both", "feal+cap", "typiclust"),
        *("random_fg, evidential", "all labels", "each site alone"),
    ]
    runs = {name: run_of(tiny_config(), [], arm, seed=4) for name, arm in arms.items()}
    assert all(run.seed == 4 and run.network.dropout > 0 and run.federation.restart == "initial" for run in runs.values())
    heads = {name for name, run in runs.items() if run.network.head == "evidential"}
    assert heads == {"feal+cap", "random_fg, evidential"}
    assert (runs["bald@both"].query.strategy, runs["bald@both"].query.model) == ("bald", "both")
    assert {name: run.query.cold_start for name, run in runs.items() if run.query.cold_start != "random"} == {
        "typiclust": "typiclust"
    }


def test_sites_are_coordinated_in_the_arms_that_can_be(tiny_config: Callable[..., Path]) -> None:
    together = ["budget.rule=coordinated", "query.strategy=typiclust"]
    arms = arms_of(tiny_config(), together, ["typiclust", "entropy"])
    rules = {arm.name: run_of(tiny_config(), together, arm, seed=0).budget.rule for arm in arms}
    assert rules.pop("typiclust") == "coordinated"
    assert set(rules.values()) == {"fixed"}


@pytest.mark.parametrize("also", [[], ["split.test_fraction=0.2"]], ids=["data", "data and a setting"])
def test_a_configuration_that_failed_before_any_run_leaves_its_folder_to_the_next(
    tiny_config: Callable[..., Path], tmp_path: Path, also: list[str]
) -> None:
    config, out = tiny_config(cycles=1, rounds_per_cycle=1, local_steps=1), tmp_path / "compare"
    with pytest.raises(FormatError, match="nowhere"):
        compare(config, [f"data.root={tmp_path / 'nowhere'}", *also], queries=[], seeds=[0], out=out)
    compare(config, [], queries=[], seeds=[0], out=out)
    with pytest.raises(RunFolderError, match=r"another configuration \(train.local_steps = 1\): choose"):
        compare(config, ["train.local_steps=2"], queries=[], seeds=[0], out=out)
    compare(config, ["query.strategy=margin", "seed=4"], queries=[], seeds=[0], out=out)  # every run has its own


def test_a_strategy_that_was_changed_since_is_not_mixed_with_what_it_was(
    tiny_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = tiny_config(cycles=1, rounds_per_cycle=1, local_steps=1), tmp_path / "compare"
    compare(config, [], queries=["typiclust"], seeds=[0], out=out)
    was = record._file_of
    source = was(load(config, ["query.strategy=typiclust"])).read_text()
    for text, other in ((source + "\n\n# a remark\n", False), (source + "\nMORE = 1\n", True)):
        (tmp_path / "typiclust.py").write_text(text)
        with monkeypatch.context() as patch:
            patch.setattr(record, "_file_of", lambda run: tmp_path / was(run).name if "typi" in run.query.strategy else was(run))
            if other:
                with pytest.raises(RunFolderError, match=r"typiclust, seed 0 has been run with another .*typiclust\.py"):
                    compare(config, [], queries=["typiclust"], seeds=[0], out=out)
                compare(config, [], queries=[], seeds=[0], out=out)  # the others are what they were
            else:
                compare(config, [], queries=["typiclust"], seeds=[0], out=out)


def test_what_was_run_so_far_is_told_when_it_is_stopped(
    tiny_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = tiny_config(cycles=1, rounds_per_cycle=1, local_steps=1), tmp_path / "compare"

    def begin(folder: Path, names: list[str], *, engine: str, shown: Progress) -> None:
        if "all_labels" in str(folder):
            raise KeyboardInterrupt
        start(folder, names, engine=engine, shown=shown)

    monkeypatch.setattr("simulation.compare.run.start", begin)
    with pytest.raises(SystemExit):
        compare(config, [], queries=[], seeds=[0], out=out)
    assert "2 of 4 runs" in (out / "compare.html").read_text()
    assert "Comparison (2 of 4 runs so far)" in capsys.readouterr().err


def test_a_model_that_is_the_configurations_own_makes_no_second_arm(tiny_config: Callable[..., Path]) -> None:
    names = [arm.name for arm in arms_of(tiny_config(), [], ["entropy", "entropy@global", "margin@both"])]
    assert names[:4] == ["random", "random_fg", "entropy", "margin@both"]
    names = [arm.name for arm in arms_of(tiny_config(), ["query.model=both"], ["entropy@both", "entropy@global"])]
    assert names[2:4] == ["entropy", "entropy@global"]


def test_another_comparison_is_not_mixed_in(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "something").write_text("")
    with pytest.raises(RunFolderError, match="holds no comparison"):
        compare(tiny_config(), [], queries=[], seeds=[0], out=tmp_path / "c")
