"""Generic visual question answering: one JSON object a line.

| field | |
|---|---|
| image | path of the picture, relative to the folder of images |
| question, options | text, and a list of at least two texts |
| answer | the right option: its text, its letter, or its index from 0 (a number); `gold_answers` |
| answer_text, answer_letter, answer_index | the same, said which (the index from 0) |
| id, rationale, modality, question_type, patient, dataset | may be missing |
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from .gold_answers import AnswerReader, list_of, options_of
from .record import (
    BadField,
    BadRecord,
    Identities,
    Images,
    Place,
    Record,
    json_type,
    optional_text,
    text,
)


def read(place: Place) -> Iterator[Record | BadRecord]:
    """Reads a file, or every `*.jsonl` of a folder in the order of their names, a line at a time.

    Raises:
        DataError: nothing there, or a file leads out of the workspace.
    """
    images, identities = Images(place), Identities()
    for file in _files(place):
        folder = place.images or file.parent
        answers = AnswerReader(place, _answers(place.keep_inside(file)), field="answer")
        for number, line in _lines(file):
            where, document = f"{place.shown(file)}[{number}]", dict[str, Any]()
            try:
                document = _parse(line)
                record = _record(document, where, place, file, folder, images, answers)
                identities.take(record.question_id, where, "id")
                yield record
            except BadField as bad:
                images.note(folder, document.get("image"))
                yield BadRecord(where, bad.field, bad.reason)


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that hold anything, with their numbers from 0."""
    with file.open("rb") as lines:
        yield from ((number, line) for number, line in enumerate(lines) if line.strip())


def _answers(file: Path) -> Iterator[dict[str, Any]]:
    """Options and answer of each line that has them."""
    for _, line in _lines(file):
        try:
            document = _parse(line)
            yield {**document, "options": options_of(list_of(document.get("options"), "options"), "options")}
        except BadField:
            continue


def _files(place: Place) -> list[Path]:
    if place.path.is_file():
        return [place.path]
    if not place.path.exists():
        raise DataError(f"{place.what}: {place.path} does not exist; copy the data onto the volume or correct the path")
    files = sorted(file for file in place.path.glob("*.jsonl") if file.is_file())
    if not files:
        raise DataError(f"{place.what}: {place.path} holds no *.jsonl file (sub-folders are not searched)")
    return files


def _parse(line: bytes) -> dict[str, Any]:
    try:
        document = json.loads(line.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise BadField("-", f"not JSON: {error.msg} at column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise BadField("-", f"not UTF-8 text (byte {error.start} of the line)") from error
    except ValueError as error:  # a number of thousands of digits
        raise BadField("-", f"not readable: {error}") from error
    except RecursionError as error:
        raise BadField("-", "JSON nested too deeply") from error
    if not isinstance(document, dict):
        raise BadField("-", f"must be a JSON object, but is a JSON {json_type(document)}")
    return document


def _record(
    document: dict[str, Any],
    where: str,
    place: Place,
    file: Path,
    folder: Path,
    images: Images,
    answers: AnswerReader,
) -> Record:
    options = options_of(list_of(document.get("options"), "options"), "options")
    question, answer_index = text(document, "question"), answers.index(document, options)
    modality = optional_text(document, "modality") or place.modality
    if not modality:
        raise BadField("modality", "is missing, and the source's own `modality` is not set in the spec")
    image_path = text(document, "image")
    return Record(
        question_id=optional_text(document, "id") or where,
        image=images.get(folder, image_path, "image"),
        image_path=image_path,
        where=where,
        dataset=optional_text(document, "dataset") or file.name,
        modality=modality,
        patient=place.names.identity(optional_text(document, "patient")),
        question_type=optional_text(document, "question_type") or "Question",
        question=question,
        options=options,
        answer_index=answer_index,
        rationale=optional_text(document, "rationale"),
    )
