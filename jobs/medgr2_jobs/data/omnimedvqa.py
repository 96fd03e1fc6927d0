"""OmniMedVQA-style data: JSON lists of multiple-choice questions beside a folder of images.

Format (Hu et al., OmniMedVQA, CVPR 2024): each file is a JSON list of objects {dataset, question_id, question_type,
question, gt_answer, image_path, option_A … option_D, modality_type}. We also read optional `rationale` and
`patient_id`. A folder may be the published one: questions in `QA_information/Open-access/`, images beside it.

A bad record is not fatal by itself: it is handed out as `BadRecord` with file, record, field and reason. A bad file is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from ..errors import DataError
from .record import (
    BadField,
    BadRecord,
    Identities,
    Images,
    Place,
    Record,
    as_text,
    gold,
    json_type,
    optional_text,
    pseudonym,
    text,
)

OPTION_FIELDS = tuple(f"option_{letter}" for letter in "ABCDEFGH")
_PUBLISHED = Path("QA_information", "Open-access")
_BOM = b"\xef\xbb\xbf"
_DEEPEST = 64


def read(place: Place) -> Iterator[Record | BadRecord]:
    """Reads a file, or every `*.json` of a folder in the order of their names, one record in memory at a time.

    Raises:
        DataError: nothing there, a file that is not a JSON list, or one that leads out of the workspace.
    """
    files, images = _files(place)
    reader = _Reader(place)
    for file in files:
        yield from reader.records(place.keep_inside(file), images or file.parent)


def _files(place: Place) -> tuple[list[Path], Path | None]:
    """The files, and the folder of the images; None: beside each file."""
    path, images = place.path, place.images
    if path.is_file():
        return [path], images
    if not path.exists():
        raise DataError(f"{place.what}: {path} does not exist; copy the data onto the volume or correct the path")
    files = sorted(file for file in path.glob("*.json") if file.is_file())
    if not files and (path / _PUBLISHED).is_dir():
        files = sorted(file for file in (path / _PUBLISHED).glob("*.json") if file.is_file())
        images = images or path
    if not files:
        raise DataError(
            f"{place.what}: {path} holds no *.json file, and none in {_PUBLISHED} (other sub-folders are not searched)"
        )
    return files, images


def documents(file: Path) -> Iterator[Any]:
    """The items of a JSON list, one at a time.

    Raises:
        DataError: the file is not JSON, not a list, or nested too deeply.
    """
    with file.open("rb") as stream:
        if stream.read(len(_BOM)) != _BOM:
            stream.seek(0)
        try:
            yield from _items(stream, file)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise DataError(_explained(file, error)) from error


def _items(stream: BinaryIO, file: Path) -> Iterator[Any]:
    # not ijson.items: what that keeps of a nested document grows with the square of its depth
    events = ijson.basic_parse(stream, use_float=True)
    first, value = next(events)
    if first != "start_array":
        kind = "object" if first == "start_map" else json_type(value)
        raise DataError(f"{file}: must hold a JSON list of records, but holds a JSON {kind}")
    depth, builder = 0, ijson.ObjectBuilder()
    for event, value in events:
        if event == "end_array" and depth == 0:
            continue  # the list's own end; whatever follows is an error
        builder.event(event, value)
        depth += event.startswith("start_") - event.startswith("end_")
        if depth > _DEEPEST:
            raise DataError(f"{file}: JSON nested too deeply")
        if depth == 0:
            yield builder.value
            builder = ijson.ObjectBuilder()


def _explained(file: Path, error: Exception) -> str:
    """Where a file stops being JSON. The streaming parser does not count lines, Python's own does."""
    try:
        json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as found:
        return f"{file}: not JSON: {found.msg} at line {found.lineno}, column {found.colno}"
    except UnicodeDecodeError as found:
        return f"{file}: not UTF-8 text (byte {found.start})"
    return f"{file}: not JSON: {str(error).splitlines()[0]}"


class _Reader:
    """Checks records; remembers the images it has stored and the ids it has seen."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.images = Images(place)
        self.identities = Identities()

    def records(self, file: Path, image_folder: Path) -> Iterator[Record | BadRecord]:
        for index, document in enumerate(documents(file)):
            where = f"{file.name}[{index}]"
            try:
                if not isinstance(document, dict):
                    raise BadField("-", f"must be a JSON object, but is a JSON {json_type(document)}")
                if isinstance(question_id := document.get("question_id"), str):
                    where += f" (question_id {question_id!r})"
                yield self._record(document, where, file, image_folder)
            except BadField as bad:
                yield BadRecord(where, bad.field, bad.reason)

    def _record(self, document: dict[str, Any], where: str, file: Path, image_folder: Path) -> Record:
        question_id = text(document, "question_id")
        options = tuple(text(document, name) for name in OPTION_FIELDS if document.get(name) not in (None, ""))
        if len(options) < 2:
            raise BadField("option_A", f"{len(options)} option(s); at least 2 are needed")
        question, right = text(document, "question"), text(document, "gt_answer")
        image_path = text(document, "image_path")
        rationale = document.get("rationale") or ""
        if not isinstance(rationale, str):
            raise BadField("rationale", f"must be text, but is a JSON {json_type(rationale)}")
        answer_index = gold(right, options, "gt_answer")
        if self.identities.first(question_id):
            self.identities.take(question_id, where, "question_id")
        modality = optional_text(document, "modality_type") or self.place.modality
        record = Record(
            question_id=question_id,
            image=self.images.get(image_folder, image_path, "image_path"),
            image_path=image_path,
            dataset=optional_text(document, "dataset") or file.name,
            modality=modality or text(document, "modality_type"),
            patient=pseudonym(self.place.salt, optional_text(document, "patient_id")),
            question_type=text(document, "question_type"),
            question=question,
            options=options,
            answer_index=answer_index,
            rationale=as_text(rationale, "rationale"),
        )
        self.identities.take(question_id, where, "question_id")
        return record
