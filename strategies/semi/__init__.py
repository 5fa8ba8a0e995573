"""Semi-supervised frameworks by name. A new one is a file with its `terms` and a line in the table."""

from __future__ import annotations

from strategies.semi import copy_paste, cross_pseudo, mean_teacher, supervised, uncertainty_aware, unimatch
from strategies.semi.batch import Batch, Framework, Outcome, Time

__all__ = ["FRAMEWORKS", "Batch", "Framework", "Outcome", "Time"]

FRAMEWORKS: dict[str, Framework] = {
    "supervised": Framework(supervised.terms, uses_unlabelled=False),
    "mean_teacher": Framework(mean_teacher.terms, helpers={"teacher": "average"}, weight=0.1),
    "uncertainty_aware": Framework(uncertainty_aware.terms, helpers={"teacher": "average"}, weight=0.1),
    "cross_pseudo": Framework(cross_pseudo.terms, helpers={"peer": "peer"}),
    "unimatch": Framework(unimatch.terms, ramped=False, mixes_patients=True),
    "copy_paste": Framework(copy_paste.terms, helpers={"teacher": "average"}, ramped=False, mixes_patients=True),
}
