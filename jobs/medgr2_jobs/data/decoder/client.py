"""The stage's side of the decoder process, in which alone files of other people are decoded.

The process is started when it is first needed, lives as long as the stage, and is replaced when it dies: the picture
that it died of cannot be used, and the next one goes on.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import TemporaryError
from ...store.images import EncodedImage
from . import limits, protocol
from .protocol import BadField, Header, Message

_WORKER = f"{__package__}.worker"
#: One thread each, and an allocator that reserves nothing: both would take address space, and pictures are small.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
#: Signals that say nothing about the picture: sent by somebody else, or by a kernel that is out of memory.
_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}


class _Died(Exception):
    """The process died of a picture, or had to be killed."""

    def __init__(self, reason: str, *, from_outside: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.from_outside = from_outside


class _Process:
    """One running decoder."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        """Of the process that started it: a fork of that one must not talk to it."""
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ENVIRONMENT},
            start_new_session=True,  # signals to the stage's group are for the stage
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._requests, self._replies = self._child.stdin, self._child.stdout
        self._buffer = bytearray()
        if self.receive().header.get("ready") is not True:
            raise TemporaryError("the decoder process says something else than that it is ready")

    def send(self, message: Message) -> None:
        """Asks.

        Raises:
            _Died: there is nobody to ask.
        """
        try:
            self._requests.write(protocol.pack(message))
            self._requests.flush()
        except BrokenPipeError:
            raise self._died() from None

    def receive(self) -> Message:
        """The next reply.

        Raises:
            _Died: the process died, or did not answer in time and was killed.
        """
        deadline = time.monotonic() + limits.WAIT_SECONDS
        while (message := protocol.take(self._buffer)) is None:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._replies], [], [], left)[0]:
                self._child.kill()
                self._child.wait()
                raise _Died(f"was not decoded in {limits.WAIT_SECONDS:g} seconds; it was given up")
            data = os.read(self._replies.fileno(), 1 << 20)
            if not data:
                raise self._died()
            self._buffer += data
        return message

    def _died(self) -> _Died:
        code = self._child.wait()
        if code >= 0:
            return _Died(f"ended the decoder process with exit code {code}")
        number = signal.Signals(-code)
        if number == signal.SIGPROF:
            return _Died(f"takes more than {limits.SECONDS:g} seconds of processor time to decode; it was given up")
        return _Died(f"crashes the decoder ({number.name})", from_outside=number in _FROM_OUTSIDE)

    def close(self) -> None:
        """Ends it; what it is doing is lost."""
        if self.pid == os.getpid():
            self._child.kill()
            self._child.wait()
        for stream in (self._requests, self._replies):
            with suppress(OSError):
                stream.close()


#: Those that nobody talks to: mostly one; more where somebody asks for a picture while another file is being read.
_idle: list[_Process] = []


def picture(source: Path | bytes, max_pixels: int) -> EncodedImage:
    """A picture, of a file or of bytes, as the store keeps it.

    Raises:
        BadField: it cannot be used; the field is for the caller to name.
        OSError: the disk fails.
    """
    header: dict[str, Any] = {"request": "picture", "max_pixels": max_pixels}
    request = Message(header, source) if isinstance(source, bytes) else Message({**header, "path": os.fspath(source)})
    try:
        try:
            [reply] = _replies(request)
        except _Died as died:
            if not died.from_outside:
                raise
            [reply] = _replies(request)
    except _Died as died:
        raise BadField("-", died.reason) from None
    return reply.picture()


@dataclass(frozen=True)
class Decoded:
    """One of the replies to a request."""

    header: Header
    payload: bytes = b""
    bad: BadField | None = None
    """Why there is no more of it: what the process said, or what it died of."""

    def picture(self) -> EncodedImage:
        """The picture that it brings.

        Raises:
            BadField: it brings the reason why there is none.
        """
        if self.bad is not None:
            raise self.bad
        header = self.header
        return EncodedImage(
            self.payload,
            header["width"],
            header["height"],
            header["one_colour"],
            header["phash"],
            tuple(header.get("parts", ())),
        )


def parquet_rows(path: Path, pictures: Sequence[str], max_pixels: int) -> Iterator[tuple[Header, Decoded]]:
    """Each row of a parquet file: its columns, and the picture that the columns named in `pictures` make together.

    Raises:
        BadField: the file cannot be read.
        OSError: the disk fails.
    """
    document: Header | None = None
    wrong: BadField | None = None
    request = {"request": "parquet", "path": os.fspath(path), "pictures": list(pictures), "max_pixels": max_pixels}
    for reply in numbered(request):
        if "row" in reply.header:
            document = reply.header["document"]
            continue
        if document is None:  # it ended in the file itself
            wrong = reply.bad or BadField("-", "cannot be read")
            if "item" in reply.header:  # it died of it, and would again
                break
            continue
        yield document, reply
        document = None
    if wrong is not None:
        raise wrong


def numbered(request: Header, payload: bytes = b"") -> Generator[Decoded]:
    """The replies to a request about items that are counted from 0; each reply that ends one says which in `item`.

    An item that the process dies of comes with the reason, and a new process goes on behind it: who sees that it died
    before the first item stops here, or it dies again. A process that was killed from outside is asked once more. Who
    stops earlier than the replies do ends the process.

    Raises:
        OSError: the disk fails.
    """
    start, again = 0, True
    while True:
        try:
            for reply in _replies(Message({**request, "start": start}, payload)):
                if "item" in reply.header:
                    start, again = reply.header["item"] + 1, True
                yield reply
            return
        except _Died as died:
            if died.from_outside and again:
                again = False
                continue
            yield Decoded({"item": start}, bad=BadField("-", died.reason))
            start, again = start + 1, True


def _replies(request: Message) -> Iterator[Decoded]:
    """What a process says to a request, until it has said all.

    Raises:
        _Died: it dies meanwhile.
        OSError: the disk fails.
    """
    process, whole = _taken(), False
    try:
        process.send(request)
        while not (reply := process.receive()).header.get("end"):
            if disk := reply.header.get("disk"):
                raise OSError(*disk)
            bad = reply.header.get("unusable")
            yield Decoded(reply.header, reply.payload, protocol.bad_field(bad) if bad else None)
        whole = not reply.header["last"]
    finally:
        if whole:
            _idle.append(process)
        else:  # it is dead, makes way for a fresh one, or has more to say that nobody waits for
            process.close()


def _taken() -> _Process:
    while _idle:
        process = _idle.pop()
        if process.pid == os.getpid():
            return process
        process.close()  # of the process that this one was forked from
    return _Process()


@atexit.register
def close() -> None:
    """Ends the idle processes; the next picture starts another."""
    while _idle:
        _idle.pop().close()
