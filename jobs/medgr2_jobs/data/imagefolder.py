"""A folder of pictures, with an optional `metadata.csv` beside them (the Hugging Face imagefolder convention).

`metadata.csv` has a column `file_name`, relative to the folder, and may have `modality`, `patient` and `dataset`.
Pictures without a row are taken too. There are no questions: the source is for the generator. A patient becomes a
pseudonym, and so does a file name or dataset that holds the patient's.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import DataError
from . import file_walk, phi_in_paths
from .record import BadField, BadRecord, Images, Place, Record, optional_text

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
METADATA = "metadata.csv"
_COLUMNS = ("file_name", "modality", "patient", "dataset")

Row = dict[str, str]


def read(place: Place) -> Iterator[Record | BadRecord]:
    """The pictures of a folder and its sub-folders, in the order of their names.

    Raises:
        DataError: no such folder, or a metadata.csv that is none.
    """
    folder = place.path
    if not folder.is_dir():
        raise DataError(
            f"{place.what}: {folder} is not a folder; copy the pictures onto the volume or correct the path"
        )
    metadata = _metadata(place, folder / METADATA)
    images = Images(place)
    for path, problem in file_walk.files(folder):
        relative = path.relative_to(folder)
        name = relative.as_posix()
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or (path.suffix.lower() not in SUFFIXES and not path.is_dir()):
            continue
        row = metadata.pop(name, {})
        shown = place.names.file(_name(place, name, row))
        try:
            if problem:
                raise BadField("file_name", problem)
            yield _record(place, folder, name, row, images)
        except BadField as bad:
            if not problem:
                images.note(folder, name)
            yield BadRecord(shown, bad.field, bad.reason.replace(str(path), shown))
    for name, row in metadata.items():
        wrong = f"{place.names.file(_name(place, name, row))!r} is not in the folder, or is no picture"
        yield BadRecord(f"{METADATA}[{row['line']}]", "file_name", wrong)


def _record(place: Place, folder: Path, name: str, written: Row, images: Images) -> Record:
    row = {column: optional_text(written, column) for column in written if column != "file_name"}
    modality = row.get("modality") or place.modality
    if not modality:
        raise BadField("modality", f"is not in {METADATA}, and the source's own `modality` is not set in the spec")
    called = _name(place, name, row)
    return Record(
        question_id=called,
        image=images.get(folder, name, "file_name"),
        image_path=called,
        where=place.names.file(called),
        dataset=_name(place, row.get("dataset") or Path(name).parent.as_posix(), row),
        modality=modality,
        patient=place.names.identity(row.get("patient", "")),
    )


def _name(place: Place, name: str, row: Row) -> str:
    """A name; where names are clear, one that holds the patient's is hidden all the same."""
    if not place.names.clear:
        return name
    patient = row.get("patient", "")
    tells = phi_in_paths.holds(name, {patient, *re.split(r"[\s^=,;]+", patient)})
    return place.names.hidden(name) if tells else name


def _column(place: Place, columns: Sequence[str], unknown: Sequence[str]) -> str:
    """The first unknown one: by its number where names are private, for without a head it is a path."""
    return repr(unknown[0]) if place.names.clear else f"(number {columns.index(unknown[0]) + 1})"


def _metadata(place: Place, path: Path) -> dict[str, Row]:
    """The rows of metadata.csv by file name, each with its line; none without it."""
    if not path.is_file():
        return {}
    rows: dict[str, Row] = {}
    try:
        with place.keep_inside(path).open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = reader.fieldnames or []
            unknown = [name for name in columns if name not in _COLUMNS]
            if "file_name" not in columns or unknown:
                wrong = (
                    f"has an unknown column {_column(place, columns, unknown)}"
                    if unknown
                    else "has no column file_name"
                )
                raise DataError(f"{place.what}: {path} {wrong}; its columns are {', '.join(_COLUMNS)}")
            for row in reader:
                name = (row.get("file_name") or "").strip().removeprefix("./")
                if None in row or not name or name in rows:
                    wrong = "is there twice" if name in rows else "has more fields than columns, or no file_name"
                    shown = place.names.file(name)
                    raise DataError(f"{place.what}: {path}, line {reader.line_num}: {shown!r} {wrong}")
                rows[name] = {**{key: value or "" for key, value in row.items()}, "line": str(reader.line_num)}
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{place.what}: {path} is not a CSV file in UTF-8 ({error})") from error
    return rows
