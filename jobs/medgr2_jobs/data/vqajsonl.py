"""Generic visual question answering: one JSON object a line.

| field | |
|---|---|
| image | path of the picture, relative to the folder of images |
| question, options | text, and a list of at least two texts |
| answer | the right option: its text, its letter, or its index from 0 (a number) |
| id, rationale, modality, question_type, patient, dataset | may be missing |
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..prompts.answers import LETTERS
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


def read(place: Place) -> Iterator[Record | BadRecord]:
    """Reads a file, or every `*.jsonl` of a folder in the order of their names, a line at a time.

    Raises:
        DataError: nothing there, or a file leads out of the workspace.
    """
    images, identities = Images(place), Identities()
    for file in _files(place):
        folder = place.images or file.parent
        with place.keep_inside(file).open("rb") as lines:
            for number, line in enumerate(lines):
                if not line.strip():
                    continue
                where = f"{file.name}[{number}]"
                try:
                    record = _record(_parse(line), where, place, file, folder, images)
                    identities.take(record.question_id, where, "id")
                    yield record
                except BadField as bad:
                    yield BadRecord(where, bad.field, bad.reason)


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
    except RecursionError as error:
        raise BadField("-", "JSON nested too deeply") from error
    if not isinstance(document, dict):
        raise BadField("-", f"must be a JSON object, but is a JSON {json_type(document)}")
    return document


def _record(document: dict[str, Any], where: str, place: Place, file: Path, folder: Path, images: Images) -> Record:
    options = _options(document)
    question, answer_index = text(document, "question"), _answer(document.get("answer"), options)
    modality = optional_text(document, "modality") or place.modality
    if not modality:
        raise BadField("modality", "is missing, and the source's own `modality` is not set in the spec")
    image_path = text(document, "image")
    return Record(
        question_id=optional_text(document, "id") or where,
        image=images.get(folder, image_path, "image"),
        image_path=image_path,
        dataset=optional_text(document, "dataset") or file.name,
        modality=modality,
        patient=pseudonym(place.salt, optional_text(document, "patient")),
        question_type=optional_text(document, "question_type") or "Question",
        question=question,
        options=options,
        answer_index=answer_index,
        rationale=optional_text(document, "rationale"),
    )


def _options(document: dict[str, Any]) -> tuple[str, ...]:
    raw_options = document.get("options")
    if not isinstance(raw_options, list):
        raise BadField(
            "options",
            "is missing" if raw_options is None else f"must be a list, but is a JSON {json_type(raw_options)}",
        )
    options = tuple(as_text(option, "options") for option in raw_options)
    if len(options) < 2 or not all(options):
        raise BadField("options", f"{len(options)} option(s), none of which may be empty; at least 2 are needed")
    if len(options) > len(LETTERS):
        raise BadField("options", f"{len(options)} options; there are letters for {len(LETTERS)}")
    return options


def _answer(value: Any, options: tuple[str, ...]) -> int:
    """The right option. Text goes before letter: an option may be called "A"."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(options):
            raise BadField("answer", f"{value} is no index of {len(options)} options, which count from 0")
        return value
    if value is None:
        raise BadField("answer", "is missing")
    answer = as_text(value, "answer")
    letter = LETTERS.find(answer.upper()) if len(answer) == 1 else -1
    if answer not in options and 0 <= letter < len(options):
        return letter
    return gold(answer, options, "answer")
