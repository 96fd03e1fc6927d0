"""Every reader says which pictures its source has, also those of records that cannot be used: one of them may be the
same as another source's, which may leave the site."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medgr2_api.data import MMMU, DataFormat, DataSource
from medgr2_jobs.data import format_registry
from medgr2_jobs.data.pseudonyms import Names
from medgr2_jobs.data.record import BadRecord, Place
from medgr2_jobs.store.images import ImageStore

RED, GREEN = Image.linear_gradient("L").convert("RGB"), Image.radial_gradient("L").convert("RGB")


def _jsonl(folder: Path, field: str, **bad: Any) -> None:
    said = {"image": "red.png", "question": "q", "options": ["a", "b"], "answer": "a", "modality": "CT"}
    rows = [{**said, "id": "1"}, {**said, "id": "2", "image": "green.png", field: bad.get(field)}]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _omni(folder: Path, field: str, **bad: Any) -> None:
    said = {"question_id": "1", "question_type": "t", "question": "q", "gt_answer": "a", "image_path": "red.png",
            "option_A": "a", "option_B": "b", "modality_type": "CT"}  # fmt: skip
    rows = [said, {**said, "question_id": "2", "image_path": "green.png", field: bad.get(field)}]
    (folder / "q.json").write_text(json.dumps(rows))


def _folder(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,modality\nred.png,CT\ngreen.png,\n")


def _mmmu(folder: Path, **bad: Any) -> None:
    rows = []
    for name, picture in (("1", RED), ("2", GREEN)):
        data = io.BytesIO()
        picture.save(data, "PNG")
        rows.append({"id": name, "question": "q", "options": "['a', 'b']", "answer": "A", "img_type": "['CT']",
                     "question_type": "multiple-choice", "subfield": "s", "explanation": "",
                     "image_1": {"bytes": data.getvalue(), "path": "x"}})  # fmt: skip
    rows[1] |= bad
    (folder / "Pharmacy").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "Pharmacy" / "validation-00000-of-00001.parquet")


@pytest.mark.parametrize(
    ("format", "write"),
    [
        *((DataFormat.VQA_JSONL, lambda at, f=f, v=v: _jsonl(at, f, **{f: v}))
          for f, v in [("answer", "c"), ("options", ["a"]), ("question", None), ("modality", None), ("id", "1"),
                       ("patient", {}), ("rationale", []), ("question_type", True)]),
        *((DataFormat.OMNIMEDVQA, lambda at, f=f, v=v: _omni(at, f, **{f: v}))
          for f, v in [("gt_answer", "c"), ("option_B", None), ("question", ""), ("modality_type", ""),
                       ("question_id", "1"), ("question_type", None), ("rationale", {"x": 1}), ("patient_id", [])]),
        (DataFormat.IMAGE_FOLDER, _folder),
        *((DataFormat.MMMU, lambda at, f=f, v=v: _mmmu(at, **{f: v}))
          for f, v in [("answer", "?"), ("options", "no"), ("question_type", "open"), ("id", "1"), ("question", "")]),
    ],
)  # fmt: skip
def test_pictures_of_unusable_records_are_named(
    tmp_path: Path, format: DataFormat, write: Callable[[Path], None]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    if format is not DataFormat.MMMU:
        RED.save(folder / "red.png")
        GREEN.save(folder / "green.png")
    write(folder)
    mmmu = MMMU(subjects=["Pharmacy"]) if format is DataFormat.MMMU else None
    source = DataSource(name="x", format=format, uri="data", mmmu=mmmu)
    store = ImageStore(tmp_path)
    place = Place(source, tmp_path, folder, "data.sources[x].uri", store, 10_000, Names(b"key", clear=False))
    found = list(format_registry.reader(source, "data.sources[x]")(place))
    assert [type(record) is BadRecord for record in found].count(True) == 1
    assert place.named_images == {store.add(picture, 10_000).sha256 for picture in (RED, GREEN)}


def test_a_picture_that_cannot_be_read_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(
        "".join(
            json.dumps({"image": name}) + "\n" for name in ("none.png", "/etc/passwd", "../x.png", 3, None, ["x"], "")
        )
    )
    source = DataSource(name="x", format=DataFormat.VQA_JSONL, uri="q.jsonl")
    place = Place(
        source, tmp_path, tmp_path / "q.jsonl", "uri", ImageStore(tmp_path), 10_000, Names(b"key", clear=False)
    )
    assert all(isinstance(record, BadRecord) for record in format_registry.reader(source, "x")(place))
    assert place.named_images == set()
