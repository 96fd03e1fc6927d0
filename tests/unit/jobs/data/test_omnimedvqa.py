"""Every bad record is named by file, row and field; every bad file by line or reason."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medgr2_api.data import DataSource
from medgr2_jobs.data import omnimedvqa
from medgr2_jobs.data.pseudonyms import Names
from medgr2_jobs.data.record import BadRecord, Place, Record
from medgr2_jobs.errors import DataError
from medgr2_jobs.store.images import ImageStore


def good(index: int = 0, **changes: Any) -> dict[str, Any]:
    record = {
        "dataset": "demo",
        "question_id": f"q{index}",
        "question_type": "Disease Diagnosis",
        "question": "What is shown?",
        "gt_answer": "Cyst",
        "image_path": "a.png",
        "option_A": "Mass",
        "option_B": "Cyst",
        "modality_type": "CT",
    }
    return {key: value for key, value in (record | changes).items() if value is not ...}


def read(root: Path, records: Any, **files: str) -> list[Record | BadRecord]:
    (root / "q.json").write_text(records if isinstance(records, str) else json.dumps(records))
    if not (root / "a.png").exists():
        Image.new("RGB", (30, 20), (200, 10, 10)).save(root / "a.png")
    return list(omnimedvqa.read(place(root, "q.json")))


def place(root: Path, path: str, images: str = "", names: Names | None = None, **fields: Any) -> Place:
    """Where a reader finds a source, with further fields of the spec's entry."""
    return Place(
        source=DataSource.model_validate({"name": "s", "format": "OmniMedVQA", "uri": path, **fields}),
        root=root,
        path=root / path,
        what="data.sources[s].uri",
        store=ImageStore(root),
        max_pixels=401_408,
        names=names or Names(b"key", clear=True),
        images=root / images if images else None,
    )


