"""Hospitals that find kinds of cases with the coordinator by the real code of both, without images: cases are given as points.

Each case's embedding ends in a tag of its own, so that a sum says of which cases it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import client.kinds
from client.kinds import told
from strategies import wire
from strategies.records import Case, Weights

PLACES = 4
"""Numbers of an embedding that say where a case lies; the others are tags."""

TAG = 0.1


@dataclass
class Hospital:
    """A site with cases as points: what `client/kinds.py` asks of one. Cases are added with `admit`."""

    name: str
    workspace: Path
    min_patients: int
    first_tag: int
    length: int
    shares_sums: bool = True
    state: dict[str, str] = field(default_factory=dict)
    known: dict[str, Case] = field(default_factory=dict)
    features: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def settings(self) -> Any:
        return SimpleNamespace(min_patients=self.min_patients)

    @property
    def store(self) -> Any:
        return SimpleNamespace(cases=lambda *states: [case for name, case in self.known.items() if self.state[name] in states])

    def admit(self, patient: str, places: np.ndarray) -> None:
        """More slices of a patient (N, `PLACES`), unlabelled."""
        for place in places:
            number = len(self.known)
            case = Case(f"{patient}.{number:04d}", patient, patient, number)
            feature = np.zeros(self.length)
            feature[:PLACES] = place / np.linalg.norm(place) * np.sqrt(1 - TAG**2)
            feature[self.first_tag + number] = TAG
            self.known[case.id], self.features[case.id], self.state[case.id] = case, feature, "unlabelled"

    def patients_in(self, sums: np.ndarray) -> list[int]:
        """Of how many patients each of the sums (R, F) is."""
        cases = np.abs(sums[:, self.first_tag : self.first_tag + len(self.known)]) > 1e-9
        names = np.array([case.patient for case in self.known.values()], dtype=str)
        of_patient = names[:, None] == np.unique(names)
        return [int(count) for count in ((cases.astype(int) @ of_patient.astype(int)) > 0).sum(axis=1)]


@dataclass
class Heard:
    """One answer: who said it, what was asked, and what came."""

    site: str
    asked: Weights
    said: Weights
    patients: int


class Exchange:
    """Stands for `server.sites.Sites`; `away` names sites with how many messages they answer before they fall silent."""

    def __init__(self, hospitals: list[Hospital], away: Mapping[str, int] | None = None) -> None:
        self.hospitals = {one.name: one for one in hospitals}
        self.heard: list[Heard] = []
        self._away = away or {}

    @property
    def names(self) -> list[str]:
        return sorted(self.hospitals)

    def ask(self, kind: str, requests: Mapping[str, Any], problems: Any, *, unpack: Callable[..., Weights], weights: Any) -> Any:
        assert kind == wire.KINDS
        return self._answers(list(requests), unpack, wire.unpack_weights(weights))

    def _answers(self, names: list[str], unpack: Callable[..., Weights], asked: Weights) -> Iterator[Any]:
        for name in names:
            if sum(one.site == name for one in self.heard) == self._away.get(name, -1):
                continue
            site: Any = self.hospitals[name]
            plan: Any = SimpleNamespace(coordinated=True)
            said, patients = told(site, plan, asked)
            self.heard.append(Heard(name, asked, said, patients))
            record = unpack(wire.pack_kinds(name, said, patients=patients))
            yield SimpleNamespace(site=name, record=record, bytes_up=1, bytes_down=1)


def embedded(site: Any, plan: object, cases: list[Case]) -> np.ndarray:
    """In the place of `client.kinds.embedded`."""
    return np.array([site.features[case.id] for case in cases]).reshape(len(cases), site.length)


def without_images(monkeypatch: Any) -> None:
    monkeypatch.setattr(client.kinds, "embedded", embedded)
