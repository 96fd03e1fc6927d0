"""What every reader of a data format yields, and what all of them share: text fields, gold answers, image files."""

from __future__ import annotations

import hashlib
import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgr2_api.data import Benchmark, DataSource

from ..errors import DataError, DiskFull
from ..prompts import answers
from ..store.images import ImageStore, StoredImage


@dataclass(frozen=True)
class Record:
    """A usable question with its stored image; of a format without questions the image alone."""

    question_id: str
    """Unique in its source."""
    image: StoredImage
    image_path: str
    """As the record names it; never what identifies a patient."""
    dataset: str = ""
    """What the record calls its origin, else the file that it stands in: what `split.by: Source` keeps together."""
    modality: str = ""
    patient: str = ""
    """The patient's pseudonym; empty: not known."""
    question_type: str = ""
    question: str = ""
    options: tuple[str, ...] = ()
    answer_index: int | None = None
    rationale: str = ""


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used, and why."""

    where: str
    """File and row: `questions.json[12] (question_id 'ACRIMA_0012')`; rows count from 0."""
    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: {self.reason}"


class BadField(Exception):
    """Raised inside a reader: this record cannot be used."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


@dataclass
class Place:
    """What a reader reads, and where it puts images."""

    source: DataSource | Benchmark
    """What the spec says; a reader finds the options of its format here."""
    root: Path
    """The workspace; nothing outside of it is read."""
    path: Path
    """File or folder."""
    what: str
    """What messages call it, such as `data.sources[seed].uri`."""
    store: ImageStore
    max_pixels: int
    """Larger images are scaled down to this."""
    images: Path | None = None
    """Folder that image paths are relative to; None: the folder of the records."""
    salt: str = ""
    """Makes pseudonyms of patients: the same patient has another in another cycle."""

    @property
    def modality(self) -> str:
        """Of images about which the data says nothing."""
        return self.source.modality

    def keep_inside(self, file: Path) -> Path:
        """The file, if no link leads out of the workspace.

        Raises:
            DataError: one does.
        """
        if not file.resolve().is_relative_to(self.root.resolve()):
            raise DataError(f"{self.what}: {file} leads outside the workspace; copy the files into it")
        return file


class Images:
    """Stores each picture file once; a bad file is bad for every record that names it."""

    def __init__(self, place: Place) -> None:
        self.root = place.root.resolve()
        self.store = place.store
        self.max_pixels = place.max_pixels
        self._known: dict[Path, StoredImage | BadField] = {}

    def get(self, folder: Path, name: str, field: str) -> StoredImage:
        """The stored image of a file that a record names.

        Raises:
            BadField: not there, unreadable, or outside.
        """
        if name.startswith(("/", "~")) or ".." in Path(name).parts or "\0" in name:
            raise BadField(field, f"{name!r} must be relative to {folder} and must not contain '..'")
        path = folder / name
        cached = self._known.get(path)
        if cached is None:
            cached = self._known[path] = self._store(path, field)
        if isinstance(cached, BadField):
            raise BadField(cached.field, cached.reason)
        return cached

    def _store(self, path: Path, field: str) -> StoredImage | BadField:
        if not path.resolve().is_relative_to(self.root):
            return BadField(field, f"{path} leads outside the workspace")
        if path.is_dir():
            return BadField(field, f"{path}: is a folder")
        try:
            return self.store.add_file(path, self.max_pixels)
        except DataError as error:
            return BadField(field, str(error))


class Identities:
    """Question ids seen so far in a source. They lie in a temporary file: a source may have any number of rows."""

    def __init__(self) -> None:
        self._seen = sqlite3.connect("", isolation_level=None)  # a private database, on the disk where it grows
        self._seen.execute("PRAGMA journal_mode = OFF")
        self._seen.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID")

    def first(self, question_id: str) -> str:
        """Where an id was seen; empty: not yet."""
        first_row = self._seen.execute("SELECT place FROM seen WHERE id = ?", (question_id,)).fetchone()
        return str(first_row[0]) if first_row else ""

    def take(self, question_id: str, where: str, field: str) -> None:
        """Remembers an id of a good record.

        Raises:
            BadField: another record has it.
        """
        if first := self.first(question_id):
            raise BadField(field, f"is the same as in {first}; ids must be unique in a source")
        try:
            self._seen.execute("INSERT INTO seen VALUES (?, ?)", (question_id, where.split(" ", 1)[0]))
        except sqlite3.OperationalError as error:
            if "full" not in str(error):
                raise
            folder = tempfile.gettempdir()
            raise DiskFull(f"{folder}: {error}; free some space and run the same command again") from error


def pseudonym(salt: str, name: str) -> str:
    """What stands for a patient in our tables: 16 hex digits that cannot be turned back; empty for nobody."""
    return hashlib.sha256(f"{salt}/{name}".encode()).hexdigest()[:16] if name else ""


def text(document: Mapping[str, Any], field: str) -> str:
    """The non-empty text of a field; numbers (options such as 3) are taken as text."""
    value = document.get(field)
    if value is None:
        raise BadField(field, "is missing")
    as_string = as_text(value, field)
    if not as_string:
        raise BadField(field, "is empty")
    return as_string


def optional_text(document: Mapping[str, Any], field: str) -> str:
    """The text of a field that may be missing or empty."""
    value = document.get(field)
    return "" if value is None else as_text(value, field)


def as_text(value: Any, field: str) -> str:
    """A value as text.

    Raises:
        BadField: it is no text and no number.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadField(field, f"must be text, but is a JSON {json_type(value)}")
    return str(value).strip()


def gold(answer: str, options: Sequence[str], field: str) -> int:
    """The option that an answer is: exactly, else after normalisation."""
    exact = [index for index, option in enumerate(options) if option == answer]
    indices = exact or [i for i, option in enumerate(options) if answers.normalise(option) == answers.normalise(answer)]
    if not indices:
        raise BadField(field, f"{answer!r} is not among the options {', '.join(map(repr, options))}")
    if len(indices) > 1:
        raise BadField(field, f"{answer!r} is {len(indices)} of the options")
    return indices[0]


def json_type(value: Any) -> str:
    """What JSON calls the type of a value."""
    names = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
