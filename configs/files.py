"""Files that survive a kill: written whole or not at all. And a lock that keeps two processes out of one folder."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()


class FolderInUse(RuntimeError):
    """Another process holds the folder's lock."""


class StorageFault(OSError):
    """The disk is full, read-only or not writable for us; the message says which file and what to do."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically: temporary file beside it, fsync, rename, fsync of the folder.

    After a kill at any line `path` holds either what it held before or all of `content`.

    Raises:
        StorageFault: the file can't be written; names the file, the reason and the remedy.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            os.fchmod(handle, 0o666 & ~_UMASK)  # mkstemp is for the owner alone; a worklist is for colleagues too
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StorageFault(error.errno, _advice(path, error)) from error


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


@contextlib.contextmanager
def locked(folder: Path, *, remedy: str = "wait for it to end, or choose another folder") -> Iterator[None]:
    """Hold the folder's lock; the lock goes with the process, so a killed one leaves nothing to clean up.

    Raises:
        FolderInUse: another process holds it.
        StorageFault: the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderInUse(f"{folder} is in use by another wardround process: {remedy}") from None
    except OSError as error:
        raise StorageFault(error.errno, _advice(folder, error)) from error
    try:
        yield
    finally:
        lock.release()


def _advice(path: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"cannot write {path}: the disk is full. Free some space, then go on with --resume; nothing written so far is lost"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"cannot write {path}: {error.strerror}. Choose a folder that you may write to (--out)"
    return f"cannot write {path}: {error.strerror or error}"
