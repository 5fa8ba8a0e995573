"""Pre-training: a killed run resumes to the same weights, the result loads, and every refusal says what to do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from client.sam import load_sam
from client.sam_checkpoint import path_of
from configs.files import FolderInUse, StorageFault, locked
from simulation.pretrain_recipe import PretrainFault
from simulation.pretrain_sam import pretrain, training
from strategies.sam_parts import SIZES, Parts, predict


@pytest.fixture(autouse=True)
def _short_exams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every save is marked; here on few scenes."""
    monkeypatch.setattr("simulation.sam_exam.SCENES", 4)


def test_a_run_that_was_killed_resumes_to_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    def run(out: Path, *, stop: int | None = None, resume: bool = False) -> list[int]:
        steps = []
        for now in training(out, steps=4, seed=3, batch=2, resume=resume, every=1, save_every=2):
            steps.append(now.step)
            if now.step == stop:
                break
        return steps

    assert run(tmp_path / "whole.safetensors") == [1, 2, 3, 4]
    assert run(tmp_path / "killed.safetensors", stop=3) == [1, 2, 3]
    assert run(tmp_path / "killed.safetensors", resume=True) == [3, 4]
    whole, killed = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "killed.safetensors")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("killed.png", "killed.safetensors", "whole.png", "whole.safetensors"),
    ]
    assert load_sam(str(tmp_path / "whole.safetensors"), device="cpu").name == "small"
    torch.manual_seed(3)
    start = Parts(SIZES["small"]).state_dict()
    changed = [name for name in whole if not torch.equal(whole[name], start[name])]
    assert any(name.startswith("image_encoder") for name in changed)
    assert any(name.startswith("mask_decoder") for name in changed)


def test_a_run_killed_while_it_was_calibrated_goes_on_there(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    assert [now.step for now in training(whole, steps=2, batch=1, every=2)] == [2]
    next(iter(training(killed, steps=2, batch=1, every=2)))
    before = load_file(killed)
    assert list(training(killed, steps=2, batch=1, every=2, resume=True)) == []
    after = load_file(killed)
    assert all(torch.equal(value, load_file(whole)[name]) for name, value in after.items())
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("mask_decoder.iou_prediction_head.") for name in changed)


def test_resuming_says_what_is_missing_or_does_not_fit(tmp_path: Path) -> None:
    out = tmp_path / "sam.safetensors"
    with pytest.raises(PretrainFault, match=r"sam\.safetensors\.checkpoint does not exist.*without --resume"):
        next(iter(training(out, steps=2, resume=True)))
    run = training(out, steps=4, batch=2, every=1, save_every=1)
    next(iter(run))
    with pytest.raises(PretrainFault, match="made with steps 4, not 5: resume with the same"):
        next(iter(training(out, steps=5, batch=2, resume=True)))
    out.with_name(out.name + ".checkpoint").write_bytes(b"torn")
    with pytest.raises(PretrainFault, match="damaged or is no checkpoint"):
        next(iter(training(out, steps=4, batch=2, resume=True)))


