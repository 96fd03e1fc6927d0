"""A folder of pictures: metadata where there is some, nothing that is no picture, every mistake named."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tests.unit.jobs.data.test_omnimedvqa import place

from medgr2_jobs.data import imagefolder
from medgr2_jobs.data.record import BadRecord, Record
from medgr2_jobs.errors import DataError


def folder(root: Path, *names: str, metadata: str = "") -> Path:
    made = root / "data"
    made.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(made / name)
    if metadata:
        (made / "metadata.csv").write_text(metadata)
    return made


def read(root: Path, modality: str = "X-Ray") -> list[Record | BadRecord]:
    return list(imagefolder.read(place(root, "data", modality=modality)))


def test_pictures_of_all_folders_with_what_is_known_of_them(tmp_path: Path) -> None:
    metadata = "file_name,modality,patient,dataset\nward/b.jpg,CT,Doe,lab\n"
    made = folder(tmp_path, "a.png", "ward/b.jpg", metadata=metadata)
    (made / "notes.txt").write_text("no picture")
    (made / ".hidden.png").write_bytes(b"no picture either")
    first, second = read(tmp_path)
    assert isinstance(first, Record)
    assert isinstance(second, Record)
    assert (first.image_path, first.modality, first.patient, first.dataset) == ("a.png", "X-Ray", "", ".")
    assert (second.image_path, second.modality, second.dataset) == ("ward/b.jpg", "CT", "lab")
    assert second.patient
    assert "Doe" not in second.patient
    assert (first.question, first.answer_index) == ("", None)


def test_a_picture_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    made = folder(tmp_path, "a.png", metadata="file_name,modality\na.png,CT\ngone.png,CT\n")
    (made / "torn.png").write_bytes((made / "a.png").read_bytes()[:40])
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    (made / "link.png").symlink_to(tmp_path / "outside.png")
    found = {str(bad) for bad in imagefolder.read(place(made, ".", modality="CT")) if isinstance(bad, BadRecord)}
    assert any(text.startswith("torn.png: file_name:") and "not a readable image" in text for text in found)
    assert any(text.startswith("link.png: file_name:") and "outside the workspace" in text for text in found)
    assert "metadata.csv[3]: file_name: 'gone.png' is not in the folder, or is no picture" in found
    assert len(found) == 3


@pytest.mark.parametrize("column", ["modality", "patient", "dataset"])
def test_a_cell_that_cannot_be_used_sets_its_picture_aside_alone(tmp_path: Path, column: str) -> None:
    cells = {"modality": "CT", "patient": "p", "dataset": "d"}
    row = ",".join((cells | {column: "a <think> in it"}).values())
    folder(tmp_path, "a.png", "b.png", metadata=f"file_name,{','.join(cells)}\na.png,{row}\nb.png,CT,p,d\n")
    bad, good = read(tmp_path)
    assert isinstance(bad, BadRecord)
    assert (bad.field, "our own tag <think>" in bad.reason) == (column, True)
    assert isinstance(good, Record)


def test_a_name_that_tells_the_patient_is_a_pseudonym_everywhere(tmp_path: Path) -> None:
    metadata = "file_name,patient\n./Doe-Jane/1.png,doe jane\njane/2.png,Doe Jane\ndoe/gone.png,doe jane\n"
    made = folder(tmp_path, "Doe-Jane/1.png", "jane/2.png", metadata=metadata)
    (made / "jane/2.png").write_bytes(b"torn")
    found = read(tmp_path)
    first = found[0]
    assert isinstance(first, Record)
    assert first.patient
    assert [type(record) for record in found] == [Record, BadRecord, BadRecord]
    told = repr(found).lower()
    assert "doe" not in told
    assert "jane" not in told


def test_links_to_folders_are_told_of(tmp_path: Path) -> None:
    made = folder(tmp_path, "a.png")
    (made / "loop").symlink_to(made)
    good, bad = read(tmp_path)
    assert isinstance(good, Record)
    assert str(bad) == "loop: file_name: a link to a folder, which is not followed; copy the folder"


def test_a_modality_is_needed(tmp_path: Path) -> None:
    folder(tmp_path, "a.png")
    (bad,) = read(tmp_path, modality="")
    assert isinstance(bad, BadRecord)
    assert bad.field == "modality"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("name,modality\na.png,CT\n", "unknown column 'name'; its columns are file_name"),
        ("modality\nCT\n", "has no column file_name"),
        ("file_name\na.png\na.png\n", "line 3: 'a.png' is there twice"),
        ("file_name,modality\n,CT\n", "line 2"),
        ("file_name,modality\na.png,CT,more\n", "line 2: 'a.png' has more fields"),
        ('file_name\n"a.png\n', "not a CSV file"),
    ],
)
def test_a_bad_metadata_file_is_an_error(tmp_path: Path, metadata: str, message: str) -> None:
    folder(tmp_path, "a.png", metadata=metadata)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_a_folder_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        list(imagefolder.read(place(tmp_path, "none")))
