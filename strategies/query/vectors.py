"""What several strategies do with features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def unit_length(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows (N, F) divided by their length; rows of zeros stay."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, 1e-12), dtype=np.float32)