def test_a_run_starts_from_the_weights_of_another(tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    list(training(first, steps=2, batch=1, every=2))
    run = training(second, steps=2, batch=1, every=1, save_every=1, start=str(first))
    next(run)
    before, after, fresh = load_file(first), load_file(second), Parts(SIZES["small"]).state_dict()
    name = "image_encoder.blocks.0.mlp.lin1.weight"
    assert (after[name] - before[name]).abs().max() < 0.1 * (after[name] - fresh[name]).abs().max()
    assert not torch.equal(after[name], before[name])
    with pytest.raises(PretrainFault, match=r"made with start .*: resume with the same"):
        next(training(second, steps=2, batch=1, start="small", resume=True))
    torch.save(Parts(SIZES["vit_b"]).state_dict(), tmp_path / "b.pth")
    with pytest.raises(PretrainFault, match=r"b\.pth is a vit_b"):
        next(training(second, steps=2, batch=1, start=str(tmp_path / "b.pth")))
    kept = first.read_bytes()
    with pytest.raises(PretrainFault, match=r"first\.safetensors can't be both .*another --out"):
        next(training(first, steps=2, batch=1, start=str(first)))
    assert first.read_bytes() == kept


def test_without_steps_the_ratings_alone_are_trained_on_answers_as_they_are_given_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tempered = []

    def watched(*given: Any, **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
        tempered.append(how["tempered"])
        return predict(*given, **how)

    monkeypatch.setattr("simulation.pretrain_sam.RATING_STEPS", 2)
    monkeypatch.setattr("simulation.pretrain_sam.predict", watched)
    out = tmp_path / "sam.safetensors"
    assert list(training(out, steps=0, batch=1, start="small")) == []
    assert tempered == [True, True]
    before, after = load_file(path_of("small")), load_file(out)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("mask_decoder.iou_prediction_head.") for name in changed)
    tempered.clear()
    list(training(out, steps=1, batch=1))
    assert tempered == [False, True], "all else learns from the decoder's own answers"


def test_lessons_are_of_boxes_and_of_clicks_alone_and_later_of_a_mask_to_improve_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, bool, bool]] = []

    def watched(*given: Any, **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append((how["boxes"] is not None, bool((how["point_labels"] >= 0).any()), how["mask_logits"] is not None))
        return predict(*given, **how)

    monkeypatch.setattr("simulation.pretrain_sam.predict", watched)
    done = [(now.step, len(asked)) for now in training(tmp_path / "sam.safetensors", steps=20, batch=2, every=1)]
    lessons = [asked[since:until] for (_, since), (_, until) in zip([(0, 0), *done], done, strict=False)]
    assert [len(lesson) for lesson in lessons] == [1] * 14 + [2] * 6, "a second pass in the last three tenths"
    boxes = [lesson[0][0] for lesson in lessons]
    assert {True, False} == set(boxes)
    assert sum(boxes) > 10
    assert all(clicks for (box, clicks, _), *_ in lessons if not box)
    assert all(not first[2] and all(mask for _, _, mask in second) for first, *second in lessons)


def test_a_loss_that_is_not_finite_ends_the_run_and_what_was_saved_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "sam.safetensors"
    run = training(out, steps=4, batch=1, every=1, save_every=1)
    next(run)
    monkeypatch.setattr("simulation.pretrain_sam._step", lambda *_: torch.tensor([float("nan"), 0.5]))
    with pytest.raises(PretrainFault, match=r"nan in step 2.*--start .*sam\.safetensors"):
        next(run)
    assert all(value.isfinite().all() for value in load_file(out).values())


@pytest.mark.parametrize(("steps", "batch"), [(0, 1), (1, 0)])
def test_numbers_that_make_no_sense_are_refused(tmp_path: Path, steps: int, batch: int) -> None:
    with pytest.raises(PretrainFault, match="at least"):
        next(iter(training(tmp_path / "sam.safetensors", steps=steps, batch=batch)))


def test_the_command_writes_weights_and_a_log_of_what_it_reports(tmp_path: Path) -> None:
    lines: list[str] = []
    pretrain(tmp_path / "new", steps=1, batch=1, device="cpu", report=lines.append)
    assert lines[0].startswith("starting: 1 steps of 1 images")
    assert lines[1].startswith("step 1/1 ")
    assert lines[-1] == f"weights in {tmp_path / 'new' / 'small_sam.safetensors'}"
    assert (tmp_path / "new" / "log.txt").read_text().splitlines() == lines
    assert load_sam(str(tmp_path / "new" / "small_sam.safetensors"), device="cpu").name == "small"


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if line.startswith("step"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path, steps=1, batch=1, device="cpu", report=report)
    assert "--resume" in lines[-1]
    assert str(tmp_path / "small_sam.safetensors.checkpoint") in lines[-1]
    pretrain(tmp_path, steps=1, batch=1, device="cpu", resume=True, report=lines.append)
    assert lines[-1].startswith("weights in")


def test_a_folder_in_use_or_in_the_way_is_named(tmp_path: Path) -> None:
    with locked(tmp_path / "used"), pytest.raises(FolderInUse, match="used"):
        pretrain(tmp_path / "used", steps=1, batch=1)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageFault, match="file"):
        pretrain(tmp_path / "file", steps=1, batch=1)
