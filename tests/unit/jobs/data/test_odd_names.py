"""Names that no file can have, and files that are none: one record is set aside, the source is read to its end."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.hostile_pictures import noise
from tests.unit.jobs.data.test_dicom import made
from tests.unit.jobs.data.test_mmmu import SUBJECT, row
from tests.unit.jobs.data.test_omnimedvqa import good as omni
from tests.unit.jobs.data.test_omnimedvqa import place
from tests.unit.jobs.data.test_vqajsonl import good

from medgr2_jobs.data import format_registry
from medgr2_jobs.data.record import BadRecord, Record
from medgr2_jobs.errors import DataError

#: What a record may name, by what is wrong with it.
NAMES = {
    "too long": "x" * 300 + ".png",
    "too long a path": "a/" * 2500 + "x.png",
    "a link to itself": "loop.png",
    "two links to each other": "one.png",
    "half a surrogate pair": "x\ud800.png",
    "a NUL byte": "x\0.png",
    "a folder": "folder.png",
    "a pipe": "pipe.png",
    "a device": "zero.png",
    "a socket": "socket.png",
    "below a file": "a.png/x.png",
    "out of the folder": "../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "a home": "~root/x.png",
    "out by a link": "out.png",
    "nothing": "gone.png",
    "a dot": ".",
    "spaces": "   ",
    "another system's": "C:\\images\\x.png",
    "an address": "file:///etc/passwd",
    "line breaks": "x\n\r.png",
}


@contextmanager
def odd_files(folder: Path) -> Iterator[None]:
    """The files that some of the names are of. A socket's path must be short."""
    import socket

    noise().save(folder / "a.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "one.png").symlink_to("two.png")
    (folder / "two.png").symlink_to("one.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "out.png").symlink_to("/etc/passwd")
    before = Path.cwd()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(folder)
        try:
            server.bind("socket.png")
        finally:
            os.chdir(before)
        yield


def read(root: Path, uri: str, **fields: Any) -> list[Record | BadRecord]:
    """Through the door that prepare uses; every message can be written down."""
    where = place(root, uri, **fields)
    found = list(format_registry.reader(where.source, "data.sources[s]")(where))
    for record in found:
        repr(record).encode()
        if isinstance(record, BadRecord):
            str(record).encode()
    return found


@pytest.mark.parametrize("kind", NAMES)
def test_a_record_may_name_anything(tmp_path: Path, kind: str) -> None:
    with odd_files(tmp_path):
        lines = [good(id="1"), good(id="2", image=NAMES[kind]), good(id="3")]
        (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
        found = read(tmp_path, "q.jsonl", format="VQAJsonl")
        assert [type(record) for record in found] == [Record, BadRecord, Record]
        assert str(found[1]).startswith("q.jsonl[1]: image: ")

        records = [omni(1), omni(2, image_path=NAMES[kind]), omni(3)]
        (tmp_path / "q.json").write_text(json.dumps(records))
        found = read(tmp_path, "q.json", format="OmniMedVQA")
        assert [type(record) for record in found] == [Record, BadRecord, Record]
        assert isinstance(found[1], BadRecord)
        assert (found[1].where.startswith("q.json[1]"), found[1].field) == (True, "image_path")


def test_a_folder_may_hold_anything(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with odd_files(folder):
        odd = os.fsencode(folder) + b"/\xe9t\xe9.png"  # latin-1
        noise().save(folder / "b.png")
        os.rename(os.fsencode(folder / "b.png"), odd)
        found = read(tmp_path, "data", format="ImageFolder", modality="CT")
        assert len(found) == 9
        assert sum(isinstance(record, Record) for record in found) in (
            1,
            2,
        )  # a.png; perhaps under a pseudonym, été.png


def test_a_folder_of_dicom_files_may_hold_anything(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with odd_files(folder):
        made(np.arange(64, dtype=np.int16).reshape(8, 8)).save_as(folder / "good.dcm", enforce_file_format=True)
        os.rename(os.fsencode(folder / "a.png"), os.fsencode(folder) + b"/\xe9t\xe9.dcm")
        found = read(tmp_path, "data", format="DICOM", modality="CT")
        assert len(found) == 9
        assert sum(isinstance(record, Record) for record in found) == 1


def test_a_table_of_pictures_may_name_anything(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    noise().save(folder / "a.png")
    names = [name for name in NAMES.values() if "\0" not in name and "\ud800" not in name and name.strip()]
    text = "\n".join(["file_name", "a.png", *(f'"{name}"' for name in names)])
    (folder / "metadata.csv").write_text(text)
    found = read(tmp_path, "data", format="ImageFolder", modality="CT")
    assert sum(isinstance(record, Record) for record in found) == 1
    assert len(found) == 1 + len(names)


def test_embedded_pictures_may_have_any_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise().save(buffer, "PNG")
    rows = [
        row(number, image_1={"bytes": buffer.getvalue(), "path": name})
        for number, name in enumerate(name for name in NAMES.values() if "\ud800" not in name)
    ]
    (tmp_path / "mmmu" / SUBJECT).mkdir(parents=True)
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({name: image if name.startswith("image_") else pa.string() for name in row()})
    pq.write_table(
        pa.Table.from_pylist(rows, schema=schema), tmp_path / "mmmu" / SUBJECT / "validation-00000-of-00001.parquet"
    )
    found = read(tmp_path, "mmmu", format="MMMU", mmmu={"subjects": [SUBJECT]})
    assert [type(record) for record in found] == [Record] * len(rows)


@pytest.mark.parametrize("kind", ["pipe.png", "socket.png", "loop.png", "folder.png", "zero.png"])
@pytest.mark.parametrize("uses", ["VQAJsonl", "OmniMedVQA", "DICOM", "ImageFolder", "MMMU"])
def test_a_source_may_itself_be_anything(tmp_path: Path, kind: str, uses: str) -> None:
    """It is refused, and nothing waits for a pipe that nobody writes to."""
    with odd_files(tmp_path):
        try:
            found = read(tmp_path, kind, format=uses, modality="CT")
        except DataError:
            found = []
        assert not [record for record in found if isinstance(record, Record)]
