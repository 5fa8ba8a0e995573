"""The coordinator's part in finding kinds: a reach that is right whoever is silent, and grants that nobody loses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kinds_support import PLACES, Exchange, Hospital, without_images
from tests_support import TINY

from client.kinds import Teachable
from configs.load import load
from server.checkpoint import State
from server.kinds import find_kinds
from server.rounds import Federation, grant
from server.sites import Problems
from strategies.query.coordinate import kinds_of

LENGTH = 64
"""Of the small SAM's embeddings: for three hospitals with up to 20 cases."""

Make = Callable[..., list[Hospital]]


@pytest.fixture
def hospitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Three hospitals with the given numbers of patients, two alike slices of each, around four places of all together."""
    without_images(monkeypatch)

    def make(*patients: int, min_patients: int = 1, length: int = LENGTH) -> list[Hospital]:
        rng = np.random.default_rng(0)
        centres = rng.normal(size=(4, PLACES))
        made = []
        for number, (name, count) in enumerate(zip(("north", "south", "west"), patients, strict=True)):
            (tmp_path / name).mkdir()
            tags = (length - PLACES) // 3
            made.append(Hospital(name, tmp_path / name, min_patients, PLACES + tags * number, length))
            for patient in range(count):
                made[-1].admit(f"p{patient}", centres[rng.integers(4)] + 0.2 * rng.normal(size=(2, PLACES)))
        return made

    return make


@pytest.mark.parametrize("min_patients", [1, 3, 5])
@pytest.mark.parametrize("away", [{}, {"south": 1}, {"south": 1, "west": 4}, {"north": 0}])
def test_the_reach_is_that_of_the_cases_that_were_told(hospitals: Make, min_patients: int, away: dict[str, int]) -> None:
    """Whatever few patients keep from being told, and whoever falls silent after his moments: the root mean square distance."""
    everybody = hospitals(10, 7, 4, min_patients=min_patients)
    exchange: Any = Exchange(everybody, away)
    find_kinds(exchange, Problems(), features=LENGTH, labels=0, per_site=2, covering=True, seed=0, cycle=0)
    asked = [one for one in exchange.heard if "radius" in one.asked]
    steps = [one for one in exchange.heard if "counts" in one.asked][-len(asked) :]
    centroids, squares = asked[0].asked["centroids"], []
    for last, one in zip(steps, asked, strict=True):
        site: Any = exchange.hospitals[one.site]
        known = Teachable.at(site, SimpleNamespace())  # type: ignore[arg-type]
        kind = kinds_of(known.features, known.group, np.asarray(last.asked["centroids"], dtype=np.float64))
        squares += np.square(known.features - centroids[kind]).sum(axis=1)[known.group >= 0].tolist()
    assert squares
    assert float(asked[0].asked["radius"][0]) == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-6)


@pytest.fixture
def granted(tmp_path: Path, hospitals: Make) -> Callable[..., dict[str, int]]:
    """Grants of the cold start, 4 cases a site, by site."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.format(root=tmp_path))
    kinds = ["query.strategy=typiclust", "query.cold_start=typiclust", "budget.rule=coordinated", "budget.cold_start=4"]
    run = load(path, kinds)

    def share(everybody: list[Hospital], away: dict[str, int] | None = None, **pools: int) -> dict[str, int]:
        exchange: Any = Exchange(everybody, away)
        progress: Any = SimpleNamespace(step=lambda *_, **__: None)
        federation = Federation(run, exchange, dict, tmp_path, progress)
        state, (told, *_) = grant(federation, State(weights={}, unlabelled=dict(pools)), cycle=0)
        assert {name: site["granted"] for name, site in told["sites"].items()} == state.grants
        return dict(state.grants)

    return share


@pytest.mark.parametrize("answers", [0, 1, 5, 9])
def test_who_misses_a_message_keeps_its_grant(hospitals: Make, granted: Callable[..., dict[str, int]], answers: int) -> None:
    grants = granted(hospitals(9, 9, 9), {"south": answers})
    assert grants["south"] == 4
    assert sum(grants.values()) == 12, "and the others share theirs"


def test_who_has_too_few_patients_to_tell_of_keeps_its_grant(hospitals: Make, granted: Callable[..., dict[str, int]]) -> None:
    grants = granted(hospitals(9, 2, 9, min_patients=3))
    assert grants["south"] == 4
    assert sum(grants.values()) == 12


def test_who_tells_of_no_case_is_asked_once_and_never_shown_where_kinds_lie(hospitals: Make) -> None:
    exchange: Any = Exchange(hospitals(9, 2, 9, min_patients=3))
    kinds = find_kinds(exchange, Problems(), features=LENGTH, labels=0, per_site=2, covering=False, seed=0, cycle=0)
    assert set(kinds.of_site) == {"north", "west"}
    assert [set(one.asked) for one in exchange.heard if one.site == "south"] == [{"moments", "cases"}]
    assert len([one for one in exchange.heard if one.site == "north"]) == 10


def test_where_nobody_answers_all_have_their_grants(hospitals: Make, granted: Callable[..., dict[str, int]]) -> None:
    everybody, away = hospitals(9, 9, 9), {"north": 0, "south": 0, "west": 0}
    assert granted(everybody, away) == {"north": 4, "south": 4, "west": 4}
    assert granted(everybody, away, south=1) == {"north": 4, "south": 1, "west": 4}, "or all that is there"


def test_a_rest_goes_to_sites_with_cases_left(hospitals: Make, granted: Callable[..., dict[str, int]]) -> None:
    """Two cases wait at each, and at west more that it can't tell of yet: kinds make up 6 of the 12, and west has the rest."""
    everybody = hospitals(9, 9, 9)
    for hospital in everybody:
        for case in list(hospital.known)[2:]:
            hospital.state[case] = "labelled"
    assert granted(everybody, north=2, south=2, west=18) == {"north": 2, "south": 2, "west": 8}
    assert granted(everybody, north=2, south=2, west=2) == {"north": 2, "south": 2, "west": 2}, "no more than there is"
