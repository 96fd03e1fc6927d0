"""Reads what W&B's client writes offline: its protobuf records in a log of LevelDB's format.

The package itself reads such files only to send them away (`wandb sync`).
"""

from __future__ import annotations

import struct
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

_HEADER, _BLOCK = b":W&B", 32768
_FILE_HEADER_BYTES = 7
_RECORD_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _LAST = 1, 4


def records(file: Path) -> list[Record]:
    """Everything that a `run-*.wandb` file holds, in its order."""
    data = file.read_bytes()
    assert data.startswith(_HEADER)
    found, parts, at = [], b"", _FILE_HEADER_BYTES
    while at + _RECORD_HEADER.size <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _RECORD_HEADER.size:
            at += left
            continue
        _, length, kind = _RECORD_HEADER.unpack_from(data, at)
        at += _RECORD_HEADER.size
        parts += data[at : at + length]
        at += length
        if kind in (_FULL, _LAST):
            found.append(Record.FromString(parts))
            parts = b""
    return found
