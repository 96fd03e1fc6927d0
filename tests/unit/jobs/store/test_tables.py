"""Tables: same rows, same bytes; an unknown version, table or column is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medgr2_jobs.errors import CorruptArtifact
from medgr2_jobs.store import tables

ROWS = [{"triplet_id": f"t{number}", "score": number / 3} for number in range(500)]


@pytest.mark.parametrize("name", sorted(tables.SCHEMAS))
def test_every_table_can_be_empty(tmp_path: Path, name: str) -> None:
    assert tables.write(tmp_path / "x.parquet", name, []) == 0
    assert tables.read(tmp_path / "x.parquet", name).schema.equals(tables.schema(name), check_metadata=True)


def test_same_rows_same_bytes(tmp_path: Path) -> None:
    whole = pa.Table.from_pylist(ROWS, schema=tables.schema("scores"))
    pieces = pa.concat_tables([whole.slice(start, 7) for start in range(0, 500, 7)])
    versions = {
        "rows": ROWS,
        "other key order": [dict(reversed(row.items())) for row in ROWS],
        "table": whole,
        "pieces": pieces,
        "other column order": pieces.select(["score", "triplet_id"]),
    }
    written = set()
    for name, rows in versions.items():
        tables.write(tmp_path / name, "scores", rows)
        written.add((tmp_path / name).read_bytes())
    assert len(written) == 1


def test_the_pieces_of_a_large_table_do_not_show(tmp_path: Path) -> None:
    names = [f"t{number}".ljust(60, str(number % 7)) for number in range(30_000)]  # more than one page of parquet
    whole = pa.table({"triplet_id": names, "score": [number / 3 for number in range(30_000)]})
    pieces = pa.concat_tables([whole.slice(start, 700) for start in range(0, 30_000, 700)])
    for name, table in (("whole", whole), ("pieces", pieces)):
        tables.write(tmp_path / name, "scores", table)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()


rows_strategy = st.lists(
    st.fixed_dictionaries(
        {
            "triplet_id": st.text(max_size=5).filter(lambda text: "\ud800" not in text),
            "keep": st.booleans(),
            "score": st.none() | st.floats(allow_nan=False),
            "reasons": st.lists(st.text(max_size=5), max_size=3),
        }
    ),
    max_size=20,
)


@settings(max_examples=40, deadline=None)
@given(rows_strategy)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("table") / "x.parquet"
    tables.write(path, "decisions", rows)
    assert tables.read(path, "decisions").to_pylist() == rows


def test_unknown_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="colour"):
        tables.write(tmp_path / "x", "scores", [*ROWS, {"triplet_id": "t", "score": 1.0, "colour": "red"}])
    with pytest.raises(KeyError, match="has columns"):
        tables.write(tmp_path / "x", "scores", pa.table({"triplet_id": ["t"]}))
    assert not list(tmp_path.iterdir())


def test_unknown_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    tables.write(path, "scores", ROWS)
    with pytest.raises(CorruptArtifact, match="is table"):
        tables.read(path, "truth")
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"medgr2.table": "scores", "medgr2.version": "2"}), path)
    with pytest.raises(CorruptArtifact, match="'2'"):
        tables.read(path, "scores")
    pq.write_table(table.rename_columns(["triplet_id", "points"]).replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(CorruptArtifact, match="columns"):
        tables.read(path, "scores")
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(CorruptArtifact, match="not a readable parquet"):
        tables.read(path, "scores")


def test_folders_do_not_become_columns(tmp_path: Path) -> None:
    path = tmp_path / "triplet_id=7" / "x.parquet"
    tables.write(path, "scores", ROWS)
    assert tables.read(path, "scores").to_pylist() == ROWS
