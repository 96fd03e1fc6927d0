"""Parquet files with pictures in them: looked at before they are read, row by row, each picture for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support import hostile_pictures
from tests.support.decoder_processes import decoders, peak_memory
from tests.support.hostile_pictures import encoded, noise
from tests.unit.jobs.data.test_mmmu import SUBJECT, read, row, write

from medgr2_jobs.data.decoder import client, limits, parquet_rows
from medgr2_jobs.data.decoder.protocol import BadField, Message
from medgr2_jobs.data.record import BadRecord, Record
from medgr2_jobs.errors import DataError

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
PNG = encoded(noise(), "PNG")


def rows(path: Path) -> list[tuple[Any, client.Decoded]]:
    return list(client.parquet_rows(path, ["image_1"], 10**6))


def test_rows_come_in_their_order_over_row_groups(tmp_path: Path) -> None:
    table = pa.table({"id": [str(n) for n in range(11)], "image_1": pa.array([{"bytes": PNG}] * 11, IMAGE)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=3)
    assert [document["id"] for document, _ in rows(tmp_path / "x.parquet")] == [str(n) for n in range(11)]
    header = {"path": str(tmp_path / "x.parquet"), "pictures": ["image_1"], "max_pixels": 100, "start": 7}
    replies = list(parquet_rows.answer(Message(header)))
    assert [reply.header["row"] for reply in replies if "row" in reply.header] == [7, 8, 9, 10], "after a crash"


def test_each_bad_picture_is_its_own_rows(tmp_path: Path) -> None:
    bombs = hostile_pictures.bombs()
    cells = [
        {"bytes": PNG},
        {"bytes": bombs["png-claims-much"]()},
        {"bytes": hostile_pictures.foreign()["postscript"]},
        {"bytes": b""},
        {"bytes": None},
        None,
        {"bytes": PNG[:60]},
        {"bytes": PNG},
    ]
    write(tmp_path, [row(number, image_1=cell) for number, cell in enumerate(cells)])
    found = read(tmp_path)
    assert [type(record) for record in found] == [Record, *[BadRecord] * 6, Record]
    assert {record.field for record in found if isinstance(record, BadRecord)} == {"image_1"}


def test_text_that_is_not_utf8_is_its_own_rows(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": raw, "image_1": pa.array([{"bytes": PNG}] * 3, IMAGE)}), tmp_path / "x.parquet")
    assert [reply.bad is None for _, reply in rows(tmp_path / "x.parquet")] == [True, False, True]


def test_a_row_group_is_looked_at_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [row()])
    path = tmp_path / "mmmu" / SUBJECT / "validation-00000-of-00001.parquet"
    monkeypatch.setattr(parquet_rows, "_ROW_GROUP", 100)
    header = {"path": str(path), "pictures": ["image_1"], "max_pixels": 100, "start": 0}
    with pytest.raises(BadField, match=r"row group 0 has 0 MiB unpacked; .* smaller row groups"):
        list(parquet_rows.answer(Message(header)))


@pytest.mark.parametrize("encoding", ["dictionary", "plain"])
def test_a_small_file_that_unpacks_to_something_large_is_refused(tmp_path: Path, encoding: str) -> None:
    """Nested bytes, too: a dictionary holds one value once, and the rows name it often."""
    value, count = bytes(300 * 2**20), 4
    cells = pa.array([{"bytes": value, "path": "x"}], IMAGE).take(pa.array([0] * count))
    table = pa.table({"id": [str(n) for n in range(count)], "image_1": cells})
    path = tmp_path / "mmmu" / SUBJECT / "validation-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(table, path, use_dictionary=encoding == "dictionary", write_statistics=False)
    del table, cells
    assert path.stat().st_size < 2**26
    client.close()
    with pytest.raises(DataError, match=f"{path}: "):
        read(tmp_path)
    assert not decoders() or peak_memory() < limits.MEMORY


def test_what_is_no_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mmmu" / SUBJECT / "validation-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    client.close()
    pids = []
    for data in (b"", b"PAR1", b"PAR1" + bytes(99) + b"PAR1", PNG):
        path.write_bytes(data)
        with pytest.raises(DataError, match=f"{path}: not a readable parquet file"):
            read(tmp_path)
        pids.append([decoder.pid for decoder in decoders()])
    assert pids[0]
    assert pids == [pids[0]] * 4, "a bad file costs no process"
