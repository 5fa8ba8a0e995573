"""The coordinator's durable state: after every step one checkpoint, so that a run killed anywhere goes on where it was.

A step's events are appended to the history first, then the checkpoint that names the history's length is renamed into
place. A kill between the two leaves events that the checkpoint does not know: they are cut off and the step is done
again, and the sites answer a repeated message from their own disks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from configs.files import StorageFault, read_object, write_bytes, write_text
from server.history import Event, History
from strategies.global_model import parts_of
from strategies.records import Weights

RESTORE = "put a backup of the checkpoint folder back and go on with --resume, or start over with --fresh"
"""What to do about a damaged checkpoint: nothing else holds the weights of an unfinished run."""


@dataclass(frozen=True)
class State:
    """Everything the coordinator must remember between two steps.

    Attributes:
        weights: the global model.
        momenta: state of the server's optimiser, by name; empty without one.
        tick: rounds and polls so far, the clock of simulated experts.
        unlabelled: pool size by site in cases, None where withheld.
        units: the same as `query.unit` counts, of the sites that answered the last assessment.
        labelled: labels by site, None where withheld.
        quantiles: of the scores in each site's pool at the last assessment; empty where withheld.
        balance: how level classes are in what each site has annotated, None where withheld.
        grants: what each site may ask for in the cycle at hand.
        kinds: which kinds of cases each site was given in `kinds_cycle`, and `centroids` where these lie; empty where sites
            choose without each other.
        owed: requests that a site gave no answer to, cycle (as text) to cases; repeated when the site answers again.
        late: sites that gave no answer in the last step.
        best_dice, best_cycle: best validation Dice and its cycle; None before the first assessment that shares it.
        last: numbers of the last assessment, for the end of the record.
        seconds: time spent on the steps so far, by all processes that ran them.
    """

    weights: Weights
    momenta: Weights = field(default_factory=dict)
    tick: int = 0
    unlabelled: Mapping[str, int | None] = field(default_factory=dict)
    units: Mapping[str, int | None] = field(default_factory=dict)
    labelled: Mapping[str, int | None] = field(default_factory=dict)
    quantiles: Mapping[str, Sequence[float]] = field(default_factory=dict)
    balance: Mapping[str, float | None] = field(default_factory=dict)
    grants: Mapping[str, int] = field(default_factory=dict)
    kinds: Mapping[str, Sequence[int]] = field(default_factory=dict)
    kinds_cycle: int = -1
    centroids: Sequence[Sequence[float]] = ()
    owed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    late: Sequence[str] = ()
    best_dice: float | None = None
    best_cycle: int | None = None
    last: Mapping[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def labels_total(self) -> int | None:
        """Labels over all sites; None as soon as one withholds its number."""
        counts = list(self.labelled.values())
        return None if not counts or any(count is None for count in counts) else sum(count or 0 for count in counts)


Step = Callable[[State], tuple[State, Sequence[Event]]]


class Ledger:
    """Does each step once, in order, and remembers on disk how far it came; `asked` counts the steps passed so far."""

    def __init__(self, folder: Path, history: History, state: State, *, run: str, done: int = 0) -> None:
        self.run = run
        self.state = state
        self.history = history
        self._folder = folder
        self._done = done
        self.asked = 0
        self._saved: str | None = None

    @classmethod
    def open(cls, folder: Path, history: History, initial: Callable[[], State], *, run: str) -> Ledger:
        """Go on from the checkpoint in `folder`, or start from `initial` where there is none.

        Raises:
            StorageFault: the checkpoint is damaged; names the file and what to do.
        """
        path = folder / "state.json"
        if not path.exists():
            history.truncate(0)
            return cls(folder, history, initial(), run=run)
        about = read_object(path, keys=["run", "done", "arrays", "history_bytes", "state"], remedy=RESTORE)
        arrays = _read_arrays(folder / about["arrays"])
        history.truncate(about["history_bytes"])
        state = State(
            weights={name.removeprefix("weights."): a for name, a in arrays.items() if name.startswith("weights.")},
            momenta={name.removeprefix("momenta."): a for name, a in arrays.items() if name.startswith("momenta.")},
            **about["state"],
        )
        ledger = cls(folder, history, state, run=about["run"], done=about["done"])
        ledger._saved = about["arrays"]
        return ledger

    @property
    def resumed(self) -> bool:
        """Whether some step was done before this process."""
        return self._done > 0

    def once(self, step: Step) -> None:
        """Do the next step unless an earlier process did it; then write its events and a checkpoint."""
        self.asked += 1
        if self.asked <= self._done:
            return
        before, started = self.state, time.monotonic()
        after, events = step(before)
        self.state = replace(after, seconds=after.seconds + time.monotonic() - started)
        self.history.append(events)
        self._done = self.asked
        self._checkpoint(weights_changed=self.state.weights is not before.weights or self._saved is None)

    def note(self, *events: Event) -> None:
        """Write events that belong to no step (a start, a resume), and keep them."""
        self.history.append(events)
        self._checkpoint(weights_changed=self._saved is None)

    def _checkpoint(self, *, weights_changed: bool) -> None:
        previous = self._saved
        if weights_changed:
            self._saved = f"weights-{self._done:06d}.safetensors"
            arrays = {f"weights.{name}": array for name, array in self.state.weights.items()}
            arrays |= {f"momenta.{name}": array for name, array in self.state.momenta.items()}
            write_bytes(self._folder / self._saved, save({n: np.ascontiguousarray(a) for n, a in arrays.items()}))
        rest = {key: value for key, value in vars(self.state).items() if key not in ("weights", "momenta")}
        about = {
            "run": self.run,
            "done": self._done,
            "arrays": self._saved,
            "history_bytes": self.history.size,
            "state": rest,
        }
        write_text(self._folder / "state.json", json.dumps(about, indent=1, default=dict))
        if previous and previous != self._saved:
            (self._folder / previous).unlink(missing_ok=True)


def _read_arrays(path: Path) -> Weights:
    try:
        arrays: Weights = load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise StorageFault(f"{path} is damaged or missing ({error}): {RESTORE}") from error
    return arrays


def save_weights(path: Path, weights: Weights) -> None:
    """The specialist's global weights as safetensors, names as in the network's `state_dict`; atomic.

    What was trained of SAM lies beside them, in `<name>_sam.safetensors`. Peers have served once training is over.
    """
    model = parts_of(weights)
    for part, target in ((model.specialist, path), (model.adapter, path.with_name(f"{path.stem}_sam{path.suffix}"))):
        if part:
            write_bytes(target, save({name: np.ascontiguousarray(array) for name, array in part.items()}))