def bomb(path: Path) -> None:
    """A PNG of a few bytes that claims 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def test_a_good_record(tmp_path: Path) -> None:
    (record,) = read(tmp_path, [good(gt_answer=" cyst. ", rationale="Round and dark.")])
    assert isinstance(record, Record)
    assert record.options == ("Mass", "Cyst")
    assert record.answer_index == 1
    assert record.rationale == "Round and dark."


def test_the_gold_answer_is_the_option_that_is_written_alike(tmp_path: Path) -> None:
    (record,) = read(tmp_path, [good(option_A="cyst", option_B="CYST", gt_answer="CYST")])
    assert isinstance(record, Record)
    assert record.answer_index == 1


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"question": ...}, "question", "is missing"),
        ({"question_id": ...}, "question_id", "is missing"),
        ({"gt_answer": ""}, "gt_answer", "is empty"),
        ({"modality_type": None}, "modality_type", "is missing"),
        ({"question": ["x"]}, "question", "must be text, but is a JSON list"),
        ({"option_B": ...}, "option_A", "1 option(s); at least 2"),
        ({"gt_answer": "Polyp"}, "gt_answer", "'Polyp' is not among the options 'Mass', 'Cyst'"),
        ({"option_A": "cyst", "option_B": "CYST"}, "gt_answer", "2 of the options"),
        ({"image_path": "../a.png"}, "image_path", "must not contain '..'"),
        ({"image_path": "/etc/passwd"}, "image_path", "must be relative"),
        ({"image_path": "no.png"}, "image_path", "no.png: image file is missing"),
        ({"image_path": "torn.png"}, "image_path", "torn.png: not a readable image"),
        ({"image_path": "bomb.png"}, "image_path", "bomb.png"),
        ({"image_path": "link.png"}, "image_path", "outside the workspace"),
        ({"image_path": "folder"}, "image_path", "folder"),
        ({"rationale": 3}, "rationale", "must be text"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, changes: dict[str, Any], field: str, reason: str) -> None:
    root = tmp_path / "workspace"
    root.mkdir()
    Image.effect_noise((64, 64), 50).save(root / "torn.png")
    data = (root / "torn.png").read_bytes()
    (root / "torn.png").write_bytes(data[: len(data) // 2])
    bomb(root / "bomb.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere.png")
    (root / "link.png").symlink_to(tmp_path / "elsewhere.png")
    (root / "folder").mkdir()
    first, bad = read(root, [good(0), good(1, **changes)])
    assert isinstance(first, Record)
    assert isinstance(bad, BadRecord)
    assert bad.where.startswith("q.json[1]")
    assert bad.field == field
    assert reason in bad.reason


def test_a_duplicate_id_names_the_first(tmp_path: Path) -> None:
    _, bad = read(tmp_path, [good(), good(question="Another?")])
    assert str(bad) == (
        "q.json[1] (question_id 'q0'): question_id: is the same as in q.json[0]; ids must be unique in a source"
    )


def test_a_record_that_is_no_object(tmp_path: Path) -> None:
    (bad,) = read(tmp_path, [7])
    assert str(bad) == "q.json[0]: -: must be a JSON object, but is a JSON number"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n {"b" 2}]', "not JSON: Expecting ':' delimiter at line 2, column 7"),
        ('{"a": 1}', "must hold a JSON list of records, but holds a JSON object"),
        ("[" * 100_000, "JSON nested too deeply"),
        ("[1] 2", "not JSON: Extra data at line 1, column 5"),
        ('[{"a": 1}', "not JSON: Expecting ',' delimiter"),
        ("7", "holds a JSON number"),
        ("", "not JSON"),
    ],
)
def test_a_bad_file_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path, text)
    assert message in str(error.value)
    assert "q.json" in str(error.value)


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'["\xff"]')
    with pytest.raises(DataError, match=r"x\.json: not UTF-8 text \(byte 2\)"):
        list(omnimedvqa.read(place(tmp_path, "x.json")))


def test_missing_folder_and_folder_without_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        list(omnimedvqa.read(place(tmp_path, "none")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \*.json"):
        list(omnimedvqa.read(place(tmp_path, "empty")))


def test_a_folder_of_files_and_another_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "qa").mkdir()
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "pictures/a.png")
    (tmp_path / "qa/2.json").write_text(json.dumps([good(2)]))
    (tmp_path / "qa/1.json").write_text("\ufeff" + json.dumps([good(1), good(2)]))
    found = list(omnimedvqa.read(place(tmp_path, "qa", "pictures")))
    assert [type(record) for record in found] == [Record, Record, BadRecord]
    assert "1.json[1]" in str(found[2])


def test_images_lose_their_exif(tmp_path: Path) -> None:
    """The same pixels are the same image, whatever the file says beside them."""
    picture = Image.effect_noise((24, 24), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x010E] = "Patient: Jane Doe"
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.png", exif=exif, compress_level=1)
    plain, tagged = read(tmp_path, [good(0), good(1, image_path="b.png")])
    assert isinstance(plain, Record)
    assert isinstance(tagged, Record)
    assert plain.image == tagged.image
    assert b"Jane" in (tmp_path / "b.png").read_bytes()
    assert b"Jane" not in ImageStore(tmp_path).path(tagged.image.sha256).read_bytes()


def test_the_published_folder_is_understood(tmp_path: Path) -> None:
    """OmniMedVQA/QA_information/Open-access/*.json beside OmniMedVQA/Images; what needs a licence is left alone."""
    root = tmp_path / "OmniMedVQA"
    (root / "QA_information/Open-access").mkdir(parents=True)
    (root / "QA_information/Restricted-access").mkdir(parents=True)
    (root / "Images/ACRIMA").mkdir(parents=True)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(root / "Images/ACRIMA/a.png")
    (root / "QA_information/Open-access/ACRIMA.json").write_text(json.dumps([good(image_path="Images/ACRIMA/a.png")]))
    (root / "QA_information/Restricted-access/X.json").write_text(json.dumps([good(2, image_path="Images/X/a.png")]))
    (record,) = omnimedvqa.read(place(tmp_path, "OmniMedVQA"))
    assert isinstance(record, Record)
    assert (record.image_path, record.dataset) == ("Images/ACRIMA/a.png", "demo")


def test_patients_are_pseudonyms(tmp_path: Path) -> None:
    first, second, third = read(tmp_path, [good(0, patient_id="Doe"), good(1, patient_id="Doe"), good(2)])
    assert isinstance(first, Record)
    assert isinstance(second, Record)
    assert isinstance(third, Record)
    assert first.patient == second.patient != ""
    assert "Doe" not in first.patient
    assert third.patient == ""


def test_the_sources_modality_is_used_where_a_record_has_none(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "q.json").write_text(json.dumps([good(0), good(1, modality_type=...)]))
    modalities = [
        record.modality
        for record in omnimedvqa.read(place(tmp_path, "q.json", modality="X-Ray"))
        if isinstance(record, Record)
    ]
    assert modalities == ["CT", "X-Ray"]


def test_records_come_one_at_a_time(tmp_path: Path) -> None:
    """The first record is there before a mistake at the end of the file is found."""
    text = json.dumps([good(index) for index in range(3000)])[:-1] + "oops"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "q.json").write_text(text)
    records = omnimedvqa.read(place(tmp_path, "q.json"))
    assert isinstance(next(records), Record)
    with pytest.raises(DataError, match="not JSON"):
        list(records)


def test_a_file_that_leads_out_of_the_workspace_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    (root / "data").mkdir(parents=True)
    (tmp_path / "outside.json").write_text("[]")
    (root / "data/q.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(DataError, match="leads outside the workspace"):
        list(omnimedvqa.read(place(root, "data")))
