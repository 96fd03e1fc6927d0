"""The loader of OmniMedVQA-style data: JSON lists of multiple-choice questions beside a folder of images.

Format (Hu et al., OmniMedVQA, CVPR 2024): each file is a JSON list of objects {dataset, question_id, question_type,
question, gt_answer, image_path, option_A … option_D, modality_type}. We also read an optional `rationale`.

A bad record is not fatal by itself: it is handed out as `BadRecord` with file, record, field and reason. A bad file is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import answers
from ..errors import DataError
from ..store.images import ImageStore, StoredImage
from ..store.paths import inside

OPTION_FIELDS = tuple(f"option_{letter}" for letter in "ABCDEFGH")


@dataclass(frozen=True)
class Record:
    """A usable question with its stored image."""

    question_id: str
    image: StoredImage
    image_path: str
    """As the record names it."""
    dataset: str
    modality: str
    question_type: str
    question: str
    options: tuple[str, ...]
    answer_index: int
    rationale: str


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used, and why."""

    where: str
    """File and row: `questions.json[12] (question_id 'ACRIMA_0012')`; rows count from 0."""
    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: {self.reason}"


class _Bad(Exception):
    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


def read(
    root: Path, uri: str, images: str, *, store: ImageStore, max_pixels: int, what: str
) -> Iterator[Record | BadRecord]:
    """Reads a file, or every `*.json` of a folder in the order of their names, one file in memory at a time.

    Args:
        root: the workspace.
        uri: file or folder, relative to the workspace.
        images: folder that image paths are relative to; empty: the folder of the records.
        store: takes the images.
        max_pixels: larger images are scaled down to this.
        what: what the messages call this input, such as `data.sources[seed].uri`.

    Raises:
        ConfigError: `uri` or `images` leads outside the workspace.
        DataError: nothing there, or a file that is not a JSON list.
    """
    files = _files(inside(root, uri, what), what)
    image_folder = None
    if images:
        image_folder = inside(root, images, f"images of {what}")
        if not image_folder.is_dir():
            raise DataError(f"images of {what}: {image_folder} is not a folder")
    reader = _Reader(root.resolve(), store, max_pixels)
    for file in files:
        yield from reader.records(file, image_folder or file.parent)


def _files(path: Path, what: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError(f"{what}: {path} does not exist; copy the data onto the volume or correct the path")
    found = sorted(file for file in path.glob("*.json") if file.is_file())
    if not found:
        raise DataError(f"{what}: {path} holds no *.json file (sub-folders are not searched)")
    return found


def _parse(file: Path) -> list[Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise DataError(f"{file}: JSON nested too deeply") from error
    if not isinstance(document, list):
        raise DataError(f"{file}: must hold a JSON list of records, but holds a JSON {_json_type(document)}")
    return document


class _Reader:
    """Checks records; remembers the images it has stored and the ids it has seen."""

    def __init__(self, root: Path, store: ImageStore, max_pixels: int) -> None:
        self.root = root
        self.store = store
        self.max_pixels = max_pixels
        self._images: dict[Path, StoredImage | _Bad] = {}
        self._ids: dict[str, str] = {}

    def records(self, file: Path, image_folder: Path) -> Iterator[Record | BadRecord]:
        for index, document in enumerate(_parse(file)):
            where = f"{file.name}[{index}]"
            try:
                if not isinstance(document, dict):
                    raise _Bad("-", f"must be a JSON object, but is a JSON {_json_type(document)}")
                if isinstance(question_id := document.get("question_id"), str):
                    where += f" (question_id {question_id!r})"
                yield self._record(document, where, image_folder)
            except _Bad as bad:
                yield BadRecord(where, bad.field, bad.reason)

    def _record(self, document: dict[str, Any], where: str, image_folder: Path) -> Record:
        question_id = _text(document, "question_id")
        options = tuple(_text(document, name) for name in OPTION_FIELDS if document.get(name) not in (None, ""))
        if len(options) < 2:
            raise _Bad("option_A", f"{len(options)} option(s); at least 2 are needed")
        question, gold = _text(document, "question"), _text(document, "gt_answer")
        image_path = _text(document, "image_path")
        rationale = document.get("rationale") or ""
        if not isinstance(rationale, str):
            raise _Bad("rationale", f"must be text, but is a JSON {_json_type(rationale)}")
        answer_index = _gold(gold, options)
        if question_id in self._ids:
            raise _Bad("question_id", f"is the same as in {self._ids[question_id]}; ids must be unique in a source")
        image = self._image(image_folder, image_path)
        self._ids[question_id] = where.split(" ", 1)[0]
        return Record(
            question_id=question_id,
            image=image,
            image_path=image_path,
            dataset=str(document.get("dataset") or ""),
            modality=_text(document, "modality_type"),
            question_type=_text(document, "question_type"),
            question=question,
            options=options,
            answer_index=answer_index,
            rationale=rationale.strip(),
        )

    def _image(self, folder: Path, name: str) -> StoredImage:
        """Stores each file once; a bad file is bad for every record that names it."""
        if name.startswith(("/", "~")) or ".." in Path(name).parts or "\0" in name:
            raise _Bad("image_path", f"{name!r} must be relative to {folder} and must not contain '..'")
        path = folder / name
        known = self._images.get(path)
        if known is None:
            known = self._images[path] = self._store(path)
        if isinstance(known, _Bad):
            raise _Bad(known.field, known.reason)
        return known

    def _store(self, path: Path) -> StoredImage | _Bad:
        if not path.resolve().is_relative_to(self.root):
            return _Bad("image_path", f"{path} leads outside the workspace")
        if path.is_dir():
            return _Bad("image_path", f"{path}: is a folder")
        try:
            return self.store.add_file(path, self.max_pixels)
        except DataError as error:
            return _Bad("image_path", str(error))


def _text(document: dict[str, Any], field: str) -> str:
    """The non-empty text of a field; numbers (options such as 3) are taken as text."""
    value = document.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if value is None:
        raise _Bad(field, "is missing")
    if not isinstance(value, str):
        raise _Bad(field, f"must be text, but is a JSON {_json_type(value)}")
    if not value.strip():
        raise _Bad(field, "is empty")
    return value.strip()


def _gold(gold: str, options: tuple[str, ...]) -> int:
    """The option that `gold` is: exactly, else after normalisation."""
    exact = [index for index, option in enumerate(options) if option == gold]
    found = exact or [i for i, option in enumerate(options) if answers.normalise(option) == answers.normalise(gold)]
    if not found:
        raise _Bad("gt_answer", f"{gold!r} is not among the options {', '.join(map(repr, options))}")
    if len(found) > 1:
        raise _Bad("gt_answer", f"{gold!r} is {len(found)} of the options")
    return found[0]


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
