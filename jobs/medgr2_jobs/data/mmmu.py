"""MMMU as it is published (Yue et al., CVPR 2024): parquet files, a folder per subject.

Columns: id, question, options (a Python list, as text), image_1 … image_7 ({bytes, path}), img_type, answer (a letter),
question_type (multiple-choice or open), subfield, explanation. Several images of a question become one picture, side by
side and numbered, so that `<image 2>` in the question or among the options stays readable.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medgr2_api.data import MMMU, AnswerKey

from ..errors import DataError
from .decoder import client as decoder
from .gold_answers import AnswerReader, options_of
from .record import BadField, BadRecord, Identities, Place, Record, as_text, optional_text, text

_IMAGES = tuple(f"image_{number}" for number in range(1, 8))
#: What is in the name of an image type → one of our modalities; other types keep their name.
_MODALITIES = {"microscop": "Microscopy", "patholog": "Microscopy"}


def read(place: Place) -> Iterator[Record | BadRecord]:
    """Reads the chosen subjects, in the order of the spec, a few questions at a time.

    Raises:
        DataError: a subject or its split is not there, or a file is not parquet.
    """
    identities = Identities()
    wanted = place.source.mmmu or MMMU()
    letters = frozenset({AnswerKey.LETTER})
    answers = AnswerReader(place, (), field="answer", texts=letters, numbers=letters)
    for subject in wanted.subjects:
        for file in _files(place, subject, wanted.split):
            try:
                yield from _records(place, subject, file, identities, answers)
            except BadField as bad:
                raise DataError(f"{place.whole(file)}: {bad.reason}") from None


def _records(
    place: Place, subject: str, file: Path, identities: Identities, answers: AnswerReader
) -> Iterator[Record | BadRecord]:
    for row, (document, picture) in enumerate(decoder.parquet_rows(file, _IMAGES, place.max_pixels)):
        where = f"{place.shown(file)}[{row}]"
        try:
            record = _record(document, picture, place, subject, where, answers)
            record = replace(record, image_path=f"{subject}/{file.name}[{row}]")
            identities.take(record.question_id, where, "id")
        except BadField as bad:
            yield BadRecord(where, bad.field, bad.reason)
        else:
            yield record


def _files(place: Place, subject: str, split: str) -> list[Path]:
    folder = place.path / subject
    if "/" in subject or subject in ("", ".", ".."):
        raise DataError(f"{place.what}: {subject!r} is no name of a subject")
    if not folder.is_dir():
        there = sorted(path.name for path in place.path.iterdir() if path.is_dir()) if place.path.is_dir() else []
        named = ", ".join(there) if place.names.clear else f"{len(there)} of other names" if there else ""
        raise DataError(f"{place.what}: {folder} does not exist; subjects there: {named or 'none'}")
    files = sorted(folder.glob(f"{split}-*.parquet"))
    if not files:
        raise DataError(f"{place.what}: {folder} has no {split}-*.parquet; choose another split in `mmmu`")
    for file in files:
        place.keep_inside(file)
    return files


def _record(
    document: Mapping[str, Any], picture: decoder.Decoded, place: Place, subject: str, where: str, answers: AnswerReader
) -> Record:
    image, question_id = place.keep(picture.picture()), text(document, "id")
    if document.get("question_type") != "multiple-choice":
        raise BadField(
            "question_type", f"{document.get('question_type')!r}: only multiple-choice questions can be scored"
        )
    options = _options(text(document, "options"))
    return Record(
        question_id=question_id,
        image=image,
        image_path=where,
        where=where,
        dataset=subject,
        modality=_modality(optional_text(document, "img_type"), place.modality),
        question_type=optional_text(document, "subfield") or subject,
        question=text(document, "question"),
        options=options,
        answer_index=_answer(document, options, answers),
        rationale=optional_text(document, "explanation"),
    )


def _literal(written: str, field: str) -> Any:
    try:
        return ast.literal_eval(written)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise BadField(field, f"{written[:80]!r} is not a Python list ({type(error).__name__})") from error


def _options(written: str) -> tuple[str, ...]:
    parsed = _literal(written, "options")
    if not isinstance(parsed, list) or len(parsed) < 2:
        raise BadField("options", f"{written[:80]!r} is not a list of at least 2 options")
    return options_of(parsed, "options")


def _answer(document: Mapping[str, Any], options: Sequence[str], answers: AnswerReader) -> int:
    try:
        return answers.index(document, options)
    except BadField as bad:
        hint = "; the test split is published without answers" if document.get("answer") == "?" else ""
        raise BadField(bad.field, f"{bad.reason}{hint}") from bad


def _modality(written: str, default: str) -> str:
    """Our name for a question's image type, which is a Python list written as text."""
    types = _literal(written, "img_type") if written.startswith("[") else [written]
    first = as_text(types[0], "img_type") if types else ""
    modality = next((name for part, name in _MODALITIES.items() if part in first.lower()), "")
    return modality or default or first or "Other"
