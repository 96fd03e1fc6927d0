"""What every reader of a data format yields, and what all of them share: text fields, gold answers, image files."""

from __future__ import annotations

import math
import sqlite3
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medgr2_api.data import AnswerKey, Benchmark, DataSource

from ..errors import DataError, DiskFull
from ..prompts import answers
from ..store.images import EncodedImage, ImageStore, StoredImage
from ..store.rows.prepared import SetAside
from . import file_walk
from .decoder import client as decoder
from .decoder.protocol import BadField as BadField  # readers have it from here
from .pseudonyms import Names

#: How tables and programs write out an empty cell, in lower case: what pandas takes for one. Not of options and
#: answers: "None" is one.
_WORDS_FOR_NOTHING = frozenset(
    ("nan", "-nan", "none", "null", "nil", "na", "n/a", "#n/a", "#na", "<na>", "nat", "#n/a n/a", "1.#qnan", "-1.#ind")
)
_UNSEEN = frozenset(("Cc", "Cf", "Zs", "Zl", "Zp"))  # categories of characters that show nothing
_LONGEST = 1000  # characters of what is said of a record that cannot be used
_EXACT = 2**53  # below, a float that is a whole number is that number


@dataclass(frozen=True)
class Record:
    """A usable question with its stored image; of a format without questions the image alone."""

    question_id: str
    """Unique in its source."""
    image: StoredImage
    image_path: str
    """As the record names it; `Names` decides how it is shown."""
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
    where: str = ""
    """File and row as they may be shown, as of a `BadRecord`; empty: its id says it."""


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used, and why."""

    where: str
    """File and row: `questions.json[12] (question_id 'ACRIMA_0012')`; rows count from 0."""
    field: str
    reason: str
    kind: SetAside = SetAside.UNUSABLE

    def __post_init__(self) -> None:
        for name in ("where", "field", "reason"):  # the names of files, too, may hold what is no text
            text = getattr(self, name).encode("utf-8", "backslashreplace").decode()
            if len(text) > _LONGEST:  # it quotes a field, which may be of any length
                text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
            object.__setattr__(self, name, text)

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: {self.reason}"


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
    names: Names
    """How patients, files and records are called in what is published, shown or logged."""
    images: Path | None = None
    """Folder that image paths are relative to; None: the folder of the records."""
    read_as: Counter[AnswerKey] = field(default_factory=Counter)
    """How right answers were read, and how often (`gold_answers`)."""
    special_tokens: frozenset[str] = frozenset()
    """What the cycle's models take for marks of their own; no text of a record may have one in it."""
    named_images: set[str] = field(default_factory=set)
    """sha256 of each picture that a record names, also one that cannot be used, and its parts (`StoredImage`); filled
    in while it is read. Whether a picture may leave the site is for every source to say that has it."""

    @property
    def modality(self) -> str:
        """Of images about which the data says nothing."""
        return self.source.modality

    def shown(self, file: Path) -> str:
        """A file as messages call it: the one that the spec itself names by its name, others as `names` shows them."""
        return file.name if file == self.path else self.names.file(file.relative_to(self.path).as_posix())

    def whole(self, file: Path) -> str:
        """A file as messages about all of it call it."""
        named = self.names.clear or file == self.path
        return str(file) if named else f"{self.what}: {self.shown(file)}"

    def keep(self, picture: EncodedImage) -> StoredImage:
        """Stores a picture that a record names, and takes note of it."""
        stored = self.store.put(picture)
        self.named_images |= {stored.sha256, *stored.parts}
        return stored

    def keep_file(self, path: Path) -> StoredImage:
        """The same with a file, which the decoder reads.

        Raises:
            BadField: it cannot be used; the field is for the caller to name.
            OSError: the disk fails.
        """
        return self.keep(decoder.picture(path, self.max_pixels))

    def keep_inside(self, file: Path) -> Path:
        """The file, if no link leads out of the workspace.

        Raises:
            DataError: one does.
        """
        if not file.resolve().is_relative_to(self.root.resolve()):
            raise DataError(f"{self.what}: {self.shown(file)} leads outside the workspace; copy the files into it")
        return file


