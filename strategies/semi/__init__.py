"""Semi-supervised frameworks by name. A new one is a file with its `terms` and a line in the table."""

from __future__ import annotations

from strategies.semi import mean_teacher, supervised
from strategies.semi.batch import Batch, Framework, Outcome

__all__ = ["FRAMEWORKS", "Batch", "Framework", "Outcome"]

FRAMEWORKS: dict[str, Framework] = {
    "supervised": Framework(terms=supervised.terms, uses_teacher=False, uses_unlabelled=False),
    "mean_teacher": Framework(terms=mean_teacher.terms, uses_teacher=True, uses_unlabelled=True),
}
