"""The report: one file without outside references, every number of its headline, honest about what is not there."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_history import CONFIGURATION, events, write_pictures, write_run

from configs.files import StorageFault
from server import report
from server.report import build_report
from server.report_data import NotARun, read_record
from server.report_words import dice, duration, human_bytes, signed

VOID = {"meta", "br", "image", "use", "path", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """What a page says (text outside style) and refers to, and whether its tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            assert not name.startswith("on"), f"an event handler on {tag}"
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def page(run: Path) -> Page:
    return Page(build_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], str]:
    lines = events()
    run = write_run(tmp_path_factory.mktemp("finished"), lines)
    write_pictures(run)
    return run, lines, build_report(run).read_text(encoding="utf-8")


def test_one_file_that_refers_to_nothing_outside(finished: tuple[Path, list[dict[str, Any]], str]) -> None:
    _, _, html = finished
    found = Page(html)
    assert found.references
    assert all(ref.startswith(("data:image/png;base64,", "#")) for ref in found.references)
    assert {ref[1:] for ref in found.references if ref.startswith("#")} <= set(found.ids)
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(found.tags)
    for outside in ("http:", "https:", "//", "@import", "@font-face"):
        assert outside not in html.replace("data:image/png;base64,", "").split("<svg")[0], outside
    assert "http" not in html
    assert "url(" not in html.replace("url(#", "")
    assert len(found.ids) == len(set(found.ids))


def test_every_number_of_the_headline_is_there(finished: tuple[Path, list[dict[str, Any]], str]) -> None:
    _, lines, html = finished
    words = Page(html).words
    last = [line for line in lines if line["event"] == "assess"][-1]
    first = next(line for line in lines if line["event"] == "assess")
    lowest = min(last["sites"], key=lambda name: last["sites"][name]["dice_test"])
    join = next(line for line in lines if line["event"] == "join")
    cases = sum(site["cases"] for site in join["sites"].values())
    moved = [site for line in lines for site in line.get("sites", {}).values()]
    up, down = (sum(site.get(key, 0) for site in moved) for key in ("bytes_up", "bytes_down"))
    expected = [
        f"Test Dice, mean of sites {last['dice_mean_test']:.3f}",
        f"{last['dice_mean_test'] - first['dice_mean_test']:+.3f} since cycle 1",
        f"Worst site, test Dice {last['dice_worst_test']:.3f} site {lowest}",
        f"Labels 80 of {cases} {8000 / cases:.1f} % of all cases; 80 granted",
        "Cycles assessed 5 15 training rounds",
        f"Traffic {human_bytes(up + down)} ↑ {human_bytes(up)} ↓ {human_bytes(down)}",
        "Duration 2 min 03 s started 2026-01-01 10:00 UTC",
        "wardround report · ended",
    ]
    for text in expected:
        assert text in words


def test_the_tables_hold_every_point(finished: tuple[Path, list[dict[str, Any]], str]) -> None:
    _, lines, html = finished
    words = Page(html).words
    spent = 0.0
    for line in lines:
        if line["event"] == "annotate":
            spent = sum(site["minutes"] for site in line["sites"].values())
        if line["event"] == "assess":
            assert f"{line['labels_total']} {spent:.0f} {line['dice_mean']:.3f} {line['dice_mean_test']:.3f}" in words
            for site in line["sites"].values():
                assert f"{site['dice_test']:.3f}" in words
    assert "refused" not in words.replace("Refused, late", "").replace("no reply was refused", "")


def test_every_plot_has_words_for_who_cannot_see_it(finished: tuple[Path, list[dict[str, Any]], str]) -> None:
    _, _, html = finished
    assert html.count("<svg") == html.count('<svg role="img"') == html.count("aria-label=")
    assert "The mean test Dice goes from" in html
    assert "Losses over 15 training rounds" in html


