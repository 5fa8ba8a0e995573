"""Embeddings on disk: computed once, never wrong, whatever happened to the files or to the images."""

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client.sam import Sam
from client.sam_cache import EmbeddingCache, content_hash
from configs.files import StorageFault
from strategies.sam_parts import SIZES, Parts


class CountingSam(Sam):
    """A SAM of the small size whose encoder is a mean over patches, and which counts the images that it embeds."""

    def __init__(self, fingerprint: str = "f" * 64) -> None:
        with torch.device("meta"):
            parts = Parts(SIZES["small"])
        self.parts, self.size, self.name = parts, SIZES["small"], "small"
        self.device, self.fingerprint = torch.device("cpu"), fingerprint
        self.encoded = 0

    def encode(self, images: Tensor) -> Tensor:
        self.encoded += len(images)
        patches = torch.nn.functional.adaptive_avg_pool2d(images[:, :1], self.size.grid)
        return patches * torch.arange(1, self.size.prompt_dim + 1)[:, None, None]


class TinySam(CountingSam):
    """One whose embeddings have 256 bytes, so that thousands are made in no time."""

    @property
    def embedding_shape(self) -> tuple[int, int, int]:
        return 8, 4, 4

    def encode(self, images: Tensor) -> Tensor:
        self.encoded += len(images)
        return torch.nn.functional.adaptive_avg_pool2d(images[:, :1], 4).repeat(1, 8, 1, 1)


@pytest.fixture
def sam() -> CountingSam:
    return CountingSam()


def some_images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed))


def rows_file(folder: Path) -> Path:
    (found,) = folder.rglob("*.f16")
    return found


def index_file(folder: Path) -> Path:
    (found,) = folder.rglob("*.jsonl")
    return found


def test_each_image_is_embedded_once_also_in_another_process_life(tmp_path: Path, sam: CountingSam) -> None:
    images, keys = some_images(5), [f"case {n}" for n in range(5)]
    expected = sam.encode(images).half()
    sam.encoded = 0
    cache = EmbeddingCache(tmp_path, sam)
    assert torch.equal(cache.embeddings(keys[:3], images[:3]), expected[:3])
    assert sam.encoded == 3
    assert torch.equal(cache.embeddings(keys, images), expected)
    assert sam.encoded == 5
    later = EmbeddingCache(tmp_path, sam)
    assert len(later) == 5
    order = [4, 0, 4, 2]
    again = later.embeddings([keys[n] for n in order], images[order])
    assert torch.equal(again, expected[order])
    assert again.dtype == torch.float16
    assert sam.encoded == 5


def test_a_changed_image_is_embedded_again_and_takes_its_old_place(tmp_path: Path, sam: CountingSam) -> None:
    images = some_images(3)
    EmbeddingCache(tmp_path, sam).embeddings(["a", "b", "c"], images)
    size = rows_file(tmp_path).stat().st_size
    images[1] += torch.finfo(torch.float32).eps * (images[1] < 0.5)
    cache = EmbeddingCache(tmp_path, sam)
    assert torch.equal(cache.embeddings(["a", "b", "c"], images), sam.encode(images).half())
    assert sam.encoded == 3 + 1 + 3
    assert rows_file(tmp_path).stat().st_size == size
    assert torch.equal(EmbeddingCache(tmp_path, sam).embeddings(["b"], images[1:2]), sam.encode(images[1:2]).half())


def test_asked_rows_are_read_and_not_the_file(tmp_path: Path) -> None:
    """The embeddings of a site with many cases are larger than its memory."""
    sam = TinySam()
    images, keys = some_images(2000), [str(number) for number in range(2000)]
    EmbeddingCache(tmp_path, sam).embeddings(keys, images)
    whole = rows_file(tmp_path).stat().st_size
    cache, asked = EmbeddingCache(tmp_path, sam), [3, 1999, 1000]
    some, of_some = images[asked], [keys[number] for number in asked]
    tracemalloc.start()
    found = cache.embeddings(of_some, some)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert whole == 2000 * 256
    assert sam.encoded == 2000
    assert torch.equal(found, sam.encode(some).half())
    assert peak < whole / 10


def test_another_sam_never_sees_these_embeddings(tmp_path: Path, sam: CountingSam) -> None:
    images, other = some_images(2), CountingSam("0" * 64)
    EmbeddingCache(tmp_path, sam).embeddings(["a", "b"], images)
    EmbeddingCache(tmp_path, other).embeddings(["a", "b"], images)
    assert other.encoded == 2
    EmbeddingCache(tmp_path, sam).embeddings(["a", "b"], images)
    assert sam.encoded == 2


