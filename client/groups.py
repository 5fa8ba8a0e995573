"""The groups in which a site's cases are told of, kept in `groups.json` of its workspace.

A group that a case left, or that was drawn otherwise a cycle later, would be told twice with a difference of a few cases. So
groups stay: in all cycles and runs, whatever is annotated in between and whatever SAM sees the cases.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from client.site import Site
from configs.files import read_object, write_text
from strategies.query.groups import in_groups
from strategies.records import Case

_RESTORE = (
    "put a copy of it back. Without the file groups are drawn anew, and from sums over the old and the new ones fewer patients "
    "than min_patients may be worked out"
)


def groups_of(site: Site, cases: Sequence[Case], features: NDArray[np.floating]) -> NDArray[np.intp]:
    """(N,) number of the group that each case is told with; −1 where it is told nowhere.

    Cases that are new here, or were left out before, form groups among themselves, as soon as they are of the site's
    `min_patients` patients; whoever has more cases than a half of a group has some left out. A group that has lost a case is told
    no more. Where the site changes `min_patients`, groups are drawn anew.

    Args:
        cases: all that the site could tell of, N.
        features: (N, F), by which new cases are grouped.

    Raises:
        StorageFault: the file is damaged or can't be written.
    """
    path, least = site.workspace / "groups.json", site.settings.min_patients
    kept: list[list[str]] = []
    if path.exists():
        found = read_object(path, keys=["min_patients", "groups"], remedy=_RESTORE)
        kept = found["groups"] if found["min_patients"] == least else []
    grouped = {case_id for group in kept for case_id in group}
    new = [row for row, case in enumerate(cases) if case.id not in grouped]
    drawn = in_groups(features[new], [cases[row].patient for row in new], min_patients=least)
    formed: dict[int, list[str]] = {}
    for row, number in zip(new, drawn.tolist(), strict=True):
        if number >= 0:
            formed.setdefault(number, []).append(cases[row].id)
    if formed:
        kept = [*kept, *formed.values()]
        write_text(path, json.dumps({"min_patients": least, "groups": kept}))
    row_of = {case.id: row for row, case in enumerate(cases)}
    groups = np.full(len(cases), -1, dtype=np.intp)
    for number, group in enumerate(kept):
        if all(case_id in row_of for case_id in group):
            groups[[row_of[case_id] for case_id in group]] = number
    return groups
