"""The items of a JSON list, one at a time, however long the file is.

By Python's own decoder and not a streaming parser: those know no NaN, which Python's tables write for an empty cell.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ..errors import DataError

_CHUNK = 1 << 16  # characters read at once; a longer item doubles it
_BROKEN = 64  # characters: what is wrong so far before the end of what is read does not get better by reading on
_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"


def items(file: Path, name: str) -> Iterator[Any]:
    """The items of the list that a file holds; messages call it by this name.

    Raises:
        DataError: the file is not JSON in UTF-8, not a list, or nested too deeply.
    """
    with file.open(encoding="utf-8-sig") as stream:
        try:
            yield from _Text(stream).items(name)
        except RecursionError as error:
            raise DataError(f"{name}: JSON nested too deeply") from error
        except ValueError as error:  # also of a text that is not UTF-8, and of a number of thousands of digits
            raise DataError(_explained(file, name, error)) from error


class _Text:
    """The part of a file that is in memory, and how far it is read."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._text, self._at = "", 0

    def items(self, name: str) -> Iterator[Any]:
        if (first := self._next()) != "[":
            value = self._value()
            kind = {dict: "object", str: "text", bool: "boolean", type(None): "null"}.get(type(value), "number")
            raise DataError(f"{name}: must hold a JSON list of records, but holds a JSON {kind}")
        self._take(first)
        if self._next() == "]":
            self._take("]")
        else:
            yield self._value()
            while self._next() == ",":
                self._take(",")
                yield self._value()
            self._take("]")
        if self._next():
            raise ValueError("something follows the list")

    def _next(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self._at < len(self._text):
                if (character := self._text[self._at]) not in _SPACE:
                    return character
                self._at += 1
            if not self._more():
                return ""

    def _take(self, character: str) -> None:
        if self._next() != character:
            raise ValueError(f"{character!r} expected")
        self._at += 1

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                open_end = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _BROKEN
                if not open_end or not self._more():
                    raise
                continue
            if end < len(self._text) or not self._more():  # a number may go on in what is not read yet
                self._at = end
                return value

    def _more(self) -> bool:
        """Reads on; false at the end of the file."""
        rest = self._text[self._at :]
        piece = self._stream.read(max(_CHUNK, len(rest)))
        self._text, self._at = rest + piece, 0
        return bool(piece)


def _explained(file: Path, name: str, error: Exception) -> str:
    """Where a file stops being JSON, counted from its beginning."""
    try:
        json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as found:
        return f"{name}: not JSON: {found.msg} at line {found.lineno}, column {found.colno}"
    except UnicodeDecodeError as found:
        return f"{name}: not UTF-8 text (byte {found.start})"
    except ValueError as found:
        return f"{name}: not readable: {found}"
    return f"{name}: not JSON: {error}"
