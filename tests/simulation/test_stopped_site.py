"""A site at which an invariant broke stops for good, while the others go on; a person clears it, and it goes on too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import text
from tests_support import events

from client.annotate.show import render_worklist
from client.faults import SiteFault
from client.site import Site
from client.stop import clear, stopping_for_good
from client.store import Store
from configs.schema import Preprocess
from server.sites import FederationFault
from simulation.run import simulate

Config = Callable[..., Path]
SITES = {"north", "south", "west"}


def shown(show: Callable[[Path, Console], None], workspace: Path) -> str:
    console = Console(record=True, width=300)
    show(workspace, console)
    return console.export_text()


def who_answered(folder: Path, kind: str) -> list[set[str]]:
    return [set(event["sites"]) for event in events(folder) if event["event"] == kind]


def test_an_invariant_that_broke_once_stops_its_site_until_it_is_cleared(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, options = tiny_config(), ["budget.cold_start=3"]
    folder, south = tmp_path / "run", tmp_path / "run" / "sites" / "south"
    honest = Store.add_label
    broke: list[str] = []

    def add_label(self: Store, case_id: str, mask: Any, **kwargs: Any) -> None:
        """Once, at one site, an answer gets lost; the pool adds up, so no later message would see it."""
        if str(south) in str(self._engine.url) and not broke:
            broke.append(case_id)
            return
        honest(self, case_id, mask, **kwargs)

    def assess(*_: object, **__: object) -> None:
        raise FederationFault("the power failed")

    monkeypatch.setattr(Store, "add_label", add_label)
    with monkeypatch.context() as patch:
        patch.setattr("server.rounds.assess", assess)
        with pytest.raises(FederationFault, match="the power failed"):
            simulate(config, options, out=folder)
    assert broke
    assert who_answered(folder, "train") == [SITES - {"south"}] * 2
    refused = [event for event in events(folder) if event["event"] == "refused"]
    assert {event["step"] for event in refused} == {"annotate", "train"}
    log = (south / "site.log").read_text()
    for event in refused:
        assert {site: why["code"] for site, why in event["sites"].items()} == {"south": "invariant-broken"}
        said = log.partition(event["sites"]["south"]["reference"])[2].partition("refusal")[0]
        assert f"wardround site clear {south}" in said
    assert broke[0] not in (folder / "history.jsonl").read_text()

    assert f"wardround site clear {south}" in shown(render_worklist, south)
    cleared = shown(clear, south)
    assert "3 labels came, but the labelled set grew from 0 to 2" in cleared
    assert "check" in cleared
    assert str(south / "site.log") in cleared
    assert "has not stopped" in shown(clear, south)
    assert "has stopped" not in shown(render_worklist, south)
    simulate(config, options, out=folder, resume=True)
    assert who_answered(folder, "train") == [SITES - {"south"}] * 2 + [SITES] * 2
    assert who_answered(folder, "assess") == [SITES] * 2
    assert events(folder)[-1]["event"] == "end"


@pytest.fixture
def site(tiny_config: Config, tmp_path: Path) -> Iterator[Site]:
    with Site(simulate(tiny_config(), out=tmp_path / "run", prepare_only=True) / "sites" / "north") as site:
        site.take_in(Preprocess(size_px=32))
        yield site


def test_only_a_broken_invariant_stops_a_site_and_its_first_reason_stays(site: Site) -> None:
    with pytest.raises(SiteFault, match="no room"), stopping_for_good(site):
        raise SiteFault("storage", "no room")
    assert site.store.stopped is None
    with pytest.raises(SiteFault, match=r"two and three\. The site has stopped.*wardround site clear"), stopping_for_good(site):
        raise SiteFault("invariant-broken", "two and three")
    told = r"has stopped, .*: two and three\..*wardround site clear"
    with pytest.raises(SiteFault, match=told) as caught, stopping_for_good(site):
        pytest.fail("a site that has stopped does no work")
    assert caught.value.code == "invariant-broken"
    site.store.stop("four and five")
    assert site.store.stopped == "two and three"


def test_a_pool_that_is_still_wrong_is_not_cleared(site: Site) -> None:
    with pytest.raises(SiteFault), stopping_for_good(site):
        raise SiteFault("invariant-broken", "two and three")
    with site.store._engine.begin() as connection:
        connection.execute(text("DELETE FROM cases WHERE id = (SELECT min(id) FROM cases)"))
    with pytest.raises(SiteFault, match=r"site\.db is still wrong.*20 and 19.*Put a backup of it back") as caught:
        clear(site.workspace, Console())
    assert caught.value.code == "invariant-broken"
    assert site.store.stopped == "two and three"


def test_a_workspace_without_a_site_is_told(tmp_path: Path) -> None:
    with pytest.raises(SiteFault, match=r"holds no site\.db: it is no workspace"):
        clear(tmp_path, Console())
