"""Tables by name, rows as dicts: what has not moved to `rows.py` yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CorruptArtifact
from . import atomic

_TEXT, _INT, _FLOAT, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()
#: Rows of a row group of a table that is written as it is made.
_BATCH_ROWS = 8192
_TEXTS, _FLOATS = pa.list_(pa.string()), pa.list_(pa.float64())

#: What every question carries, from the seed to the predictions.
_QUESTION = {
    "image_sha256": _TEXT,
    "modality": _TEXT,
    "question_type": _TEXT,
    "question": _TEXT,
    "options": _TEXTS,
}

#: table → (version, columns)
SCHEMAS: dict[str, tuple[int, dict[str, pa.DataType]]] = {
    # prepare
    "images": (2, {"image_sha256": _TEXT, "width": _INT, "height": _INT, "modality": _TEXT, "source": _TEXT,
                   "source_path": _TEXT, "split": _TEXT, "allow_external": _BOOL, "dataset": _TEXT, "patient": _TEXT,
                   "phash": _TEXT}),
    "items": (1, {"item_id": _TEXT, "source": _TEXT, "split": _TEXT, "benchmark": _TEXT, **_QUESTION,
                  "answer_index": _INT, "rationale": _TEXT}),
    "grades": (2, {"sample_id": _TEXT, "item_id": _TEXT, "source": _TEXT, "split": _TEXT, **_QUESTION,
                   "response": _TEXT, "grade": _TEXT, "target": _FLOAT, "perturbation": _TEXT, "seed": _INT}),
    "phantoms": (1, {"image_sha256": _TEXT, "modality": _TEXT, "finding": _TEXT, "location": _TEXT, "count": _TEXT}),
    "quarantine": (1, {"source": _TEXT, "record": _TEXT, "field": _TEXT, "reason": _TEXT}),
    # generate; `truth` is the scripted generator's own knowledge: only the report reads it
    "candidates": (2, {"triplet_id": _TEXT, "iteration": _INT, **_QUESTION, "answer_index": _INT, "rationale": _TEXT,
                       "response": _TEXT, "paradigm": _TEXT, "template_sha256": _TEXT, "generator": _TEXT,
                       "outcome": _TEXT, "error": _TEXT, "attempts": _INT, "input_tokens": _INT,
                       "output_tokens": _INT, "thinking_tokens": _INT, "usd": _FLOAT}),
    "truth": (1, {"triplet_id": _TEXT, "kind": _TEXT, "correct": _BOOL}),
    # reward: held-out grades and what R says of them
    "calibration": (1, {"sample_id": _TEXT, "grade": _TEXT, "target": _FLOAT, "score": _FLOAT}),
    # score, curate
    "scores": (1, {"triplet_id": _TEXT, "score": _FLOAT}),
    "decisions": (1, {"triplet_id": _TEXT, "keep": _BOOL, "score": _FLOAT, "reasons": _TEXTS}),
    "training": (1, {"row_id": _TEXT, "origin": _TEXT, "iteration": _INT, **_QUESTION, "answer_index": _INT,
                     "response": _TEXT, "score": _FLOAT}),
    "lineage": (1, {"triplet_id": _TEXT, "iteration": _INT, "image_sha256": _TEXT, "question": _TEXT,
                    "paradigm": _TEXT, "template_sha256": _TEXT, "generator": _TEXT, "score": _FLOAT,
                    "reward_digest": _TEXT, "keep": _BOOL, "reasons": _TEXTS}),
    # report: lineage of all iterations, and which models (sft@1, grpo@1, …) learnt from each triplet
    "lineage_report": (1, {"triplet_id": _TEXT, "iteration": _INT, "image_sha256": _TEXT, "question": _TEXT,
                           "paradigm": _TEXT, "template_sha256": _TEXT, "generator": _TEXT, "score": _FLOAT,
                           "reward_digest": _TEXT, "keep": _BOOL, "reasons": _TEXTS, "seen_by": _TEXTS}),
    # grpo, preferences
    "rollouts": (1, {"step": _INT, "prompt_id": _TEXT, "completion": _TEXT, "reward": _FLOAT, "reward_model": _FLOAT,
                     "match": _FLOAT, "parsed": _BOOL}),
    "preferences": (1, {"sample_id": _TEXT, "prompt_id": _TEXT, "split": _TEXT, **_QUESTION, "response": _TEXT,
                        "grade": _TEXT, "target": _FLOAT, "gold": _BOOL}),
    # evaluate
    "predictions": (1, {"checkpoint": _TEXT, "split": _TEXT, "benchmark": _TEXT, "item_id": _TEXT,
                        "image_sha256": _TEXT, "modality": _TEXT, "question_type": _TEXT, "condition": _TEXT,
                        "scoring": _TEXT, "answer_index": _INT, "predicted": _INT, "correct": _BOOL,
                        "option_logprobs": _FLOATS, "text": _TEXT}),
}  # fmt: skip


def schema(name: str) -> pa.Schema:
    """The arrow schema of a table; name and version ride along in its metadata."""
    version, columns = SCHEMAS[name]
    return pa.schema(list(columns.items()), metadata={"medgr2.table": name, "medgr2.version": str(version)})


def write(path: Path, name: str, rows: list[dict[str, Any]] | pa.Table) -> int:
    """Writes a table, durably and the same bytes for the same rows.

    Raises:
        KeyError: a row has a column that the schema does not know, or the arrow table has other columns.
    """
    table_schema = schema(name)
    if isinstance(rows, pa.Table):
        if set(rows.column_names) != set(table_schema.names):
            raise KeyError(f"table {name!r} has columns {table_schema.names}, not {rows.column_names}")
        table = rows.select(table_schema.names).cast(table_schema)
    else:
        unknown = {key for row in rows for key in row} - set(table_schema.names)
        if unknown:
            raise KeyError(f"table {name!r} has no column {', '.join(sorted(unknown))}")
        table = pa.Table.from_pylist(rows, schema=table_schema)
    with atomic.atomic_file(path) as stream:
        pq.write_table(table.combine_chunks(), stream, compression="zstd")  # the bytes depend on the chunks
    return int(table.num_rows)


class TableWriter:
    """Writes a table row by row, a batch in memory at a time; the same rows give the same bytes."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.rows = 0
        self._name = name
        self._schema = schema(name)
        self._batch: list[dict[str, Any]] = []
        self._writer = pq.ParquetWriter(stream, self._schema, compression="zstd")

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row.

        Raises:
            KeyError: it has a column that the schema does not know.
        """
        unknown = row.keys() - set(self._schema.names)
        if unknown:
            raise KeyError(f"table {self._name!r} has no column {', '.join(sorted(unknown))}")
        self._batch.append(row)
        self.rows += 1
        if len(self._batch) == _BATCH_ROWS:
            self._flush()

    def close(self) -> None:
        """Writes what is left, and the file's end."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._batch:
            self._writer.write_table(pa.Table.from_pylist(self._batch, schema=self._schema))
            self._batch = []