def _flip_a_bit(folder: Path) -> None:
    content = bytearray(rows_file(folder).read_bytes())
    content[len(content) // 2] ^= 1
    rows_file(folder).write_bytes(content)


def _cut_rows(folder: Path) -> None:
    content = rows_file(folder).read_bytes()
    rows_file(folder).write_bytes(content[: len(content) // 2])


def _tear_index(folder: Path) -> None:
    index_file(folder).write_bytes(index_file(folder).read_bytes()[:-20])


def _spoil_index(folder: Path) -> None:
    lines = index_file(folder).read_text().splitlines()
    entry = json.loads(lines[1])
    lines[1] = json.dumps(entry | {"row": -1})
    lines[2] = "\x00 not json"
    index_file(folder).write_text("\n".join(lines) + "\n")


def _swap_rows(folder: Path) -> None:
    lines = [json.loads(line) for line in index_file(folder).read_text().splitlines()]
    lines[0]["row"], lines[1]["row"] = lines[1]["row"], lines[0]["row"]
    index_file(folder).write_text("".join(json.dumps(line) + "\n" for line in lines))


def _share_a_row(folder: Path) -> None:
    _set_row(folder, line=1, row=0)


def _point_far_out(folder: Path) -> None:
    """Behind so many rows the disk would be full."""
    _set_row(folder, line=1, row=10**12)


def _set_row(folder: Path, *, line: int, row: int) -> None:
    lines = [json.loads(line) for line in index_file(folder).read_text().splitlines()]
    lines[line]["row"] = row
    index_file(folder).write_text("".join(json.dumps(line) + "\n" for line in lines))


def _lose_rows(folder: Path) -> None:
    rows_file(folder).unlink()


def _lose_index(folder: Path) -> None:
    index_file(folder).unlink()


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (_flip_a_bit, 1),
        (_cut_rows, 2),
        (_tear_index, 1),
        (_spoil_index, 2),
        (_swap_rows, 2),
        (_share_a_row, 1),
        (_point_far_out, 1),
        (_lose_rows, 4),
        (_lose_index, 4),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_damage_on_disk_is_seen_and_mended_never_used(tmp_path: Path, sam: CountingSam, damage: object, lost: int) -> None:
    images, keys = some_images(4), ["a", "b", "c", "d"]
    EmbeddingCache(tmp_path, sam).embeddings(keys, images)
    assert callable(damage)
    damage(tmp_path)
    expected = sam.encode(images).half()
    sam.encoded = 0
    assert torch.equal(EmbeddingCache(tmp_path, sam).embeddings(keys, images), expected)
    assert sam.encoded == lost
    sam.encoded = 0
    assert torch.equal(EmbeddingCache(tmp_path, sam).embeddings(keys, images), expected)
    assert sam.encoded == 0


def test_rows_cut_off_under_an_open_cache_are_seen_too(tmp_path: Path, sam: CountingSam) -> None:
    """Reading a mapped page that is gone would end the process with a bus error."""
    images, keys = some_images(4), ["a", "b", "c", "d"]
    cache = EmbeddingCache(tmp_path, sam)
    cache.embeddings(keys, images)
    cache.embeddings(keys, images)
    rows_file(tmp_path).write_bytes(b"")
    assert torch.equal(cache.embeddings(keys, images), sam.encode(images).half())


def test_two_caches_that_write_in_turn_do_not_write_over_each_other(tmp_path: Path, sam: CountingSam) -> None:
    images = some_images(6)
    one, other = EmbeddingCache(tmp_path, sam), EmbeddingCache(tmp_path, sam)
    for n in range(6):
        (one if n % 2 else other).embeddings([f"{n}"], images[n : n + 1])
    sam.encoded = 0
    keys = [f"{n}" for n in range(6)]
    assert torch.equal(EmbeddingCache(tmp_path, sam).embeddings(keys, images), sam.encode(images).half())
    assert sam.encoded == 6  # those of the comparison alone


class _Killed(BaseException):
    """Ends the work at the line that it is raised in, as a kill does."""


@pytest.mark.parametrize("at", [1, 2], ids=["after the rows", "after the index"])
def test_a_process_killed_while_writing_leaves_a_cache_that_works(
    tmp_path: Path, sam: CountingSam, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    images, flushes = some_images(4), []

    def die(handle: int) -> None:
        flushes.append(handle)
        if len(flushes) == at:
            raise _Killed

    cache = EmbeddingCache(tmp_path, sam)
    cache.embeddings(["a", "b"], images[:2])
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", die)
        with pytest.raises(_Killed):
            cache.embeddings(["c", "d"], images[2:])
    later = EmbeddingCache(tmp_path, sam)
    assert len(later) == 2 * at
    assert torch.equal(later.embeddings(["a", "b", "c", "d"], images), sam.encode(images).half())
    assert len(EmbeddingCache(tmp_path, sam)) == 4


def test_a_function_is_asked_for_what_is_missing_only_and_needs_hashes(tmp_path: Path, sam: CountingSam) -> None:
    images, keys, asked = some_images(4), ["a", "b", "c", "d"], []
    hashes = [content_hash(image) for image in images]

    def load(places: Sequence[int]) -> Tensor:
        asked.append(list(places))
        return images[list(places)]

    cache = EmbeddingCache(tmp_path, sam)
    cache.embeddings(keys[1:3], images[1:3])
    assert torch.equal(cache.embeddings(keys, load, hashes=hashes), sam.encode(images).half())
    assert asked == [[0, 3]]
    with pytest.raises(ValueError, match="hashes"):
        cache.embeddings(keys, load)
    with pytest.raises(ValueError, match="one image"):
        cache.embeddings(keys, images[:2])


def test_ten_thousand_images_of_the_small_sam_fit_in_one_and_a_half_gigabytes(tmp_path: Path, sam: CountingSam) -> None:
    cache = EmbeddingCache(tmp_path, sam)
    cache.embeddings([f"{'0' * 16}.{'1' * 16}.{n:04d}" for n in range(10)], some_images(10))
    used = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert used / 10 * 10_000 < 1.5e9


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, sam: CountingSam) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(StorageFault, match=str(tmp_path)):
        EmbeddingCache(tmp_path / "cache", sam)


def test_nothing_asked_is_nothing_given(tmp_path: Path, sam: CountingSam) -> None:
    assert EmbeddingCache(tmp_path, sam).embeddings([], some_images(0)).shape == (0, *sam.embedding_shape)
