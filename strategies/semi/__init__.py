"""Semi-supervised frameworks by name. A new one is a file with its `terms` and a line in the table."""

from __future__ import annotations

from strategies.semi import mean_teacher, supervised
from strategies.semi.batch import Batch, Framework, Outcome, Time

__all__ = ["FRAMEWORKS", "Batch", "Framework", "Outcome", "Time"]

FRAMEWORKS: dict[str, Framework] = {
    "supervised": Framework(supervised.terms, uses_unlabelled=False),
    "mean_teacher": Framework(mean_teacher.terms, helpers={"teacher": "average"}),
}
