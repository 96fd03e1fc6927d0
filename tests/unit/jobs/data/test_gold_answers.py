"""A row that can be read in two ways is decided by its file, or by what it declares, or set aside: never by us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.unit.jobs.data.test_omnimedvqa import good as omni_row
from tests.unit.jobs.data.test_omnimedvqa import place

from medgr2_api.data import AnswerKey
from medgr2_jobs.data import omnimedvqa, vqajsonl
from medgr2_jobs.data.record import BadRecord, Place, Record

Row = dict[str, Any]
LABELS = ["A", "C", "D", "E", "B"]
FINDINGS = ["Cyst", "Mass", "Polyp", "None"]


def line(options: list[Any], answer: Any = ..., **fields: Any) -> Row:
    row = {"image": "a.png", "question": "What?", "options": options, "answer": answer, "modality": "CT"} | fields
    return {name: value for name, value in row.items() if value is not ...}


def read(root: Path, *rows: Row, **source: Any) -> tuple[list[Record | BadRecord], Place]:
    Image.new("RGB", (8, 8)).save(root / "a.png")
    (root / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    where = place(root, "q.jsonl", format="VQAJsonl", **source)
    return list(vqajsonl.read(where)), where


def right(records: list[Record | BadRecord]) -> list[int | None]:
    """The right option of each; None: set aside."""
    return [record.answer_index if isinstance(record, Record) else None for record in records]


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (LABELS, "B"),
        (LABELS, "b"),
        ([*LABELS[:4], "b"], "B"),
        ([1, 2, 3, 4], 2),
        (["1", "2", "3", "4"], 2),
        ([1.0, 2.0, 3.0], 2.0),
        (["2", "0", "1"], 1),
    ],
)
def test_alone_it_is_set_aside_and_says_both(tmp_path: Path, options: list[Any], answer: Any) -> None:
    (record,), _ = read(tmp_path, line(options, answer))
    assert isinstance(record, BadRecord)
    assert record.field == "answer"
    assert "as text" in record.reason
    assert "answer_letter" in record.reason
    assert "answerKey" in record.reason


@pytest.mark.parametrize(
    ("others", "answer", "expected"),
    [
        (["A", "D", "c"], "B", 1),
        (["(A)", "B.", "Option C"], "B", 1),
        (["Cyst", "none", "Polyp."], "B", 4),
        (["Cyst", "C", "Polyp"], "B", None),  # the file has both ways
    ],
)
def test_the_file_decides_between_letter_and_text(
    tmp_path: Path, others: list[str], answer: str, expected: int | None
) -> None:
    rows = [line(FINDINGS, other) for other in others]
    for order in ([*rows, line(LABELS, answer)], [line(LABELS, answer), *rows]):
        found, _ = read(tmp_path, *order)
        assert right(found)[order.index(line(LABELS, answer))] == expected
        assert right(found).count(None) == (expected is None)


@pytest.mark.parametrize(
    ("others", "answer", "expected"),
    [
        ([0, 3], 2, 2),  # counted from 0
        ([1, 4], 2, 1),  # counted from 1: one is the fourth of four
        (["0", "3"], "2", 2),
        (["1", "4"], "2", 1),
        ([1.0, 4.0], 2.0, 1),  # as a table writes them that has an empty cell
    ],
)
def test_the_file_decides_where_it_counts_from(tmp_path: Path, others: list[Any], answer: Any, expected: int) -> None:
    found, where = read(tmp_path, *(line(FINDINGS, other) for other in others), line([1, 2, 3, 4], answer))
    assert right(found)[-1] == expected
    assert None not in right(found)
    assert where.read_as == {AnswerKey.INDEX_FROM_0 if expected == 2 else AnswerKey.INDEX_FROM_1: 3}


def test_digits_as_text_that_could_count_from_0_or_1_are_set_aside(tmp_path: Path) -> None:
    found, _ = read(tmp_path, line(FINDINGS, "1"), line(FINDINGS, "2"))
    assert right(found) == [None, None]
    assert "an index from 0 and 'Cyst' as an index from 1" in str(found[0])


def test_the_point_of_a_decimal_number_is_no_punctuation(tmp_path: Path) -> None:
    records, _ = read(tmp_path, line(["5", "0.5", "a"], ".5"), line(["5", ".5", "a"], ".5."), line(["5", "7"], "...5"))
    assert right(records) == [None, 1, 0]


@pytest.mark.parametrize("field", ["answer", "answer_letter", "options", "image", "patient"])
def test_what_is_said_of_a_record_is_short_however_long_its_fields_are(tmp_path: Path, field: str) -> None:
    """It goes into a table, a report and the status of the cycle."""
    long = "x" * 100_000
    value = {"options": ["a", f"{long}y", f"{long}z"], "patient": [long]}.get(field, long)
    (record,), _ = read(tmp_path, {**line(["a", "b"], "neither" if field == "options" else "a"), field: value})
    assert isinstance(record, BadRecord)
    assert len(str(record)) < 2500
    assert record.reason


def test_a_number_counts_from_0_where_nothing_says_otherwise(tmp_path: Path) -> None:
    found, _ = read(tmp_path, line(FINDINGS, 1), line(FINDINGS, 2))
    assert right(found) == [1, 2]


def test_numbers_among_the_options_are_meant_where_every_row_has_them(tmp_path: Path) -> None:
    found, where = read(tmp_path, line([10, 20, 30], 20), line([1, 2, 3, 4], 2), line(["1.5", "2"], 2))
    assert right(found) == [1, 1, 1]
    assert where.read_as == {AnswerKey.TEXT: 3}


def test_readings_that_agree_need_no_decision(tmp_path: Path) -> None:
    found, _ = read(tmp_path, line(["A", "B", "C"], "B"), line(["0", "1", "2"], 1))
    assert right(found) == [1, 1]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"answer_letter": "B"}, 1),
        ({"answer_text": "B"}, 4),
        ({"answer_index": 1}, 1),
        ({"answer_index": "1"}, 1),
        ({"answer_index": 0}, 0),
        ({"answer_letter": "B", "answer": "C"}, 1),  # C is the second by its text
        ({"answer_letter": "B", "answer_index": 1.0, "answer_text": None, "answer": float("nan")}, 1),
        ({"answer_letter": "B", "answer": "E"}, None),
        ({"answer_letter": "B", "answer_text": "B"}, None),
        ({"answer_letter": "F"}, None),
        ({"answer_text": "F"}, None),
        ({"answer_index": 5}, None),
    ],
)
def test_a_record_says_which(tmp_path: Path, fields: Row, expected: int | None) -> None:
    found, _ = read(tmp_path, line(LABELS, **fields))
    assert right(found) == [expected], found


@pytest.mark.parametrize(
    ("key", "options", "answer", "expected"),
    [
        ("Text", LABELS, "B", 4),
        ("Letter", LABELS, "B", 1),
        ("Letter", FINDINGS, "Mass", None),
        ("Text", FINDINGS, "B", None),
        ("IndexFrom0", [1, 2, 3, 4], 2, 2),
        ("IndexFrom1", [1, 2, 3, 4], "2", 1),
        ("IndexFrom1", FINDINGS, 0, None),
        ("Text", [1, 2, 3, 4], 2, 1),
    ],
)
def test_the_source_says_which(tmp_path: Path, key: str, options: list[Any], answer: Any, expected: int | None) -> None:
    found, _ = read(tmp_path, line(options, answer), answerKey=key)
    assert right(found) == [expected], found


@pytest.mark.parametrize(
    ("options", "answer", "expected"),
    [
        (["A. Cyst", "B. Mass"], "B", 1),
        (["A. Cyst", "B. Mass"], "Mass", 1),
        (["a) Cyst", "b) Mass"], "B. Mass", 1),
        (["(A) Cyst", "(B) Mass"], "(B)", 1),
        (["A、肺炎", "B、结核"], "Ｂ", 1),
        (["Cyst", "Mass"], "B. Mass", 1),
        (["Cyst", "Mass"], "A. Mass", None),  # contradicts itself
        (["Cyst", "Cyst.", "Mass"], "cyst", None),  # two read alike
        (["Cyst", "Cyst", "Mass"], "A", None),  # another option says the same
        (["Cyst", "Cyst", "Mass"], "C", 2),
    ],
)
def test_letters_in_front_and_options_that_read_alike(
    tmp_path: Path, options: list[str], answer: str, expected: int | None
) -> None:
    (record,), _ = read(tmp_path, line(options, answer))
    assert right([record]) == [expected]
    if isinstance(record, Record):
        assert not any(option.startswith(("A.", "a)", "(A)", "A、")) for option in record.options)


def test_options_are_left_as_they_are_unless_each_has_its_own_letter(tmp_path: Path) -> None:
    bacteria = ["E. coli", "S. aureus", "C. difficile", "A. baumannii"]
    (record,), _ = read(tmp_path, line(bacteria, "C. difficile"))
    assert isinstance(record, Record)
    assert (record.options, record.answer_index) == (tuple(bacteria), 2)


def omni(root: Path, *rows: Row, **source: Any) -> list[int | None]:
    Image.new("RGB", (8, 8)).save(root / "a.png")
    (root / "q.json").write_text(json.dumps([row | {"question_id": f"q{n}"} for n, row in enumerate(rows)]))
    return right(list(omnimedvqa.read(place(root, "q.json", **source))))


def labels(answer: str) -> Row:
    return omni_row(gt_answer=answer, **{f"option_{at}": text for at, text in zip("ABCDE", LABELS, strict=True)})


def test_omnimedvqa_means_the_text_unless_its_file_says_otherwise(tmp_path: Path) -> None:
    assert omni(tmp_path, labels("B")) == [4]
    assert omni(tmp_path, labels("B"), omni_row(gt_answer="Cyst")) == [4, 1]
    assert omni(tmp_path, labels("B"), omni_row(gt_answer="B"), omni_row(gt_answer="A")) == [1, 1, 0]
    assert omni(tmp_path, labels("B"), omni_row(gt_answer="B"), omni_row(gt_answer="Cyst")) == [None, None, 1]
    assert omni(tmp_path, labels("B"), answerKey="Letter") == [1]


def test_omnimedvqa_letters_are_those_of_the_columns(tmp_path: Path) -> None:
    row = omni_row(option_B=None, option_C="Cyst", gt_answer="C")
    assert omni(tmp_path, row, omni_row(gt_answer="B")) == [1, 1]
