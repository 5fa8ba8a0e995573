"""Makes `import torchvision` work beside a torch that its compiled operators do not match.

torchvision's wheels on the package registry are CUDA builds. Beside a CPU-only torch their C++ library does not load,
and `import torchvision` stops with "operator torchvision::nms does not exist", because it attaches shape functions to
`nms` and `qnms` without asking whether they are there. Neither segment-anything (resizing) nor MONAI (as used here)
calls them, so the
two missing schemas are declared, and only when they are missing: a matching pair of torch and torchvision is left
alone.

Import this module before anything that imports torchvision (segment-anything, MONAI): `ensure()` runs at import.
"""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

import torch

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_declared: list[torch.library.Library] = []
"""torch drops a schema with the Library object that declared it, so these live as long as the process."""


def ensure() -> tuple[str, ...]:
    """Declare torchvision's operators that are missing; a second call finds them and does nothing.

    Returns:
        Names of the operators declared by this call: empty when torchvision's own library loads, or is not installed.
    """
    _load_own_library()
    missing = tuple(name for name in _OPERATORS if not hasattr(torch.ops.torchvision, name))
    for name in missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define(name + _SCHEMA)
        _declared.append(library)
    return missing


def _load_own_library() -> None:
    """Load torchvision's operators if they fit this torch: a schema declared before them would clash with theirs."""
    found = importlib.util.find_spec("torchvision")
    for folder in (found.submodule_search_locations or ()) if found else ():
        for library in sorted([*Path(folder).glob("_C*.so"), *Path(folder).glob("_C*.pyd")]):
            with contextlib.suppress(OSError):  # built for another torch: what `ensure` is there for
                torch.ops.load_library(str(library))


ensure()
