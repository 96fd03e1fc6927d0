"""Tables: the same rows give the same bytes; what a row class does not allow is refused, with its place."""

from __future__ import annotations

import importlib
import json
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medgr2_jobs.errors import CorruptArtifact
from medgr2_jobs.store import rows as row_classes
from medgr2_jobs.store import tables
from medgr2_jobs.store.rows import TableRow, TableView
from medgr2_jobs.store.rows.candidates import Candidate, CandidateOutcome, Decision, Score, Truth

COLUMNS = Path(__file__).with_name("pinned_columns.json")
ROWS = [Score(f"t{number}", number / 3) for number in range(500)]
KINDS = [
    kind
    for module in pkgutil.iter_modules(row_classes.__path__, f"{row_classes.__name__}.")
    for kind in vars(importlib.import_module(module.name)).values()
    if isinstance(kind, type) and issubclass(kind, TableRow) and kind.__module__ == module.name
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.TABLE)
def test_every_table_can_be_empty(tmp_path: Path, kind: type[TableRow]) -> None:
    assert tables.write(tmp_path / "x.parquet", kind, []) == 0
    assert tables.read(tmp_path / "x.parquet", kind) == []
    assert pq.read_schema(tmp_path / "x.parquet").metadata[b"medgr2.table"] == kind.TABLE.encode()


def test_every_table_has_its_own_name() -> None:
    assert len({kind.TABLE for kind in KINDS}) == len(KINDS)


def columns() -> dict[str, dict[str, Any]]:
    """Of each table its version and its columns with their types."""
    return {
        kind.TABLE: {
            "version": kind.VERSION,
            "columns": {column.name: str(column.type) for column in tables.schema(kind)},
        }
        for kind in KINDS
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.TABLE)
def test_the_columns_of_a_table_are_pinned(kind: type[TableRow]) -> None:
    """Files of earlier versions lie on people's volumes: a table of other columns is of another version."""
    pinned, now = json.loads(COLUMNS.read_text()).get(kind.TABLE), columns()[kind.TABLE]
    assert pinned is not None, f"table {kind.TABLE!r} is new: run `make pins`"
    # as text: the order of the columns counts, too
    if json.dumps(now["columns"]) != json.dumps(pinned["columns"]):
        assert now["version"] != pinned["version"], (
            f"table {kind.TABLE!r} has other columns than before: raise {kind.__name__}.VERSION, then run `make pins`; "
            f"before {pinned['columns']}, now {now['columns']}"
        )
    assert json.dumps(now) == json.dumps(pinned), f"table {kind.TABLE!r} has another version: run `make pins`"


def test_no_table_is_pinned_that_is_gone() -> None:
    assert json.loads(COLUMNS.read_text()).keys() == columns().keys(), "run `make pins`"


def test_same_rows_same_bytes(tmp_path: Path) -> None:
    tables.write(tmp_path / "whole", Score, ROWS)
    tables.write(tmp_path / "again", Score, list(ROWS))
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "again").read_bytes()


def test_a_stream_gives_the_rows_whatever_the_batches(tmp_path: Path) -> None:
    many = [Score(f"t{number}".ljust(60, str(number % 7)), number / 3) for number in range(30_000)]  # several batches
    for name in ("one", "two"):
        with tables.writer(tmp_path / name, Score) as writer:
            writer.extend(many)
        assert writer.rows == len(many)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert tables.read(tmp_path / "one", Score) == many
    assert [row for batch in tables.batches(tmp_path / "one", Score, 700) for row in batch] == many


def test_a_stream_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with tables.writer(tmp_path / "x", Score) as writer:
            writer.append(ROWS[0])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not (tmp_path / "x").exists()


_TEXT = st.text(max_size=5).filter(lambda text: "\ud800" not in text)
_DECISIONS = st.builds(
    Decision,
    triplet_id=_TEXT,
    keep=st.booleans(),
    reasons=st.lists(_TEXT, max_size=3).map(tuple),
    option_order=st.none() | st.permutations(range(4)).map(tuple),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(_DECISIONS, max_size=20))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[Decision]) -> None:
    path = tmp_path_factory.mktemp("table") / "x.parquet"
    tables.write(path, Decision, rows)
    assert tables.read(path, Decision) == rows