def test_the_same_folder_gives_the_same_bytes(finished: tuple[Path, list[dict[str, Any]], str]) -> None:
    run, _, html = finished
    assert build_report(run).read_text(encoding="utf-8") == html


def test_withheld_numbers_say_so_and_are_no_zeros(tmp_path: Path) -> None:
    found = page(write_run(tmp_path, events(withheld=True)))
    for text in (
        "Test Dice, mean of sites not told by the site",
        "Worst site, test Dice not told by the site",
        "Labels withheld by the site 80 granted",
        "Dice is not told by the site",
        "Dice by class is not told by the site",
        "Losses are withheld by the site",
        "A question mark: withheld by the site",
    ):
        assert text in found.words
    assert "0.000" not in found.words
    assert "None" not in found.words.replace("None: every site", "")
    assert "nan" not in found.words


def test_a_single_site_that_withholds_is_told_from_one_that_did_not_answer(tmp_path: Path) -> None:
    lines = events(cycles=2)
    scores = [line for line in lines if line["event"] == "assess"]
    scores[1]["sites"]["B"] |= {"dice_test": None, "dice_by_class_test": None, "dice": None, "dice_by_class": None}
    del scores[1]["sites"]["C"]
    words = page(write_run(tmp_path, lines)).words
    assert f"B {scores[0]['sites']['B']['dice_test']:.3f} not told C" in words
    assert f"C {scores[0]['sites']['C']['dice_test']:.3f} – D" in words
    assert "Mean over fewer than all sites: cycle 2 (2 of 4)" in words


def test_refusals_and_late_sites_are_told_with_their_meaning(tmp_path: Path) -> None:
    html = build_report(write_run(tmp_path, events(troubles=True))).read_text(encoding="utf-8")
    words = Page(html).words
    assert "B cycle 2, round 2, train not-finite NaN or infinity in an image" in words
    assert "1a2b3c4d" in words
    assert "C cycle 3, assess late No reply within the time allowed" in words
    assert "The site’s own log" in words
    assert ">2 of 4</text>" in html


def test_choosing_by_chance_for_want_of_scores_is_told_with_the_strategy(tmp_path: Path) -> None:
    lines = events(troubles=True)
    chance = "A site that could not score its pool, among the refusals below, asked by chance in that cycle."

    def told(code: str | None) -> str:
        refusal = {"event": "refused", "cycle": 1, "round": 0, "step": "assess", "sites": {"B": {"code": code}}}
        return page(write_run(tmp_path, [*lines[:-1], *[refusal] * bool(code), lines[-1]], configuration=CONFIGURATION)).words

    assert f"chosen by the strategy “entropy”. {chance}" in told("invariant-broken")
    assert chance not in told("nothing-labelled")
    assert chance not in told(None)  # one site refused to train, one was late


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 5, 6, 8, 10, 11])
def test_a_run_killed_after_any_line_gets_a_report(tmp_path: Path, after: int) -> None:
    lines = events(sites=("A", "B"), classes=("liver",), cycles=2, rounds=1)
    found = page(write_run(tmp_path, lines[:after], torn='{"event": "tra'))
    ended = after >= len(lines)
    assert ("· ended" in found.words) == ended
    assert ("interrupted in" in found.words) == (0 < after < len(lines))
    assert "The last line of the history is torn" in found.words


def test_a_resumed_run_says_so(tmp_path: Path) -> None:
    lines = events(cycles=2)
    words = page(write_run(tmp_path, [*lines[:6], {**lines[5], "event": "resume", "sites": {}}, *lines[6:]])).words
    assert "ended, resumed once" in words


def test_a_single_site_and_cycle(tmp_path: Path) -> None:
    words = page(write_run(tmp_path, events(sites=("only",), classes=("liver",), cycles=1, rounds=1))).words
    assert "1 site trained one segmentation model together (1 class: liver)" in words


