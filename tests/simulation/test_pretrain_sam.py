"""Pre-training: a killed run resumes to the same weights, the result loads, and every refusal says what to do."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from client.sam import load_sam
from client.sam_parts import SIZES, Parts
from configs.files import StorageFault
from simulation.pretrain_sam import main, pretrain


def test_a_run_that_was_killed_resumes_to_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    def run(out: Path, *, stop: int | None = None, resume: bool = False) -> list[int]:
        steps = []
        for now in pretrain(out, steps=4, seed=3, batch=2, resume=resume, every=1, save_every=2):
            steps.append(now.step)
            if now.step == stop:
                break
        return steps

    assert run(tmp_path / "whole.safetensors") == [1, 2, 3, 4]
    assert run(tmp_path / "killed.safetensors", stop=3) == [1, 2, 3]
    assert run(tmp_path / "killed.safetensors", resume=True) == [3, 4]
    whole, killed = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "killed.safetensors")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["killed.safetensors", "whole.safetensors"]
    assert load_sam(str(tmp_path / "whole.safetensors"), device="cpu").size == "small"
    torch.manual_seed(3)
    start = Parts(SIZES["small"]).state_dict()
    changed = [name for name in whole if not torch.equal(whole[name], start[name])]
    assert any(name.startswith("image_encoder") for name in changed)
    assert any(name.startswith("mask_decoder") for name in changed)


def test_a_run_killed_while_it_was_calibrated_goes_on_there(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    assert [now.step for now in pretrain(whole, steps=2, batch=1, every=2)] == [2]
    next(iter(pretrain(killed, steps=2, batch=1, every=2)))
    before = load_file(killed)
    assert list(pretrain(killed, steps=2, batch=1, every=2, resume=True)) == []
    after = load_file(killed)
    assert all(torch.equal(value, load_file(whole)[name]) for name, value in after.items())
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("mask_decoder.iou_prediction_head.") for name in changed)


def test_resuming_says_what_is_missing_or_does_not_fit(tmp_path: Path) -> None:
    out = tmp_path / "sam.safetensors"
    with pytest.raises(ValueError, match=r"sam\.safetensors\.checkpoint does not exist.*without --resume"):
        next(iter(pretrain(out, steps=2, resume=True)))
    run = pretrain(out, steps=4, batch=2, every=1, save_every=1)
    next(iter(run))
    with pytest.raises(ValueError, match="same numbers"):
        next(iter(pretrain(out, steps=5, batch=2, resume=True)))
    out.with_name(out.name + ".checkpoint").write_bytes(b"torn")
    with pytest.raises(ValueError, match="not a checkpoint"):
        next(iter(pretrain(out, steps=4, batch=2, resume=True)))


@pytest.mark.parametrize(("steps", "batch"), [(0, 1), (1, 0)])
def test_numbers_that_make_no_sense_are_refused(tmp_path: Path, steps: int, batch: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        next(iter(pretrain(tmp_path / "sam.safetensors", steps=steps, batch=batch)))


def test_the_command_reports_where_it_is_and_where_the_weights_are(tmp_path: Path) -> None:
    lines: list[str] = []
    threads = torch.get_num_threads()
    main(tmp_path / "sam.safetensors", steps=1, batch=1, threads=threads, report=lines.append)
    assert lines[0].startswith("step 1/1 ")
    assert lines[-1] == f"weights in {tmp_path / 'sam.safetensors'}"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageFault, match=r"sam\.safetensors"):
        main(tmp_path / "file" / "sam.safetensors", steps=1, batch=1, threads=torch.get_num_threads(), report=lambda _: None)
