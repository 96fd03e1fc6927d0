"""The parquet tables: their schemas follow from the row classes (`rows/`); reading and writing them, typed.

The same rows give the same bytes. A reader refuses another table, another version, other columns, a null where none may
be, and a value that an enum does not have.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import CorruptArtifact
from . import atomic
from .rows import StoredRow, TableRow, TableView

R = TypeVar("R", bound=TableRow)
S = TypeVar("S", bound=StoredRow)

#: Rows of a row group of a table that is written as it is made.
_BATCH_ROWS = 8192
_PLAIN: dict[type, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


@dataclass(frozen=True)
class _Column:
    """How a field of a row class is stored."""

    name: str
    type: pa.DataType
    nullable: bool
    load: Callable[[Any], Any] | None
    """From what arrow gives to what the field holds; None: as it is."""


_COLUMNS: dict[type[StoredRow], tuple[_Column, ...]] = {}


def _columns(kind: type[StoredRow]) -> tuple[_Column, ...]:
    if kind not in _COLUMNS:
        hints = typing.get_type_hints(kind)
        _COLUMNS[kind] = tuple(_column(field.name, hints[field.name]) for field in fields(kind))  # type: ignore[arg-type]
    return _COLUMNS[kind]


def _column(name: str, hint: Any) -> _Column:
    nullable = typing.get_origin(hint) in (types.UnionType, typing.Union)
    if nullable:
        [hint] = [part for part in typing.get_args(hint) if part is not type(None)]
    if typing.get_origin(hint) is tuple:
        inner, _ = typing.get_args(hint)
        return _Column(name, pa.list_(_PLAIN[inner]), nullable, tuple)
    if issubclass(hint, StrEnum):
        return _Column(name, pa.string(), nullable, hint)
    return _Column(name, _PLAIN[hint], nullable, None)


def schema(kind: type[StoredRow]) -> pa.Schema:
    """The arrow schema of a table; name and version ride along in its metadata."""
    columns = [(column.name, column.type) for column in _columns(kind)]
    return pa.schema(columns, metadata={"medgr2.table": kind.TABLE, "medgr2.version": str(kind.VERSION)})


def to_arrow(kind: type[R], rows: Sequence[R]) -> pa.Table:
    """The rows as an arrow table."""
    arrays = [pa.array([getattr(row, c.name) for row in rows], c.type) for c in _columns(kind)]
    return pa.Table.from_arrays(arrays, schema=schema(kind))


def from_arrow(kind: type[S], table: pa.Table, where: str = "") -> list[S]:
    """The rows of an arrow table.

    Raises:
        CorruptArtifact: a null where none may be, or a value that the column's enum does not have.
    """
    values = []
    for column in _columns(kind):
        data = table.column(column.name)
        if not column.nullable and data.null_count:
            number = data.is_null().to_pylist().index(True)
            raise CorruptArtifact(f"{where}: table {kind.TABLE!r}, row {number}: {column.name} must not be null")
        rows = data.to_pylist()
        if column.load is not None:
            try:
                rows = [None if value is None else column.load(value) for value in rows]
            except ValueError as error:
                raise CorruptArtifact(f"{where}: table {kind.TABLE!r}, column {column.name}: {error}") from None
        values.append(rows)
    return [kind(*row) for row in zip(*values, strict=True)]


def write(path: Path, kind: type[R], rows: Sequence[R]) -> int:
    """Writes a table, durably; returns its number of rows."""
    table = to_arrow(kind, rows)
    with atomic.atomic_file(path) as stream:
        pq.write_table(table.combine_chunks(), stream, compression="zstd")  # the bytes depend on the chunks
    return int(table.num_rows)


class TableWriter(Generic[R]):
    """Writes a table row by row, a batch in memory at a time."""

    def __init__(self, stream: BinaryIO, kind: type[R]) -> None:
        self.rows = 0
        self._kind = kind
        self._batch: list[R] = []
        self._writer = pq.ParquetWriter(stream, schema(kind), compression="zstd")

    def append(self, row: R) -> None:
        """Adds a row."""
        self._batch.append(row)
        self.rows += 1
        if len(self._batch) == _BATCH_ROWS:
            self._flush()

    def extend(self, rows: Iterable[R]) -> None:
        """Adds rows."""
        for row in rows:
            self.append(row)

    def close(self) -> None:
        """Writes what is left, and the file's end."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._batch:
            self._writer.write_table(to_arrow(self._kind, self._batch))
            self._batch = []


