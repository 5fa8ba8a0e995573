"""An index finds every file it promises, or says at once all that is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.formats.image import FormatError
from client.formats.index import Entry, read_index


def make(root: Path, table: str, *files: str) -> Path:
    root.mkdir(exist_ok=True)
    (root / "index.csv").write_text(table, encoding="utf-8")
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_nifti(tmp_path: Path) -> None:
    files = ["images/a1.nii.gz", "images/a2.nii", "labels/a1.nii.gz", "labels/a2.nii.gz"]
    root = make(tmp_path, "case,patient,site,voxels\na1,a,Nord,12\na2,a,Süd,13\n", *files)
    assert read_index(root, format="nifti") == [
        Entry("a1", "a", "Nord", root / "images/a1.nii.gz", root / "labels/a1.nii.gz"),
        Entry("a2", "a", "Süd", root / "images/a2.nii", root / "labels/a2.nii.gz"),
    ]


def test_dicom_with_patients_alone(tmp_path: Path) -> None:
    files = ["p1/image/0.dcm", "p1/mask/RS.dcm", "p1/mask/notes.txt", "p1/mask/.hidden.dcm"]
    root = make(tmp_path, "patient,site\np1,X\n", *files)
    assert read_index(root, format="dicom") == [Entry("p1", "p1", "X", root / "p1/image", root / "p1/mask/RS.dcm")]


def test_pictures_of_all_suffixes_with_cases_alone(tmp_path: Path) -> None:
    names = ["a.png", "b.jpg", "c.jpeg"]
    files = [f"images/{name}" for name in names] + [f"masks/{name[0]}.png" for name in names]
    root = make(tmp_path, "\ufeffcase\n a \nb\n\nc\n", *files)
    entries = read_index(root, format="picture")
    assert [(one.case, one.patient, one.site) for one in entries] == [
        ("a", "a", None),
        ("b", "b", None),
        ("c", "c", None),
    ]
    assert [one.image.name for one in entries] == names


def test_another_table_and_no_labels(tmp_path: Path) -> None:
    root = make(tmp_path, "case\nb\n", "images/a.png", "images/b.png", "masks/b.png")
    (root / "new.csv").write_text("case\na\nb\n")
    labels = [one.label for one in read_index(root, format="picture", index="new.csv", need_labels=False)]
    assert labels == [None, root / "masks/b.png"]


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    table = "case,patient,site\na,p,X\nb,,X\nc,p,\n../d,p,X\ne,p,X\na,p,Y\nf\n,p,X\n"
    root = make(tmp_path, table, "images/a.png", "masks/a.png", "images/e.png", "images/e.jpg")
    with pytest.raises(FormatError) as caught:
        read_index(root, format="picture")
    told = str(caught.value).splitlines()
    assert told[0] == f"{root / 'index.csv'} has 9 faults:"
    expected = [
        "line 3 (b): the column patient is empty; fill it",
        "line 4 (c): the column site is empty; fill it",
        "line 5 (../d): a case must be a plain name, without slashes; rename it and its files",
        "line 6 (e): 2 files could be its image (e.png, e.jpg); keep one",
        "line 6 (e): its label is missing; put it at masks/e.png, or remove the row",
        "line 8 (f): the column patient is empty; fill it",
        "line 8 (f): the column site is empty; fill it",
        "line 9 (p): the column case is empty; fill it",
        "a stands in 2 rows; keep one, or give each image a case of its own",
    ]
    assert [one.strip() for one in told[1:]] == expected


def test_missing_dicom_parts(tmp_path: Path) -> None:
    root = make(tmp_path, "patient\np1\np2\n", "p1/image/0.dcm", "p1/mask/a.dcm", "p1/mask/b.dcm", "p2/mask/a.dcm")
    with pytest.raises(FormatError) as caught:
        read_index(root, format="dicom")
    message = str(caught.value)
    assert "line 2 (p1): 2 files could be its label (a.dcm, b.dcm); keep one" in message
    assert "line 3 (p2): its image is missing; put it at p2/image" in message


def test_many_faults_are_counted(tmp_path: Path) -> None:
    root = make(tmp_path, "case\n" + "".join(f"c{number}\n" for number in range(50)))
    with pytest.raises(FormatError, match=r"has 100 faults(.|\n)*and 80 more"):
        read_index(root, format="nifti")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty: write a header"),
        (b"case,site\n", "is empty: it has a header but no rows"),
        (b"name,site\na,X\n", "has no column case or patient.*its columns are name, site"),
        (b"case,site,case\na,X,b\n", "the column case twice"),
        (b'case\n"a\n', "is not a table"),
        (b"case\n\xff\xfe\x00\n", "is not a table of comma-separated UTF-8"),
    ],
)
def test_tables_that_are_none(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_bytes(content)
    with pytest.raises(FormatError, match=f"index.csv.*{match}"):
        read_index(tmp_path, format="nifti")


def test_a_root_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"nowhere.index.csv does not exist: set data.root.*WARDROUND_DATA"):
        read_index(tmp_path / "nowhere", format="nifti")
    with pytest.raises(ValueError, match='format = "tiff": known formats are dicom, nifti, picture'):
        read_index(tmp_path, format="tiff")
