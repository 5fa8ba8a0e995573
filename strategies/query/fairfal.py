"""FairFAL's switch: which model scores a site's pool, the federation's or its own (CVPR 2026).

Where some classes are rare in the federation and both models find the same ones here, the global model has seen more of the
rare ones; where classes are level, or the site's own model finds others, that one knows better what is new here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

THRESHOLD = 0.75


def balance(shares: Sequence[float]) -> float:
    """γ = min_c π_c / max_c π_c of the classes, in [0, 1]: 1 where all are as frequent; 0 where nothing is known."""
    most = max(shares, default=0.0)
    return min(shares) / most if most > 0 else 0.0


def divergence(of_global: Sequence[float], of_local: Sequence[float]) -> float:
    """d = (1/C) Σ_c |π_g − π_l| / (π_g + π_l), in [0, 1]; a class that neither model finds counts 0."""
    first, second = np.asarray(of_global, dtype=np.float64), np.asarray(of_local, dtype=np.float64)
    both = first + second
    terms = np.divide(np.abs(first - second), both, out=np.zeros_like(both), where=both > 0)
    return float(terms.mean())


def global_model_scores(*, divergence: float, mean_balance: float) -> bool:
    """Whether s = 1 − ½ (d + γ̄) is above `THRESHOLD`."""
    return 1 - 0.5 * (divergence + mean_balance) > THRESHOLD
