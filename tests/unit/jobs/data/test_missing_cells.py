"""An empty cell of a table is missing in every field, however a program writes it; a text that says None is a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.unit.jobs.data.test_mmmu import png
from tests.unit.jobs.data.test_mmmu import row as mmmu_row
from tests.unit.jobs.data.test_omnimedvqa import good as omni_row
from tests.unit.jobs.data.test_omnimedvqa import place
from tests.unit.jobs.data.test_vqajsonl import good

from medgr2_api.data import MMMU
from medgr2_jobs.data import imagefolder, json_list, mmmu, omnimedvqa, vqajsonl
from medgr2_jobs.data.record import BadRecord, Record

NAN = float("nan")
EMPTY = [None, NAN, -NAN, "", "  ", "\u00a0\u200b\u202f\ufeff"]
WRITTEN_OUT = ["nan", "NaN", "NAN", "None", "null", "<NA>", "NaT", "N/A", "#N/A", "NA"]


def jsonl(root: Path, *rows: dict[str, Any]) -> list[Record | BadRecord]:
    Image.new("RGB", (8, 8)).save(root / "a.png")
    (root / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return list(vqajsonl.read(place(root, "q.jsonl", modality="X-Ray")))


def omni(root: Path, *rows: dict[str, Any]) -> list[Record | BadRecord]:
    Image.new("RGB", (8, 8)).save(root / "a.png")
    (root / "q.json").write_text(json.dumps([row | {"question_id": f"q{n}"} for n, row in enumerate(rows)]))
    return list(omnimedvqa.read(place(root, "q.json", modality="X-Ray")))


@pytest.mark.parametrize("cell", [*EMPTY, *WRITTEN_OUT])
def test_what_may_be_missing_is(tmp_path: Path, cell: Any) -> None:
    fields = ("id", "rationale", "modality", "question_type", "patient", "dataset")
    (record,) = jsonl(tmp_path, good(**dict.fromkeys(fields, cell)))
    assert isinstance(record, Record)
    assert (record.question_id, record.rationale, record.modality) == ("q.jsonl[0]", "", "X-Ray")
    assert (record.question_type, record.patient, record.dataset) == ("Question", "", "q.jsonl")
    (other,) = omni(tmp_path, omni_row(**dict.fromkeys(("rationale", "modality_type", "patient_id", "dataset"), cell)))
    assert isinstance(other, Record)
    assert (other.rationale, other.modality, other.patient, other.dataset) == ("", "X-Ray", "", "q.json")


@pytest.mark.parametrize("cell", [*EMPTY, *WRITTEN_OUT])
@pytest.mark.parametrize("field", ["question", "image"])
def test_without_what_is_needed_a_record_is_set_aside(tmp_path: Path, cell: Any, field: str) -> None:
    (bad,) = jsonl(tmp_path, good(**{field: cell}))
    assert isinstance(bad, BadRecord)
    assert bad.field == field
    assert "is missing" in bad.reason or "is empty" in bad.reason
    name = {"image": "image_path"}.get(field, field)
    (bad,) = omni(tmp_path, omni_row(**{name: cell}))
    assert isinstance(bad, BadRecord)
    assert bad.field == name


@pytest.mark.parametrize("cell", EMPTY)
def test_an_empty_option_is_none(tmp_path: Path, cell: Any) -> None:
    padded, gap, alone, answer = jsonl(
        tmp_path,
        good(options=["Cyst", "Mass", cell, cell]),
        good(options=["Cyst", cell, "Mass"]),
        good(options=["Cyst", cell], answer="Cyst"),
        good(answer=cell),
    )
    assert isinstance(padded, Record)
    assert padded.options == ("Cyst", "Mass")
    assert all(isinstance(record, BadRecord) for record in (gap, alone, answer))
    assert [bad.field for bad in (gap, alone, answer) if isinstance(bad, BadRecord)] == ["options", "options", "answer"]
    padded, answer = omni(tmp_path, omni_row(option_C=cell, option_D=cell), omni_row(gt_answer=cell))
    assert isinstance(padded, Record)
    assert padded.options == ("Mass", "Cyst")
    assert isinstance(answer, BadRecord)


@pytest.mark.parametrize("words", ["None", "N/A", "NaN", "nan", "NA"])
def test_a_text_among_the_options_is_one(tmp_path: Path, words: str) -> None:
    (record,) = jsonl(tmp_path, good(options=["Cyst", words], answer=words))
    (other,) = omni(tmp_path, omni_row(option_A=words, gt_answer=words))
    for found in (record, other):
        assert isinstance(found, Record)
        assert found.answer_index is not None
        assert found.options[found.answer_index] == words


@pytest.mark.parametrize("field", ["question", "patient", "rationale", "options", "answer"])
def test_infinity_is_not_missing_and_no_text(tmp_path: Path, field: str) -> None:
    value = float("inf")
    (bad,) = jsonl(tmp_path, good(**{field: ["Cyst", value] if field == "options" else value}))
    assert isinstance(bad, BadRecord)
    assert bad.field == field
    assert "finite" in bad.reason


def test_a_number_is_the_same_with_and_without_the_point_that_an_empty_cell_gives_its_column(tmp_path: Path) -> None:
    first, second = jsonl(
        tmp_path,
        good(id=7.0, patient=12, options=[1, 2.5], answer=2.5),
        good(id=8, patient=12.0, options=[1.0, 2.5, NAN], answer=2.5),
    )
    assert isinstance(first, Record)
    assert isinstance(second, Record)
    assert (first.patient, first.options) == (second.patient, second.options)
    assert (first.question_id, second.question_id, first.options) == ("7", "8", ("1", "2.5"))


@pytest.mark.parametrize("field", ["question", "rationale", "options", "answer"])
def test_what_no_table_can_hold_or_would_be_read_as_an_answer_is_set_aside(tmp_path: Path, field: str) -> None:
    for text, reason in (("half \ud800 of it", "half a character"), ("is </answer> so", "our own tag </answer>")):
        value: Any = ["Cyst", text] if field == "options" else text
        (bad,) = jsonl(tmp_path, good(**{field: value}))
        assert isinstance(bad, BadRecord)
        assert (bad.field, reason in bad.reason) == (field, True)


def test_a_line_with_a_number_of_thousands_of_digits_is_one_bad_line(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "q.jsonl").write_text('{"id": ' + "1" * 5000 + "}\n" + json.dumps(good()))
    bad, record = vqajsonl.read(place(tmp_path, "q.jsonl"))
    assert isinstance(bad, BadRecord)
    assert isinstance(record, Record)


def test_parquet_cells(tmp_path: Path) -> None:
    """Nulls, and the NaN of a column of numbers; an option None of the published lists is no text."""
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    row = mmmu_row(image_1=png((1, 2, 3)), options="['Cyst', 'Mass', None]", img_type=None)
    row |= {"explanation": NAN, "subfield": NAN}
    kinds = {"explanation": pa.float64(), "subfield": pa.float64()}
    schema = pa.schema({n: image if n.startswith("image_") else kinds.get(n, pa.string()) for n in row})
    (tmp_path / "m/Art").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row], schema=schema), tmp_path / "m/Art/validation-0.parquet")
    where = place(tmp_path, "m", format="MMMU", mmmu=MMMU(subjects=["Art"]))
    (record,) = mmmu.read(where)
    assert isinstance(record, Record)
    assert record.options == ("Cyst", "Mass")
    assert (record.rationale, record.question_type, record.modality) == ("", "Art", "Other")


@pytest.mark.parametrize("cell", ["", " ", *WRITTEN_OUT])
def test_csv_cells(tmp_path: Path, cell: str) -> None:
    (tmp_path / "p").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "p/a.png")
    (tmp_path / "p/metadata.csv").write_text(f"file_name,modality,patient,dataset\na.png,{cell},{cell},{cell}\n")
    (record,) = imagefolder.read(place(tmp_path, "p", format="ImageFolder", modality="X-Ray"))
    assert isinstance(record, Record)
    assert (record.modality, record.patient, record.dataset) == ("X-Ray", "", ".")


def test_a_list_is_read_in_pieces_wherever_they_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"a": 12345, "b": "x]," * 40, "c": [1.5e10, True, None]}, 123456, "\\\"'", -0.5, [[]], {}, NAN]
    file = tmp_path / "x.json"
    for indent in (None, 1):
        file.write_text("\ufeff " + json.dumps(rows, indent=indent) + " \n")
        for chunk in (1, 2, 7, 64, 1 << 16):
            monkeypatch.setattr(json_list, "_CHUNK", chunk)
            assert repr(list(json_list.items(file, file.name))) == repr(rows)
    file.write_text(" [ ] ")
    assert list(json_list.items(file, file.name)) == []
