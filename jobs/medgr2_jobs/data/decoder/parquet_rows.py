"""Rows of a parquet file with the pictures that are embedded in them. Runs in the decoder process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from . import limits, pictures
from .protocol import BadField, Message, unusable

_BATCH = 4  # rows in memory: pictures ride along
#: Bytes of a row group, unpacked; it is read piece by piece, but a column's pages may be as large as all of it.
_ROW_GROUP = 1024 * limits.MiB


def answer(request: Message) -> Iterator[Message]:
    """Of each row from `start` on first its columns but the pictures, and then the picture that these make.

    A picture's column is a struct {bytes, path}. Columns must hold what JSON can.
    """
    header = request.header
    named = frozenset(header["pictures"])
    try:
        for number, row in _rows(header["path"], header["start"]):
            limits.begin()
            columns = {name: _json(value) for name, value in (row or {}).items() if name not in named}
            yield Message({"row": number, "document": columns})
            yield _picture(number, row, header["pictures"], header["max_pixels"])
    except (pa.ArrowException, OSError) as error:
        if limits.is_the_disks(error):
            raise
        raise BadField("-", f"not a readable parquet file ({limits.what(error)})") from None


def _rows(path: str, start: int) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """The rows from `start` on, with their numbers; None: its text is not UTF-8."""
    # neither buffered ahead nor mapped: a row group may be larger than the memory there is
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=limits.MiB) as parquet:
        number = 0
        for group in range(parquet.metadata.num_row_groups):
            about = parquet.metadata.row_group(group)
            if number + about.num_rows <= start:
                number += about.num_rows
                continue
            size = sum(about.column(index).total_uncompressed_size for index in range(about.num_columns))
            if max(size, about.total_byte_size) > _ROW_GROUP:
                raise BadField(
                    "-",
                    f"row group {group} has {max(size, about.total_byte_size) / limits.MiB:,.0f} MiB unpacked; at most "
                    f"{_ROW_GROUP // limits.MiB:,} are read. Write the file with smaller row groups",
                )
            for batch in parquet.iter_batches(batch_size=_BATCH, row_groups=[group], use_threads=False):
                limits.begin()
                for offset in range(batch.num_rows):
                    if number >= start:
                        yield number, _row(batch.slice(offset, 1))
                    number += 1


def _row(batch: Any) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = batch.to_pylist()[0]
    except UnicodeDecodeError:
        return None
    return row


def _picture(number: int, row: dict[str, Any] | None, names: list[str], max_pixels: int) -> Message:
    try:
        if row is None:
            raise BadField("-", "has text that is not UTF-8")
        cells = [(name, _bytes(row[name], name)) for name in names if row.get(name)]
        if not cells:
            raise BadField(names[0], "is missing")
        whole, parts = pictures.joined(cells, max_pixels)
        return pictures.finished(whole, max_pixels, item=number, parts=parts)
    except BaseException as error:
        bad = limits.blamed(error, names[0], "its pictures cannot be decoded")
        return Message({"item": number, "unusable": unusable(bad)})


def _bytes(cell: Any, name: str) -> bytes:
    data = cell.get("bytes") if isinstance(cell, dict) else None
    if not isinstance(data, bytes) or not data:
        raise BadField(name, "holds no picture")
    return data


def _json(value: Any) -> Any:
    """What JSON can hold; of anything else the name of its kind."""
    if isinstance(value, list):
        return [_json(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return f"<{type(value).__name__}>"
