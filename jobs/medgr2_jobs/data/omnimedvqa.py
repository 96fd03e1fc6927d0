"""OmniMedVQA-style data: JSON lists of multiple-choice questions beside a folder of images.

Format (Hu et al., OmniMedVQA, CVPR 2024): each file is a JSON list of objects {dataset, question_id, question_type,
question, gt_answer, image_path, option_A … option_D, modality_type}. We also read optional `rationale` and
`patient_id`. A folder may be the published one: questions in `QA_information/Open-access/`, images beside it.

A bad record is not fatal by itself: it is handed out as `BadRecord` with file, record, field and reason. A bad file is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medgr2_api.data import AnswerKey

from ..errors import DataError
from ..prompts.answers import LETTERS
from . import json_list
from .gold_answers import AnswerReader, options_of
from .record import (
    BadField,
    BadRecord,
    Identities,
    Images,
    Place,
    Record,
    as_text,
    is_nan,
    json_type,
    optional_text,
    text,
)

OPTION_FIELDS = {f"option_{letter}": letter for letter in LETTERS[:8]}
_PUBLISHED = Path("QA_information", "Open-access")


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


class _Reader:
    """Checks records; remembers the images it has stored and the ids it has seen."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.images = Images(place)
        self.identities = Identities()

    def records(self, file: Path, image_folder: Path) -> Iterator[Record | BadRecord]:
        described = frozenset({AnswerKey.TEXT})
        answers = AnswerReader(self.place, _answers(file), field="gt_answer", texts=described, numbers=described)
        name = self.place.shown(file)
        for index, document in enumerate(json_list.items(file, self.place.whole(file))):
            where = f"{name}[{index}]"
            try:
                if not isinstance(document, dict):
                    raise BadField("-", f"must be a JSON object, but is a JSON {json_type(document)}")
                if self.place.names.clear and isinstance(question_id := document.get("question_id"), str):
                    where += f" (question_id {question_id!r})"
                yield self._record(document, where, file, image_folder, answers)
            except BadField as bad:
                if isinstance(document, dict):
                    self.images.note(image_folder, document.get("image_path"))
                yield BadRecord(where, bad.field, bad.reason)

    def _record(
        self, document: dict[str, Any], where: str, file: Path, image_folder: Path, answers: AnswerReader
    ) -> Record:
        question_id = text(document, "question_id")
        offered = _offered(document)
        options = options_of(list(offered.values()), "option_A")
        question, image_path = text(document, "question"), text(document, "image_path")
        rationale = document.get("rationale")
        if not (rationale is None or is_nan(rationale) or isinstance(rationale, str)):
            raise BadField("rationale", f"must be text, but is a JSON {json_type(rationale)}")
        answer_index = answers.index(document, options, "".join(offered))
        if self.identities.first(question_id):
            self.identities.take(question_id, where, "question_id")
        modality = optional_text(document, "modality_type") or self.place.modality
        record = Record(
            question_id=question_id,
            image=self.images.get(image_folder, image_path, "image_path"),
            image_path=image_path,
            where=where,
            dataset=optional_text(document, "dataset") or file.name,
            modality=modality or text(document, "modality_type"),
            patient=self.place.names.identity(optional_text(document, "patient_id")),
            question_type=text(document, "question_type"),
            question=question,
            options=options,
            answer_index=answer_index,
            rationale=optional_text(document, "rationale"),
        )
        self.identities.take(question_id, where, "question_id")
        return record


def _offered(document: dict[str, Any]) -> dict[str, str]:
    """The options that are there, by their letters."""
    texts = {letter: as_text(document.get(name), name) for name, letter in OPTION_FIELDS.items()}
    return {letter: option for letter, option in texts.items() if option}


def _answers(file: Path) -> Iterator[dict[str, Any]]:
    """Options and answer of each record that has them."""
    for document in json_list.items(file, file.name):
        if isinstance(document, dict):
            with contextlib.suppress(BadField):
                offered = _offered(document)
                options = options_of(list(offered.values()), "option_A")
                yield {**document, "options": options, "letters": "".join(offered)}
