"""What a site's list of images may not be, told before a row is looked at: the file, what is wrong, what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from client.faults import SiteFault
from client.site import Site
from configs.schema import Preprocess
from simulation.run import simulate


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"path,role,truth\n/x.nii,pool,\n", r"images\.csv has no column patient: its first line must be a header"),
        (b"patient;path;role\np1;/x.nii;pool\n", r"no column patient, path, role: .*separated by commas"),
        (b"p1,/x.nii,pool\n", r"no column patient, path, role: .*names patient, path and role"),
        (b"patient,path,role,Start\np1,/x.nii,pool,1\n", r"has a column 'Start', which nobody reads: write start"),
        (b"patient,path,role,start\np1,/x.nii,pool,1,2\n", r"line 2: it has more cells than the header; numbers in start"),
        (b"", r"images\.csv has no column patient, path, role"),
        ("patient,path,role\nMüller,/x.nii,pool\n".encode("latin-1"), r"images\.csv is not .*UTF-8 text.*save it again as CSV"),
        ("patient,path,role\np1,/x.nii,pool\n".encode("utf-16"), r"images\.csv is not .*UTF-8 text.*save it again as CSV"),
    ],
    ids=["no patient", "semicolons", "no header", "another case", "too many cells", "empty", "Latin-1", "UTF-16"],
)
def test_a_list_of_images_without_header_or_in_another_encoding_is_bad_data(
    tiny_config: Callable[..., Path], tmp_path: Path, content: bytes, told: str
) -> None:
    workspace = simulate(tiny_config(), out=tmp_path / "run", prepare_only=True) / "sites" / "north"
    (workspace / "images.csv").write_bytes(content)
    with Site(workspace) as site, pytest.raises(SiteFault, match=told) as caught:
        site.take_in(Preprocess())
    assert caught.value.code == "bad-data"
    assert "p1" not in str(caught.value)


def test_a_list_that_a_spreadsheet_wrote_is_read(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    workspace = simulate(tiny_config(), out=tmp_path / "run", prepare_only=True) / "sites" / "north"
    path = workspace / "images.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    with Site(workspace) as site:
        site.take_in(Preprocess(size_px=32))
        assert len(site.store.images()) == 5


def test_a_missing_list_is_named_with_the_key_that_says_where_it_is(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    workspace = simulate(tiny_config(), out=tmp_path / "run", prepare_only=True) / "sites" / "north"
    (workspace / "images.csv").unlink()
    told = r"cannot read .*images\.csv: No such file.*under images in site\.toml"
    with Site(workspace) as site, pytest.raises(SiteFault, match=told):
        site.take_in(Preprocess())
