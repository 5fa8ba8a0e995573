"""Which checkpoints load, how they are recognised, and what a user reads when one does not."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import strategies.torchvision_ops  # noqa: F401  (before segment-anything, which imports torchvision)

from segment_anything.build_sam import build_sam_vit_b  # isort: skip
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from client.plan import Plan
from client.sam import SamUnavailable, load_sam
from client.sam_cache import EmbeddingCache
from client.sam_checkpoint import SMALL, identity, read
from client.sam_teacher import SamTeacher
from client.site import Site, Slices
from strategies.records import Weights
from strategies.sam_parts import SIZES, Parts, recognise, to_pixels
from strategies.semi.prompts import mask_prompts, prompts_from
from strategies.semi.sam_gate import gate
from strategies.semi.sam_target import sam_loss, target_from


def test_the_shipped_one_is_small_and_holds_weights_alone() -> None:
    assert SMALL.stat().st_size <= 8_000_000
    size, state = read(SMALL)
    assert size == "small"
    assert sum(tensor.numel() for tensor in state.values()) < 1_500_000


def test_a_sam_is_known_by_its_file_s_content_and_how_that_is_read(tmp_path: Path) -> None:
    copy, changed, medsam = (tmp_path / name for name in ("copy.safetensors", "changed.safetensors", "medsam_like.safetensors"))
    shutil.copy(SMALL, copy)
    shutil.copy(SMALL, medsam)
    changed.write_bytes(SMALL.read_bytes()[:-1] + b"!")
    assert identity("small") == identity(str(copy)) != identity(str(changed))
    assert identity(str(medsam)) not in (identity("small"), identity(str(changed)))
    with pytest.raises(SamUnavailable, match="gone"):
        identity(str(tmp_path / "gone.pth"))


@pytest.mark.parametrize("name", list(SIZES))
def test_every_size_is_recognised_by_its_shapes_alone_and_only_when_whole(name: str) -> None:
    with torch.device("meta"):
        state = Parts(SIZES[name]).state_dict()
    assert recognise(state) == name
    key = "mask_decoder.iou_token.weight"
    assert recognise({k: v for k, v in state.items() if k != key}) is None
    assert recognise({**state, "extra": state[key]}) is None
    assert recognise({**state, key: torch.empty(2, 3, device="meta")}) is None


def test_an_official_vit_b_loads_by_its_path_and_answers_about_a_small_image(
    joined: Callable[..., tuple[Site, Plan, Weights]], tmp_path: Path
) -> None:
    """Random weights, saved as the official file is: a state dictionary through torch.save."""
    path = tmp_path / "sam_vit_b_01ec64.pth"
    torch.manual_seed(0)
    official = build_sam_vit_b()  # type: ignore[no-untyped-call]
    torch.save(official.state_dict(), path)
    sam = load_sam(str(path), device="cpu")
    assert sam.name == "vit_b"
    assert sam.embedding_shape == (256, 64, 64)
    assert all(torch.equal(value, sam.parts.state_dict()[key]) for key, value in official.state_dict().items())
    for parts in (sam.parts, official):  # a windowed block and a global one: the rest is more of both
        parts.image_encoder.blocks = parts.image_encoder.blocks[1:3]
    image = torch.rand(1, 1, 64, 64)
    pixels = to_pixels(image, sam.size)
    assert pixels.shape == (1, 3, 1024, 1024)
    large = F.interpolate(image, size=(1024, 1024), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
    assert torch.allclose(pixels, official.preprocess(255 * large), atol=1e-4), "normalised as the official model does"

    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[20:40, 10:50] = True
    probs = torch.stack([~mask, mask]).float()[None]
    prompts = prompts_from(probs)
    cache = EmbeddingCache(tmp_path / "cache", sam)
    computed = cache.embeddings(["case"], image)
    kept = EmbeddingCache(tmp_path / "cache", sam).embeddings(["case"], image)
    assert computed.shape == (1, 256, 64, 64)
    assert computed.dtype == torch.float16
    with torch.no_grad():
        assert torch.allclose(computed.float(), official.image_encoder(official.preprocess(255 * large)), atol=2e-2)
    assert torch.equal(computed, kept)
    assert cache.folder.joinpath("embeddings.f16").stat().st_size == 2 * 256 * 64 * 64
    logits, iou = sam.decode(kept, prompts, size=(64, 64), mask_logits=mask_prompts(prompts, probs))
    assert logits.shape == (1, 64, 64)
    assert logits.isfinite().all()
    assert iou.isfinite().all()
    passed = gate(logits > 0, prompts.components, iou, min_iou=0.0, min_agreement=0.0)
    target = target_from(prompts, logits > 0, passed, probs)
    assert sam_loss(torch.zeros(1, 2, 64, 64), target).isfinite()

    open_gate = ("sam.enabled=true", "sam.min_iou=0.0", "sam.min_agreement=0.0", "sam.trust=false")
    site, plan, _ = joined(*open_gate, f"sam.checkpoint={path}", labels=0)
    slices = Slices(site, plan.preprocess)
    sam.parts.image_encoder.blocks = sam.parts.image_encoder.blocks[:1]  # the global one took most of the time
    teacher = SamTeacher(site, plan, (1, 1), adapter={}, cycle_adapter=None, slices=slices, specialists=[])
    cases = site.store.cases("unlabelled")[:1]
    seen = torch.zeros(1, 3, 32, 32)
    seen[:, 0], seen[:, 1, 4:20, 4:20] = 0.1, 0.9
    said = teacher.target(cases, slices.take(cases), seen / seen.sum(1, keepdim=True))
    assert said.classes.shape == (1, 32, 32)
    assert (said.weight > 0).any(), "as a site asks it in a round"


def test_medsam_is_given_images_of_its_own_scale_by_the_name_of_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = Parts(SIZES["small"])
    plain, medsam = tmp_path / "sam_like.pth", tmp_path / "MedSAM_like.pth"
    torch.save(parts.state_dict(), plain)
    shutil.copy(plain, medsam)  # the very same bytes: torch writes a file's name into it
    of_plain, of_medsam = (load_sam(str(path), device="cpu") for path in (plain, medsam))
    assert of_plain.fingerprint != of_medsam.fingerprint
    images = torch.rand(2, 1, 96, 96)
    with torch.no_grad():
        expected = parts.eval().image_encoder(images.expand(-1, 3, -1, -1))
        found = of_medsam.parts.image_encoder(to_pixels(images, SIZES["small"]))
        other = of_plain.parts.image_encoder(to_pixels(images, SIZES["small"]))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(other, expected, atol=0.1)


@pytest.mark.parametrize("wrap", ["model", "state_dict", "module"])
def test_checkpoints_of_training_runs_are_unwrapped(tmp_path: Path, wrap: str) -> None:
    state = load_file(SMALL)
    content = {f"module.{k}": v for k, v in state.items()} if wrap == "module" else {wrap: state, "epoch": 3}
    path = tmp_path / "run.pth"
    torch.save(content, path)
    size, again = read(path)
    assert size == "small"
    assert all(torch.equal(again[key], value) for key, value in state.items())


class _Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code from a checkpoint ran",))


def _spoiled(folder: Path, how: str) -> Path:
    path = folder / ("weights.safetensors" if how.startswith("safetensors") else "weights.pth")
    state = load_file(SMALL)
    if how == "folder":
        path.mkdir()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("<html>404 not found</html>")
    elif how == "truncated":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif how == "code":
        path.write_bytes(pickle.dumps({"a": _Malicious()}))
    elif how == "safetensors truncated":
        shutil.copy(SMALL, path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif how == "safetensors of another model":
        save_file({"layer.weight": torch.zeros(3, 3)}, path)
    elif how == "a number":
        torch.save(3, path)
    elif how == "part of a SAM":
        torch.save({k: v for k, v in state.items() if k.startswith("image_encoder")}, path)
    elif how == "not finite":
        state["mask_decoder.iou_token.weight"][0, 0] = torch.nan
        torch.save(state, path)
    return path


@pytest.mark.parametrize(
    "how",
    [
        "missing",
        "folder",
        "empty",
        "text",
        "truncated",
        "code",
        "safetensors truncated",
        "safetensors of another model",
        "a number",
        "part of a SAM",
        "not finite",
    ],
)
def test_what_is_no_checkpoint_is_named_in_a_sentence_with_the_remedy(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _spoiled(tmp_path, how)
    with pytest.raises(SamUnavailable) as caught:
        load_sam(str(path), device="cpu")
    message = str(caught.value)
    assert str(path) in message
    for remedy in ("sam_checkpoint", "site.toml", "sam_vit_b_01ec64.pth", '"small"'):
        assert remedy in message
    assert "\n" not in message
    assert "ran" not in capsys.readouterr().out


def test_it_is_read_once_while_its_file_is_the_same_and_anew_when_it_is_not(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    shutil.copy(SMALL, path)
    small = load_sam("small", device="cpu").fingerprint
    first = load_sam(str(path), device="cpu")  # the last that is loaded before its file changes: one is kept
    assert load_sam(str(path), device="cpu") is first
    assert first.fingerprint == small
    state = load_file(SMALL)
    state["mask_decoder.iou_token.weight"] += 0.5
    save_file(state, path)
    second = load_sam(str(path), device="cpu")
    assert second is not first
    assert second.fingerprint != first.fingerprint


def test_embeddings_of_another_preprocessing_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same checkpoint, but images reach it otherwise: what an earlier version kept is wrong."""
    path = tmp_path / "own.safetensors"
    shutil.copy(SMALL, path)
    before = load_sam("small", device="cpu")
    monkeypatch.setattr("client.sam.to_pixels", lambda images, size: 0.99 * to_pixels(images, size))
    after = load_sam(str(path), device="cpu")
    assert after.fingerprint != before.fingerprint
    assert EmbeddingCache(tmp_path, after).folder != EmbeddingCache(tmp_path, before).folder
