"""The two comparators that can't be left out: at random, and at random where there is something to see."""

from __future__ import annotations

import numpy as np

from strategies.query.choose import at_random, at_random_foreground
from strategies.query.reduce import predicted_pixels
from strategies.query.strategy import Columns, Seen, Strategy


def _look(seen: Seen) -> Columns:
    return {"foreground": np.asarray(predicted_pixels(seen.probabilities, seen.inside).any(axis=1))}


RANDOM = Strategy("random", at_random)
RANDOM_FG = Strategy("random_fg", at_random_foreground, look=_look)
