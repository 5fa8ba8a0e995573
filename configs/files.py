"""Files that survive a kill: written whole or not at all. And a lock that keeps two processes out of one folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()


class FolderInUse(RuntimeError):
    """Another process holds the folder's lock."""


class StorageFault(OSError):
    """The disk is full, read-only or not writable for us, or a file is damaged; the message says which and what to do."""


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


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that it holds.

    Raises:
        StorageFault: something of it can't be deleted; names it and the remedy.
    """
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        remedy = f"Make {path.parent} and all that it holds writable, or choose another folder (--out)"
        raise StorageFault(error.errno, f"cannot delete {path}: {error.strerror}. {remedy}") from error


def read_object(path: Path, *, keys: Iterable[str] = (), remedy: str) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        StorageFault: the file is no JSON object with those keys; names it and the remedy.
    """
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise StorageFault(f"{path} is damaged ({error}): {remedy}") from error
    if not isinstance(found, dict):
        raise StorageFault(f"{path} is damaged (it holds no object): {remedy}")
    lacking = [key for key in keys if key not in found]
    if lacking:
        raise StorageFault(f"{path} is damaged (it lacks {', '.join(lacking)}): {remedy}")
    return found


@contextlib.contextmanager
def locked(folder: Path, *, remedy: str = "wait for it to end, or choose another folder", wait: bool = False) -> Iterator[None]:
    """Hold the folder's lock; the lock goes with the process, so a killed one leaves nothing to clean up.

    With `wait` another process is waited for.

    Raises:
        FolderInUse: another process holds it.
        StorageFault: the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=-1 if wait else 0)
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
