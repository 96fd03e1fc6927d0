"""MMMU as it is published: parquet by subject, options as a Python list in text, several images a question."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.unit.jobs.data.test_omnimedvqa import place

from medgr2_api.data import MMMU
from medgr2_jobs.data import mmmu
from medgr2_jobs.data.decoder import pictures
from medgr2_jobs.data.record import BadRecord, Record
from medgr2_jobs.errors import DataError
from medgr2_jobs.store.images import ImageStore

SUBJECT = "Clinical_Medicine"


def png(colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": "x.png"}


def row(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"validation_{SUBJECT}_{number}",
        "question": "What does <image 1> show?",
        "options": "['Cyst', \"Crohn's disease\", 'Mass']",
        "explanation": "",
        **{f"image_{index}": None for index in range(2, 8)},
        "image_1": png((200, 10, 10)),
        "img_type": "['Pathological Images']",
        "answer": "B",
        "topic_difficulty": "Easy",
        "question_type": "multiple-choice",
        "subfield": "Clinical Pathology",
        **changes,
    }


def write(root: Path, rows: list[dict[str, Any]], subject: str = SUBJECT, split: str = "validation") -> None:
    (root / "mmmu" / subject).mkdir(parents=True, exist_ok=True)
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({name: image if name.startswith("image_") else pa.string() for name in row()})
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, root / "mmmu" / subject / f"{split}-00000-of-00001.parquet")


def read(root: Path, **settings: Any) -> list[Record | BadRecord]:
    return list(mmmu.read(place(root, "mmmu", format="MMMU", mmmu=MMMU(subjects=[SUBJECT], **settings))))


def test_a_question_as_published(tmp_path: Path) -> None:
    write(tmp_path, [row(explanation="Granulomas.")])
    (record,) = read(tmp_path)
    assert isinstance(record, Record)
    assert record.options == ("Cyst", "Crohn's disease", "Mass")
    assert (record.answer_index, record.modality, record.dataset) == (1, "Microscopy", SUBJECT)
    assert (record.question_type, record.rationale) == ("Clinical Pathology", "Granulomas.")
    assert ImageStore(tmp_path).load(record.image.sha256).getpixel((5, 5)) == (200, 10, 10)


def test_several_images_lie_side_by_side_in_their_order(tmp_path: Path) -> None:
    pictures = {"image_1": png((255, 0, 0)), "image_2": png((0, 255, 0), (20, 60)), "image_3": png((0, 0, 255))}
    write(tmp_path, [row(options="['<image 1>', '<image 2>', '<image 3>']", answer="C", **pictures)])
    (record,) = read(tmp_path)
    assert isinstance(record, Record)
    assert record.options == ("<image 1>", "<image 2>", "<image 3>")
    whole = ImageStore(tmp_path).load(record.image.sha256)
    middle = [whole.getpixel((x, 45)) for x in range(whole.width)]
    colours = [colour for colour in dict.fromkeys(middle) if colour != (255, 255, 255)]
    assert colours == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert whole.crop((0, 0, whole.width, 26)).convert("L").getextrema()[0] < 100, "their numbers stand above them"


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"question_type": "open"}, "question_type", "'open': only multiple-choice"),
        ({"answer": "?"}, "answer", "the test split is published without answers"),
        ({"answer": "D"}, "answer", "'D' is no letter of 3 options"),
        ({"options": "__import__('os').system('true')"}, "options", "is not a Python list"),
        ({"options": "[]"}, "options", "at least 2 options"),
        ({"options": "['a', '']"}, "options", "one of them is empty"),
        ({"image_1": None}, "image_1", "is missing"),
        ({"image_1": {"bytes": b"\x89PNG broken", "path": "x"}}, "image_1", "not a readable image"),
        ({"question": ""}, "question", "is empty"),
        ({"id": row(0)["id"]}, "id", f"is the same as in {SUBJECT}/validation-00000-of-00001.parquet[0]"),
    ],
)
def test_a_bad_question_is_named(tmp_path: Path, changes: dict[str, Any], field: str, reason: str) -> None:
    write(tmp_path, [row(0), row(1, **changes), row(2)])
    first, bad, last = read(tmp_path)
    assert isinstance(first, Record)
    assert isinstance(last, Record)
    assert isinstance(bad, BadRecord)
    assert bad.where == f"{SUBJECT}/validation-00000-of-00001.parquet[1]"
    assert bad.field == field
    assert reason in bad.reason


def test_subjects_and_splits_are_those_of_the_spec(tmp_path: Path) -> None:
    write(tmp_path, [row()], split="dev")
    write(tmp_path, [row(1)], subject="Art")
    with pytest.raises(DataError, match=r"has no validation-\*\.parquet"):
        read(tmp_path)
    assert len(read(tmp_path, split="dev")) == 1
    where = place(tmp_path, "mmmu", format="MMMU", mmmu=MMMU(subjects=["Pharmacy"]))
    with pytest.raises(DataError, match=r"subjects there: Art, Clinical_Medicine"):
        list(mmmu.read(where))


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, [row()])
    file = tmp_path / "mmmu" / SUBJECT / "validation-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a readable parquet file"):
        read(tmp_path)


def test_the_order_of_subjects_is_the_specs(tmp_path: Path) -> None:
    write(tmp_path, [row(0)])
    write(tmp_path, [row(1)], subject="Pharmacy")
    where = place(tmp_path, "mmmu", format="MMMU", mmmu=MMMU(subjects=["Pharmacy", SUBJECT]))
    assert [record.dataset for record in mmmu.read(where) if isinstance(record, Record)] == ["Pharmacy", SUBJECT]


def test_small_files_of_huge_pictures_are_scaled_before_they_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[Image.Image] = []
    side_by_side = pictures.side_by_side
    monkeypatch.setattr(pictures, "side_by_side", lambda each: joined.extend(each) or side_by_side(each))
    buffer = io.BytesIO()
    Image.new("1", (3000, 3000)).save(buffer, "PNG")
    whole, parts = pictures.joined([(f"image_{number}", buffer.getvalue()) for number in (1, 2, 3)], 401_408)
    assert [picture.width * picture.height <= 401_408 for picture in joined] == [True] * 3
    assert len(set(parts)) == 1, "three times the same, as each would be stored"
    assert whole.width == sum(picture.width for picture in joined) + 4 * 12