def test_fifty_sites_are_bands_not_fifty_labels(tmp_path: Path) -> None:
    names = [f"ward-{i:02d}" for i in range(50)]
    html = build_report(write_run(tmp_path, events(sites=names, cycles=3, rounds=1))).read_text(encoding="utf-8")
    drawn = [part.split("</svg>")[0] for part in html.split("<svg")[1:]]
    assert all(sum(name in drawing for name in names) <= 1 for drawing in drawn)
    assert all(drawing.count("<text") < 80 for drawing in drawn)
    assert "Bands: all sites" in html
    assert len(html) < 400_000


def test_what_others_wrote_is_text_never_markup(tmp_path: Path) -> None:
    nasty = '<script>alert("x")</script>&amp;\'"$\\alpha$'
    lines = events(sites=(nasty, "B"), classes=(nasty, "liver"), cycles=2, rounds=1, troubles=True)
    lines[0] |= {"name": nasty, "commit": nasty, "versions": {nasty: nasty}, "engine": nasty}
    lines.insert(-1, {"event": "refused", "cycle": 1, "round": 1, "step": nasty, "sites": {nasty: {"code": nasty}}})
    run = write_run(tmp_path, lines, configuration=f"# {nasty}\n[query]\nstrategy = '''{nasty}'''\n", torn=nasty)
    html = build_report(run).read_text(encoding="utf-8")
    found = Page(html)
    assert "script" not in found.tags
    assert "<script" not in html
    assert nasty in found.words


def test_the_configuration_is_there_word_for_word(tmp_path: Path) -> None:
    run = write_run(tmp_path, events()[:2], configuration=CONFIGURATION + "\n# a <comment> & more\n")
    assert "# a <comment> & more" in page(run).words
    (run / "config.toml").write_text("name = [broken", encoding="utf-8")
    words = page(run).words
    assert "config.toml is not valid TOML" in words
    assert "name = [broken" in words
    (run / "config.toml").unlink()
    assert "The configuration (config.toml) could not be read" in page(run).words


def test_malformed_fields_do_not_stop_the_report(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"event": "start", "classes": "liver", "versions": [], "time": 5, "name": None},
        {"event": "join", "sites": {"A": 5, "B": {"cases": "many"}}},
        {"event": "assess", "cycle": "x", "sites": {"B": {"dice_test": "high", "dice_by_class_test": 3}}},
        {"event": "train", "sites": {"B": {"losses": [1]}}, "labels_total": "x"},
        {"event": "unheard-of", "sites": {"C": {}}},
    ]
    assert "B many" not in page(write_run(tmp_path, lines)).words
    assert read_record(tmp_path).sites == ("B", "C")


def test_no_run_and_no_room_are_told_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotARun, match="Give the folder"):
        build_report(tmp_path)
    run = write_run(tmp_path / "run", events(cycles=1)[:2])
    before = build_report(run).read_bytes()

    def full(path: Path, text: str) -> None:
        raise StorageFault(28, f"cannot write {path}: the disk is full")

    monkeypatch.setattr(report, "write_text", full)
    with pytest.raises(StorageFault, match=r"report\.html"):
        build_report(run)
    assert (run / "report.html").read_bytes() == before


def test_numbers_read_well() -> None:
    assert [human_bytes(n) for n in (0, 999, 1000, 12_345_678, 99_960_000, 999_600, 2.5e12, 4e15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "12.3 MB",
        "100 MB",
        "1.0 MB",
        "2.5 TB",
        "4000 TB",
    ]
    assert [duration(s) for s in (0.04, 59.96, 200, 3600 * 2 + 300, 3600 * 76)] == [
        "0.0 s",
        "1 min 00 s",
        "3 min 20 s",
        "2 h 05 min",
        "3 d 4 h",
    ]
    assert [signed(v) for v in (0.1, -0.25, -0.0004, None)] == ["+0.100", "−0.250", "0.000", "–"]
    assert (dice(None), dice(0.87651)) == ("not told by the site", "0.877")
