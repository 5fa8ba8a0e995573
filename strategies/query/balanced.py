"""Classes in turn: each choice goes to the class of which least is annotated or chosen so far."""

from __future__ import annotations

import numpy as np

from strategies.query.choose import best_first, size_of_choice
from strategies.records import Choice, Scores, Selection


def class_balanced(scores: Scores, count: int, rng: np.random.Generator, *, why: str) -> Selection:
    """The highest scores, class by class.

    How much of a class a case shows is what the model predicts in it, in pixels. Again and again the class with the fewest
    pixels, annotated ones (`scores.labelled_pixels`) and those of the choices so far together, gets the best-scored case
    that shows it. A class that no case left shows is passed over; where none is shown, the best scores follow.

    Raises:
        ValueError: scores or predicted pixels by class are missing.
    """
    if scores.values is None or scores.predicted_pixels is None:
        raise ValueError("balanced needs scores and what the model predicts of each class, and they were not computed")
    count = size_of_choice(scores, count)
    order = best_first(scores.values, rng)
    shown = scores.predicted_pixels[order]
    have = np.zeros(shown.shape[1]) if scores.labelled_pixels is None else np.asarray(scores.labelled_pixels, dtype=np.float64)
    luck = rng.permutation(shown.shape[1])
    left = np.ones(len(order), dtype=bool)
    choices = []
    for _ in range(count):
        told, place = "no class is predicted in any case left", int(np.argmax(left))
        for class_ in np.lexsort((luck, have)):
            shows = left & (shown[:, class_] > 0)
            if shows.any():
                among = " among those that a case left shows" if (have < have[class_]).any() else ""
                told, place = f"for class {class_ + 1}, of which least is annotated or chosen{among}", int(np.argmax(shows))
                break
        left[place] = False
        have = have + shown[place]
        row = order[place]
        choices.append(Choice(scores.case_ids[row], float(scores.values[row]), f"{why} {scores.values[row]:.3g}; {told}"))
    return Selection(tuple(choices))
