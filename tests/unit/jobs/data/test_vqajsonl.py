"""Generic visual question answering: a broken line is one bad record, never a broken file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.unit.jobs.data.test_omnimedvqa import place

from medgr2_jobs.data import vqajsonl
from medgr2_jobs.data.record import BadRecord, Record
from medgr2_jobs.errors import DataError


def good(**changes: Any) -> dict[str, Any]:
    line = {
        "image": "a.png",
        "question": "What?",
        "options": ["Cyst", "Mass", "None"],
        "answer": "Mass",
        "modality": "CT",
    }
    return {key: value for key, value in (line | changes).items() if value is not ...}


def read(root: Path, *lines: Any, modality: str = "") -> list[Record | BadRecord]:
    Image.new("RGB", (8, 8)).save(root / "a.png")
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / "q.jsonl").write_text(text + "\n")
    return list(vqajsonl.read(place(root, "q.jsonl", modality=modality)))


@pytest.mark.parametrize("answer", ["Mass", "mass.", "B", "b", 1])
def test_the_answer_is_a_text_a_letter_or_an_index(tmp_path: Path, answer: Any) -> None:
    (record,) = read(tmp_path, good(answer=answer))
    assert isinstance(record, Record)
    assert record.answer_index == 1
    assert record.question_id == "q.jsonl[0]"


def test_an_option_that_is_called_like_a_letter_is_meant_where_the_record_says_so(tmp_path: Path) -> None:
    (record,) = read(tmp_path, good(options=["B", "A"], answer=..., answer_text="A"))
    assert isinstance(record, Record)
    assert record.answer_index == 1


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        ("{", "-", "not JSON"),
        ("[" * 100_000, "-", "JSON nested too deeply"),
        ("[1]", "-", "must be a JSON object, but is a JSON list"),
        (good(options="Cyst"), "options", "must be a list, but is a JSON text"),
        (good(options=...), "options", "is missing"),
        (good(options=["Cyst"]), "options", "at least 2"),
        (good(options=["Cyst", ""]), "options", "none of which may be empty"),
        (good(options=[str(n) for n in range(27)]), "options", "letters for 26"),
        (good(answer=...), "answer", "is missing"),
        (good(answer=3), "answer", "no index of 3 options, which count from 0"),
        (good(answer=True), "answer", "must be text"),
        (good(answer="D"), "answer", "'D' is not among the options"),
        (good(modality=...), "modality", "is missing, and the source's own"),
        (good(image="../a.png"), "image", "must not contain '..'"),
        (good(image="no.png"), "image", "image file is missing"),
        (good(id="one"), "id", "is the same as in q.jsonl[0]"),
    ],
)
def test_a_bad_line_is_named_and_the_next_is_read(tmp_path: Path, line: Any, field: str, reason: str) -> None:
    first, bad, last = read(tmp_path, good(id="one"), line, good(id="two"))
    assert isinstance(first, Record)
    assert isinstance(last, Record)
    assert isinstance(bad, BadRecord)
    assert (bad.where, bad.field) == ("q.jsonl[1]", field)
    assert reason in bad.reason


def test_what_may_be_missing(tmp_path: Path) -> None:
    whole = good(id="x", rationale="Round.", question_type="Diagnosis", patient="Doe", dataset="lab")
    full, bare = read(tmp_path, whole, good(modality=...), modality="X-Ray")
    assert isinstance(full, Record)
    assert isinstance(bare, Record)
    assert (full.rationale, full.question_type, full.dataset, full.modality) == ("Round.", "Diagnosis", "lab", "CT")
    assert "Doe" not in full.patient
    assert (bare.question_type, bare.dataset, bare.modality, bare.patient) == ("Question", "q.jsonl", "X-Ray", "")


def test_a_folder_of_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        list(vqajsonl.read(place(tmp_path, "none")))
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"holds no \*\.jsonl"):
        list(vqajsonl.read(place(tmp_path, "data")))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name in ("2", "1"):
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n" + json.dumps(good(id=name)) + "\n\n")
    found = [r.question_id for r in vqajsonl.read(place(tmp_path, "data", ".")) if isinstance(r, Record)]
    assert found == ["1", "2"]


def test_a_file_that_leads_out_of_the_workspace_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    (root / "data").mkdir(parents=True)
    (tmp_path / "outside.jsonl").write_text("[]")
    (root / "data/q.jsonl").symlink_to(tmp_path / "outside.jsonl")
    with pytest.raises(DataError, match="leads outside the workspace"):
        list(vqajsonl.read(place(root, "data")))