class Images:
    """Stores each picture file once; a bad file is bad for every record that names it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.root = place.root.resolve()
        self.names = place.names
        self._known: dict[Path, StoredImage | BadField] = {}

    def get(self, folder: Path, name: str, field: str) -> StoredImage:
        """The stored image of a file that a record names.

        Raises:
            BadField: not there, unreadable, or outside.
        """
        if name.startswith(("/", "~")) or ".." in Path(name).parts or "\0" in name:
            wrong = f"must be relative to {folder} and" if self.names.clear else "must be relative and"
            raise BadField(field, f"{self.names.file(name)!r} {wrong} must not contain '..'")
        path = folder / name
        cached = self._known.get(path)
        if cached is None:
            cached = self._known[path] = self._store(path, name, field)
        if isinstance(cached, BadField):
            raise BadField(cached.field, cached.reason)
        return cached

    def note(self, folder: Path, name: object) -> None:
        """Takes note of the picture of a record that cannot be used, if it can be read."""
        with suppress(BadField):
            self.get(folder, text({"image": name}, "image"), "image")

    def _store(self, path: Path, name: str, field: str) -> StoredImage | BadField:
        shown = str(path) if self.names.clear else self.names.file(name)
        if wrong := file_walk.wrong_with(path, self.root):
            return BadField(field, f"{shown}: {wrong}")
        try:
            return self.place.keep_file(path)
        except BadField as bad:
            return BadField(field, f"{shown}: {bad.reason}")


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


def text(document: Mapping[str, Any], field: str) -> str:
    """The text of a field that every record needs.

    Raises:
        BadField: it is missing or empty, or no text and no number.
    """
    value = document.get(field)
    if value is None or is_nan(value):
        raise BadField(field, "is missing")
    if not (written := as_text(value, field)):
        raise BadField(field, "is empty")
    if written.casefold() in _WORDS_FOR_NOTHING:
        raise BadField(field, f"is missing: {written!r} stands for an empty cell")
    return written


def optional_text(document: Mapping[str, Any], field: str) -> str:
    """The text of a field that may be missing: empty for an empty cell, also where a program wrote it out as `nan`."""
    written = as_text(document.get(field), field)
    return "" if written.casefold() in _WORDS_FOR_NOTHING else written


def as_text(value: Any, field: str) -> str:
    """A value as text, numbers in their shortest form; empty for an empty cell (null, NaN) and for what shows nothing.

    A table writes 3 as 3.0 as soon as one cell of the column is empty, so both are "3".

    Raises:
        BadField: it is no text and no finite number, or has one of our own tags in it.
    """
    if value is None or is_nan(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadField(field, f"must be text, but is a JSON {json_type(value)}")
    if isinstance(value, float):
        if math.isinf(value):
            raise BadField(field, f"must be text or a finite number, but is {value}")
        return str(int(value)) if value.is_integer() and abs(value) < _EXACT else str(value)
    written = str(value).strip()
    try:
        written.encode()
    except UnicodeEncodeError as error:
        raise BadField(field, f"has half a character in it (\\u{ord(written[error.start]):x})") from error
    if tag := answers.TAG.search(written):
        raise BadField(field, f"has our own tag {tag[0]} in it, which marks the parts of an answer")
    return written if written.isascii() or _shows(written) else ""


def is_nan(value: Any) -> bool:
    """Whether a value is what an exported table has for an empty cell."""
    return isinstance(value, float) and math.isnan(value)


def _shows(written: str) -> bool:
    return any(unicodedata.category(character) not in _UNSEEN for character in written)


def json_type(value: Any) -> str:
    """What JSON calls the type of a value."""
    names = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
