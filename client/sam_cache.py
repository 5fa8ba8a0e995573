"""Embeddings on the site's disk: a frozen encoder's answer depends on the image alone, so it is computed once per case.

One folder per SAM (its fingerprint), with two files that only grow: `embeddings.f16`, rows of equal size,
memory-mapped, and `index.jsonl`, one line per entry: key, hash of the image, row, checksum. A row is written and
flushed before the line that speaks of it, so a kill at any moment leaves at most a row that nobody knows of or a torn
line, and both are written over. An entry is used only if the image's hash is the asked one and the row's checksum is
right; else it is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from client.sam import Sam
from configs.files import StorageFault


@dataclass(frozen=True)
class _Entry:
    key: str
    image: str
    row: int
    checksum: int


def content_hash(image: Tensor) -> str:
    """What tells one image's content from another's: 128 bits over shape, type and values, as hex."""
    array = image.detach().cpu().contiguous().numpy()
    return hashlib.blake2b(f"{array.shape}{array.dtype}".encode() + array.tobytes(), digest_size=16).hexdigest()


class EmbeddingCache:
    """The embeddings of one SAM in `folder`, where other SAMs may keep theirs and other processes may write."""

    def __init__(self, folder: Path, sam: Sam) -> None:
        self._sam = sam
        self.folder = folder / sam.fingerprint[:32]
        self._rows_path, self._index_path = self.folder / "embeddings.f16", self.folder / "index.jsonl"
        self._entries: dict[str, _Entry] = {}
        self._read_to = 0  # bytes of the index that are known
        self._mapped: NDArray[np.float16] | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._refresh()
        except OSError as error:
            raise self._fault(error) from error

    def __len__(self) -> int:
        return len(self._entries)

    def embeddings(
        self,
        keys: Sequence[str],
        images: Tensor | Callable[[Sequence[int]], Tensor],
        *,
        hashes: Sequence[str] | None = None,
    ) -> Tensor:
        """Embeddings (B, channels, rows, columns), float16 on the SAM's device, of `keys` in their order.

        Those not kept yet, of an image that has changed, or damaged on disk, are computed in one batch and kept.

        Args:
            keys: B case ids.
            images: (B, 1 or 3, S, S) in [0, 1]; or a function that gives those at the asked positions, called for
                what is missing only, which needs `hashes`.
            hashes: `content_hash` of the B images; computed from `images` by default.

        Raises:
            ValueError: keys, images and hashes of different length, or a function without hashes.
            StorageFault: the folder can't be written.
        """
        if hashes is None:
            if not isinstance(images, Tensor):
                raise ValueError("images given by a function need their hashes: without, a changed image goes unseen")
            hashes = [content_hash(image) for image in images]
        if len(hashes) != len(keys):
            raise ValueError(f"{len(keys)} keys, but {len(hashes)} images: each case has one image")
        rows = [self._kept(key, image) for key, image in zip(keys, hashes, strict=True)]
        missing = [place for place, row in enumerate(rows) if row is None]
        if missing:
            chosen = images[missing] if isinstance(images, Tensor) else images(missing)
            computed = self._sam.encode(chosen).to("cpu", torch.float16).numpy()
            if len(computed) != len(missing):
                raise ValueError(f"asked for {len(missing)} images, the function gave {len(computed)}")
            self._append([keys[place] for place in missing], [hashes[place] for place in missing], computed)
            for place, row in zip(missing, computed, strict=True):
                rows[place] = row
        shape = self._sam.embedding_shape
        stacked = np.stack([row for row in rows if row is not None]) if rows else np.zeros((0, *shape), np.float16)
        return torch.from_numpy(stacked).to(self._sam.device)

    def _kept(self, key: str, image: str) -> NDArray[np.float16] | None:
        """The row of `key` if it is there, of this image, and undamaged."""
        entry = self._entries.get(key)
        if entry is None or entry.image != image:
            return None
        rows = self._rows(entry.row + 1)
        if rows is None:
            return None
        row = np.array(rows[entry.row])
        return row if zlib.crc32(row.tobytes()) == entry.checksum else None

    def _rows(self, count: int) -> NDArray[np.float16] | None:
        """The mapped file with at least `count` rows; None if it is shorter."""
        row_bytes = 2 * int(np.prod(self._sam.embedding_shape))
        whole = self._rows_path.stat().st_size // row_bytes if self._rows_path.exists() else 0
        if whole < count:
            return None  # also when rows that are mapped were cut off since: reading them would kill the process
        if self._mapped is None or len(self._mapped) < count or len(self._mapped) > whole:
            shape = (whole, *self._sam.embedding_shape)
            self._mapped = np.memmap(self._rows_path, dtype=np.float16, mode="r", shape=shape)
        return self._mapped

    def _append(self, keys: Sequence[str], hashes: Sequence[str], rows: NDArray[np.float16]) -> None:
        try:
            with FileLock(self.folder / ".lock"):
                self._refresh()  # another process may have written since
                row_bytes = rows[0].nbytes
                entries = []
                with self._rows_path.open("r+b" if self._rows_path.exists() else "x+b") as file:
                    whole = file.seek(0, os.SEEK_END) // row_bytes
                    used = Counter(entry.row for entry in self._entries.values() if entry.row < whole)
                    place = 1 + max(used, default=-1)
                    for key, image, row in zip(keys, hashes, rows, strict=True):
                        known = self._entries.get(key)
                        own = known is not None and used[known.row] == 1  # a damaged index may give one row to two cases
                        target = known.row if known is not None and own else place
                        place += not own
                        content = row.tobytes()
                        file.seek(target * row_bytes)
                        file.write(content)
                        entry = _Entry(key, image, target, zlib.crc32(content))
                        self._entries[key] = entry
                        entries.append(entry)
                    file.flush()
                    os.fsync(file.fileno())
                lines = "".join(json.dumps(asdict(entry)) + "\n" for entry in entries).encode()
                with self._index_path.open("r+b" if self._index_path.exists() else "x+b") as file:
                    file.seek(self._read_to)
                    file.write(lines)
                    file.truncate()
                    file.flush()
                    os.fsync(file.fileno())
                self._read_to += len(lines)
        except OSError as error:
            raise self._fault(error) from error

    def _refresh(self) -> None:
        """Take in the index's lines that are new; stop before a torn one, which the next append writes over."""
        if not self._index_path.exists():
            return
        with self._index_path.open("rb") as file:
            file.seek(self._read_to)
            content = file.read()
        for line in content.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                return
            entry = _parsed(line)
            if entry is not None:
                self._entries[entry.key] = entry
            self._read_to += len(line)

    def _fault(self, error: OSError) -> StorageFault:
        return StorageFault(
            error.errno,
            f"cannot keep SAM's embeddings in {self.folder}: {error.strerror or error}. Free some space there, or "
            "move the site's workspace to a folder that you may write to; nothing else is lost",
        )


def _parsed(line: bytes) -> _Entry | None:
    """The entry on a line of the index; None where the line is damaged: its case is then computed again."""
    try:
        entry = _Entry(**json.loads(line))
    except (ValueError, TypeError):
        return None
    texts = isinstance(entry.key, str) and isinstance(entry.image, str)
    numbers = isinstance(entry.row, int) and isinstance(entry.checksum, int)
    return entry if texts and numbers and entry.row >= 0 else None
