"""What the stage and its decoder process say to each other over two pipes: a JSON header and bytes, both with their
length before them. No pickles: what comes back was made by code that has read a stranger's file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from ...store.rows.prepared import SetAside

_LENGTHS = struct.Struct(">IQ")
Header = Mapping[str, Any]


class BadField(Exception):
    """This record cannot be used: which field, why, and what kind of reason it is."""

    def __init__(self, field: str, reason: str, kind: SetAside = SetAside.UNUSABLE) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason
        self.kind = kind


@dataclass(frozen=True)
class Message:
    """One request or reply."""

    header: Header
    payload: bytes = b""


def pack(message: Message) -> bytes:
    """A message as bytes."""
    header = json.dumps(message.header).encode()
    return _LENGTHS.pack(len(header), len(message.payload)) + header + message.payload


def read(stream: BinaryIO) -> Message | None:
    """The next message; None where the stream ends, also in the middle of one."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    header_size, payload_size = _LENGTHS.unpack(lengths)
    header, payload = stream.read(header_size), stream.read(payload_size)
    if len(header) < header_size or len(payload) < payload_size:
        return None
    return Message(json.loads(header), payload)


def take(buffer: bytearray) -> Message | None:
    """Takes a message off the front of what has arrived; None while it is not there as a whole."""
    if len(buffer) < _LENGTHS.size:
        return None
    header_size, payload_size = _LENGTHS.unpack_from(buffer)
    begin = _LENGTHS.size + header_size
    if len(buffer) < begin + payload_size:
        return None
    message = Message(json.loads(buffer[_LENGTHS.size : begin]), bytes(buffer[begin : begin + payload_size]))
    del buffer[: begin + payload_size]
    return message


def unusable(error: BadField) -> Header:
    """How a bad field crosses."""
    return {"field": error.field, "reason": error.reason, "kind": error.kind.value}


def bad_field(written: Header) -> BadField:
    """The bad field that crossed."""
    return BadField(str(written["field"]), str(written["reason"]), SetAside(written["kind"]))