@contextmanager
def writer(path: Path, kind: type[R]) -> Iterator[TableWriter[R]]:
    """A table that appears at `path` when the block ends well."""
    with atomic.atomic_file(path) as stream:
        table_writer = TableWriter(stream, kind)
        try:
            yield table_writer
        except BaseException:
            with suppress(Exception):  # the file is thrown away; what went wrong is already on its way
                table_writer.close()
            raise
        table_writer.close()


def batches(
    path: Path, kind: type[S], size: int = _BATCH_ROWS, where: tuple[str, Collection[str]] | None = None
) -> Iterator[list[S]]:
    """The rows of a table, at most `size` at a time: for tables of which only a part shall be in memory.

    Args:
        path: the file.
        kind: the table's rows, or a view of them.
        size: rows that are read at a time.
        where: a column and the values that it may have: only such rows become objects.

    Raises:
        CorruptArtifact: as `read_arrow` and `from_arrow`.
    """
    with _opened(path, kind) as file:
        for batch in file.iter_batches(batch_size=size, columns=_names(kind)):
            table = _cast(path, kind, pa.Table.from_batches([batch]))
            if where is not None:
                column, values = where
                table = table.filter(pc.is_in(table[column], pa.array(list(values), pa.string())))
            if table.num_rows:
                yield from_arrow(kind, table, str(path))


def read_arrow(path: Path, kind: type[StoredRow]) -> pa.Table:
    """Reads a table, or a view's columns of it, and checks that it is `kind` in a version we know.

    Raises:
        CorruptArtifact: not parquet, another table, another version, or other columns.
    """
    with _opened(path, kind) as file:
        return _cast(path, kind, file.read(columns=_names(kind)))


def read(path: Path, kind: type[S]) -> list[S]:
    """The rows of a table.

    Raises:
        CorruptArtifact: as `read_arrow` and `from_arrow`.
    """
    return from_arrow(kind, read_arrow(path, kind), str(path))


def _names(kind: type[StoredRow]) -> list[str] | None:
    """The columns to read; None: all that there are."""
    return [column.name for column in _columns(kind)] if issubclass(kind, TableView) else None


@contextmanager
def _opened(path: Path, kind: type[StoredRow]) -> Iterator[pq.ParquetFile]:
    """The file, once it is known to be the table in this version; what goes wrong inside is the file's fault, too."""
    try:
        # not pq.read_table: it would read columns from folders that are called `key=value`
        with pq.ParquetFile(path) as file:
            _check_version(path, kind, file.schema_arrow.metadata or {})
            yield file
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the file's
            raise
        raise CorruptArtifact(f"{path}: not a readable parquet file ({error})") from error


def _check_version(path: Path, kind: type[StoredRow], metadata: dict[bytes, bytes]) -> None:
    stored = (metadata.get(b"medgr2.table", b"").decode(), metadata.get(b"medgr2.version", b"").decode())
    expected = (kind.TABLE, str(kind.VERSION))
    if stored != expected:
        raise CorruptArtifact(f"{path}: is table {stored}, this version of MedGR2 reads {expected}")


def _cast(path: Path, kind: type[StoredRow], table: pa.Table) -> pa.Table:
    try:
        return table.cast(schema(kind))
    except (ValueError, pa.ArrowException) as error:  # other names or types of columns
        expected = (kind.TABLE, str(kind.VERSION))
        raise CorruptArtifact(f"{path}: its columns are not those of table {expected} ({error})") from error
