"""Semi-supervised frameworks by name. A new one is a file with its `terms` and a line in the table.

The table alone is read for a configuration's sake, so it imports nothing; a framework's file is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from strategies.semi.batch import Terms

Helper = Literal["average", "peer"]
"""How the caller keeps a network beside the student.

average: a moving average, of the global model from round to round (`mean_teacher.make_teacher`, `carry_over`) and of the
    student within one (`update_teacher` after every step); no gradients. It stays at the site.
peer: as the student, of other initial weights; trained by the gradient of the same losses. It crosses and is averaged over
    sites as the student is (`strategies/global_model.py`).
"""


@dataclass(frozen=True)
class Framework:
    """A way to learn from labelled and unlabelled images.

    Attributes:
        file: the file in this folder that has its `terms`.
        helpers: the networks that `terms` needs beside the student, and how the caller keeps each.
        uses_unlabelled: whether it looks at unlabelled images at all; the caller need not load them otherwise.
        weight: λmax, the peak of the weight of "consistency"; 0.1 as in UA-MT (Yu et al., 2019) where that is a mean squared
            difference from a teacher. A run's settings may multiply it.
        start: the weight of "consistency" at the run's first step, as a multiple of λmax that it goes to in a straight line
            until the last; None where it follows the ramp λ(t) instead.
        mixes_patients: whether an image's loss depends on other images of the batch (CutMix, copy-paste), so that no
            gradient is one patient's alone; nothing for training with differential privacy.
    """

    file: str
    helpers: Mapping[str, Helper] = field(default_factory=dict)
    uses_unlabelled: bool = True
    weight: float = 1.0
    start: float | None = None
    mixes_patients: bool = False

    @cached_property
    def terms(self) -> Terms:
        """Its loss terms."""
        terms: Terms = import_module(f"{__name__}.{self.file}").terms
        return terms


FRAMEWORKS: dict[str, Framework] = {
    "supervised": Framework("supervised", uses_unlabelled=False),
    "mean_teacher": Framework("mean_teacher", helpers={"teacher": "average"}, weight=0.1),
    "uncertainty_aware": Framework("uncertainty_aware", helpers={"teacher": "average"}, weight=0.1),
    "cross_pseudo": Framework("cross_pseudo", helpers={"second": "peer"}),
    "unimatch": Framework("unimatch", start=4.0, mixes_patients=True),
    "copy_paste": Framework("copy_paste", helpers={"teacher": "average"}, start=1.0, mixes_patients=True),
}
