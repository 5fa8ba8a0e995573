"""This site's weights between messages: the student after the last round and the EMA teacher, in one file.

One file per workspace, replaced atomically, that says which run, cycle and round it belongs to. So a repeated `train`
message is answered from it, and a kill in the middle of a round leaves the weights of the round before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from configs.files import write_bytes


@dataclass(frozen=True)
class LocalModels:
    """Student and teacher after (`run`, `cycle`, `round`), and the numbers that the reply of that round carried."""

    run: str
    cycle: int
    round: int
    student: dict[str, Tensor]
    teacher: dict[str, Tensor] | None
    reply: Mapping[str, Any] = field(default_factory=dict)

    def is_of(self, *, run: str, cycle: int, round: int) -> bool:
        return (self.run, self.cycle, self.round) == (run, cycle, round)


def save_models(path: Path, models: LocalModels) -> None:
    """Write atomically, as safetensors."""
    tensors = {f"student.{name}": tensor.detach().cpu().contiguous() for name, tensor in models.student.items()}
    tensors |= {f"teacher.{name}": tensor.detach().cpu().contiguous() for name, tensor in (models.teacher or {}).items()}
    about = {"run": models.run, "cycle": models.cycle, "round": models.round, "reply": dict(models.reply)}
    write_bytes(path, save(tensors, metadata={"about": json.dumps(about)}))


def load_models(path: Path) -> LocalModels | None:
    """What `save_models` wrote, or None where nothing was written or the file can't be read (the round is done again)."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError):
        return None
    parts: dict[str, dict[str, Tensor]] = {"student": {}, "teacher": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    return LocalModels(
        run=about["run"],
        cycle=about["cycle"],
        round=about["round"],
        student=parts["student"],
        teacher=parts["teacher"] or None,
        reply=about["reply"],
    )
