"""This site's weights between messages: what the last round trained and its helpers, in one file.

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
    """The trained and the helpers after (`run`, `cycle`, `round`), and the numbers that the reply of that round carried.

    `settings` are those that the round came with, as `Plan.read` takes them; empty in a file of an older version.
    `model` is what crosses, as `GlobalModel.arrays`. `helpers` stay: the state dicts of averages (an EMA teacher as the round
    began) and what SAM's teacher keeps, by name, which is a plain word other than "model". `step` is the first of the
    round, counted over the run, which has `total_steps`; 0 in a file of an older version.
    """

    run: str
    cycle: int
    round: int
    step: int
    model: dict[str, Tensor]
    helpers: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    reply: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    total_steps: int = 0

    def is_of(self, *, run: str, cycle: int, round: int) -> bool:
        return (self.run, self.cycle, self.round) == (run, cycle, round)


def save_models(path: Path, models: LocalModels) -> None:
    """Write atomically, as safetensors."""
    networks = {**models.helpers, "model": models.model}
    tensors = {
        f"{network}.{name}": tensor.detach().cpu().contiguous()
        for network, state in networks.items()
        for name, tensor in state.items()
    }
    about = {
        "run": models.run,
        "cycle": models.cycle,
        "round": models.round,
        "step": models.step,
        "total_steps": models.total_steps,
        "reply": dict(models.reply),
        "settings": dict(models.settings),
    }
    write_bytes(path, save(tensors, metadata={"about": json.dumps(about)}))


def load_models(path: Path, *, run: str | None = None) -> LocalModels | None:
    """What `save_models` wrote, or None where nothing was written or the file can't be read (the round is done again).

    With `run` also None where it is of another run; then no weights are read.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            if run not in (None, about["run"]):
                return None
            about["step"] = int(about["step"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        networks: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            network, _, rest = name.partition(".")
            networks.setdefault(network, {})[rest] = tensor
        return LocalModels(
            run=about["run"],
            cycle=about["cycle"],
            round=about["round"],
            step=about["step"],
            model=networks.pop("model"),
            helpers=networks,
            reply=about["reply"],
            settings=about.get("settings", {}),
            total_steps=int(about.get("total_steps", 0)),
        )
    except (SafetensorError, KeyError, TypeError, ValueError):
        return None