@contextmanager
def writer(path: Path, name: str) -> Iterator[TableWriter]:
    """A table that appears at `path` when the block ends well."""
    with atomic.atomic_file(path) as stream:
        made = TableWriter(stream, name)
        try:
            yield made
        except BaseException:
            with suppress(Exception):  # the file is thrown away; what went wrong is already on its way
                made.close()
            raise
        made.close()


def batches(path: Path, size: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of a table that this process has written, `size` at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=size):
            yield batch.to_pylist()


def read(path: Path, name: str) -> pa.Table:
    """Reads a table and checks that it is `name` in a version we know.

    Raises:
        CorruptArtifact: not parquet, another table, another version, or other columns.
    """
    try:
        # not pq.read_table: it would read columns from folders that are called `key=value`
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the file's
            raise
        raise CorruptArtifact(f"{path}: not a readable parquet file ({error})") from error
    metadata = table.schema.metadata or {}
    found = (metadata.get(b"medgr2.table", b"").decode(), metadata.get(b"medgr2.version", b"").decode())
    expected = (name, str(SCHEMAS[name][0]))
    if found != expected:
        raise CorruptArtifact(f"{path}: is table {found}, this version of MedGR2 reads {expected}")
    try:
        return table.cast(schema(name))
    except (ValueError, pa.ArrowException) as error:  # other names or types of columns
        raise CorruptArtifact(f"{path}: its columns are not those of table {expected} ({error})") from error
