"""No patient is asked about too often in one batch: slices of one patient tell much the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from strategies.query.choose import size_of_choice
from strategies.records import Choice, Scores, Selection


def capped(
    scores: Scores,
    count: int,
    rng: np.random.Generator,
    *,
    choose: Callable[[Scores, int, np.random.Generator], Selection],
    cap: int,
) -> Selection:
    """What `choose` takes, but no more than `cap` cases of a patient; it chooses again among the others for those refused.

    It then knows what is chosen already, and what else is in the pool, so that it goes on rather than begins anew.

    Where only patients at the cap are left, the cap rises by one, so that the grant is met, and the reason says so.

    Raises:
        ValueError: `cap` is below 1.
    """
    if cap < 1:
        raise ValueError(f"query.per_patient is {cap}: at least one case of a patient must be allowed")
    count = size_of_choice(scores, count)
    patient_of = dict(zip(scores.case_ids, scores.patients, strict=True))
    chosen: dict[str, Choice] = {}
    asked: Counter[str] = Counter()
    allowed = cap
    while len(chosen) < count:
        left = [case for case in scores.case_ids if case not in chosen and asked[patient_of[case]] < allowed]
        if not left:
            allowed += 1
            continue
        for choice in choose(beside(scores, left, list(chosen)), count - len(chosen), rng).choices:
            patient = patient_of[choice.case_id]
            if asked[patient] < allowed:
                asked[patient] += 1
                beyond = f"; no other patient is left, so more than {cap} of this one" if allowed > cap else ""
                chosen[choice.case_id] = Choice(choice.case_id, choice.score, choice.reason + beyond)
    return Selection(tuple(chosen.values()))


def beside(scores: Scores, left: Sequence[str], chosen: Sequence[str]) -> Scores:
    """Those that are left, and what has been chosen and closed beside them; a chosen case counts as an annotated one."""
    among = replace(scores.among(left), pool_values=scores.values)
    if not chosen:
        return among
    taken, closed = scores.among(chosen), scores.among(set(scores.case_ids) - {*left, *chosen})
    if taken.features is not None:
        known = taken.features[:0] if scores.labelled_features is None else scores.labelled_features
        among = replace(
            among,
            chosen_features=taken.features,
            closed_features=closed.features,
            labelled_features=np.concatenate([known, taken.features]),
        )
    if taken.predicted_pixels is not None:
        shown = taken.predicted_pixels.sum(axis=0)
        among = replace(among, labelled_pixels=shown if scores.labelled_pixels is None else scores.labelled_pixels + shown)
    return among
