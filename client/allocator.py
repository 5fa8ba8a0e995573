"""What a training step frees is kept for the next one, where the C library would hand it back to the system.

A step on a CPU takes and frees some hundred MiB in pieces of megabytes. As it comes, glibc gives such memory back at the
end of the step, and at the next one gets it anew, page by page, each page zeroed: up to a tenth of a step's time
(`benchmarks/allocator.py`). What is computed is the same.
"""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""As in glibc's malloc.h."""

KEPT_BYTES = 512 * 2**20
"""Free memory that a process keeps at most at the end of its heap."""

PADDING_BYTES = 64 * 2**20
"""By which the heap grows at a time."""

FROM_HEAP_BYTES = 32 * 2**20
"""Pieces up to this size come from the heap, larger ones from the system and back to it; glibc allows no more."""


def keep_freed_memory() -> bool:
    """Ask for it, for this process; whether it was granted.

    Not where the C library is another one (macOS, Alpine), nor where the user has set one of glibc's own MALLOC_ variables
    and so has decided about it. A second call changes nothing.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    wanted = {M_MMAP_THRESHOLD: FROM_HEAP_BYTES, M_TRIM_THRESHOLD: KEPT_BYTES, M_TOP_PAD: PADDING_BYTES}
    return all(mallopt(option, size) == 1 for option, size in wanted.items())