def test_enums_come_back_as_enums(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    tables.write(path, Candidate, [candidate()])
    [row] = tables.read(path, Candidate)
    assert row.outcome is CandidateOutcome.OK
    assert row == candidate()


def test_a_value_that_the_enum_does_not_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = tables.to_arrow(Candidate, [candidate()])
    place = table.column_names.index("outcome")
    pq.write_table(table.set_column(place, "outcome", pa.array(["splendid"])).cast(tables.schema(Candidate)), path)
    with pytest.raises(CorruptArtifact, match=r"x\.parquet: table 'candidates', column outcome: 'splendid'"):
        tables.read(path, Candidate)


def test_a_null_where_none_may_be_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    broken: Any = None
    tables.write(path, Score, [ROWS[0], Score("t1", broken)])
    with pytest.raises(CorruptArtifact, match=r"table 'scores', row 1: score must not be null"):
        tables.read(path, Score)


def test_unknown_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    tables.write(path, Score, ROWS)
    with pytest.raises(CorruptArtifact, match="is table"):
        tables.read(path, Truth)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"medgr2.table": "scores", "medgr2.version": "2"}), path)
    with pytest.raises(CorruptArtifact, match="'2'"):
        tables.read(path, Score)
    pq.write_table(table.rename_columns(["triplet_id", "points"]).replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(CorruptArtifact, match="columns"):
        tables.read(path, Score)
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(CorruptArtifact, match="not a readable parquet"):
        tables.read(path, Score)


@dataclass(frozen=True, slots=True)
class Outcomes(TableView):
    """Two columns of the candidates."""

    TABLE = Candidate.TABLE
    VERSION = Candidate.VERSION

    triplet_id: str
    outcome: CandidateOutcome


def test_a_view_reads_its_columns_only(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    tables.write(path, Candidate, [candidate()] * 3)
    assert tables.read(path, Outcomes) == [Outcomes(candidate().triplet_id, CandidateOutcome.OK)] * 3
    assert tables.read_arrow(path, Outcomes).column_names == ["triplet_id", "outcome"]
    assert [len(batch) for batch in tables.batches(path, Outcomes, 2)] == [2, 1]


def test_only_the_rows_that_are_asked_for_become_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    tables.write(path, Score, ROWS)
    made: list[str] = []
    monkeypatch.setattr(Score, "__init__", _counting(Score.__init__, made))
    batches = list(tables.batches(path, Score, 100, ("triplet_id", ["t7", "t499", "t500"])))
    assert [row.triplet_id for batch in batches for row in batch] == made == ["t7", "t499"]


def _counting(init: Any, made: list[str]) -> Any:
    def counted(row: Score, triplet_id: str, score: float) -> None:
        made.append(triplet_id)
        init(row, triplet_id, score)

    return counted


def test_a_view_of_another_table_or_of_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    tables.write(path, Score, ROWS)
    for read in (tables.read, lambda path, kind: list(tables.batches(path, kind))):
        with pytest.raises(CorruptArtifact, match="is table"):
            read(path, Outcomes)
    table = tables.to_arrow(Candidate, [candidate()])
    pq.write_table(table.drop_columns("outcome").replace_schema_metadata(table.schema.metadata), path)
    for read in (tables.read, lambda path, kind: list(tables.batches(path, kind))):
        with pytest.raises(CorruptArtifact, match="columns"):
            read(path, Outcomes)


def test_folders_do_not_become_columns(tmp_path: Path) -> None:
    path = tmp_path / "triplet_id=7" / "x.parquet"
    tables.write(path, Score, ROWS)
    assert tables.read(path, Score) == ROWS


def candidate() -> Candidate:
    return Candidate(
        triplet_id="t1",
        iteration=1,
        image_sha256="0" * 64,
        modality="CT",
        question_type="Diagnosis",
        question="What is it?",
        options=("a", "b", "c", "d"),
        answer_index=1,
        rationale="It is b.",
        response="<think>It is b.</think><answer>B</answer>",
        paradigm="Direct",
        template_sha256="1" * 64,
        generator="model",
        outcome=CandidateOutcome.OK,
        error="",
        attempts=1,
        input_tokens=None,
        output_tokens=None,
        thinking_tokens=None,
        usd=None,
    )


def write() -> None:
    """Pins the columns as they are now."""
    COLUMNS.write_text(json.dumps(columns(), indent=1) + "\n")


if __name__ == "__main__":
    write()
