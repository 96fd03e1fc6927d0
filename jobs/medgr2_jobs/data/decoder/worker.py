"""The decoder process: `python -m medgr2_jobs.data.decoder.worker`. Reads requests on stdin, answers on stdout.

It may die of any of them. It never imports torch, and ends when its stdin does.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

from PIL import Image

from . import limits, protocol
from .protocol import Message

#: Module that answers each kind of request: its `answer` yields replies.
ANSWERS = {"picture": "pictures", "dicom": "dicom_file", "parquet": "parquet_rows"}
#: Bytes of address space by which the process may have grown at rest before it makes way for a fresh one.
_GROWN = 256 * limits.MiB


def main() -> int:
    """Answers until stdin ends, or until this process has grown too large: decoders leak."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the stage, which decides
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # time is up: ends the process in the middle of a library's code
    requests, replies = os.fdopen(0, "rb", closefd=False), os.fdopen(os.dup(1), "wb")
    limits.confine()
    Image.MAX_IMAGE_PIXELS = None  # `limits.check` says more
    _send(replies, Message({"ready": True}))
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # what libraries print quotes what is in the file
        os.dup2(null, descriptor)
    at_rest: dict[str, int] = {}
    while (request := protocol.read(requests)) is not None:
        kind = request.header["request"]
        answer: Callable[[Message], Iterator[Message]]
        answer = importlib.import_module(f".{ANSWERS[kind]}", __package__).answer
        for reply in _guarded(answer, request):
            _send(replies, reply)
        first = at_rest.setdefault(kind, limits.address_space())  # what libraries reserve once is no leak
        last = limits.address_space() > first + _GROWN
        _send(replies, Message({"end": True, "last": last}))
        if last:
            break
    return 0


def _guarded(answer: Callable[[Message], Iterator[Message]], request: Message) -> Iterator[Message]:
    """The replies; whatever is raised becomes one."""
    limits.begin()
    try:
        yield from answer(request)
    except BaseException as error:  # decoders panic with exceptions that are no Exception
        if limits.is_the_disks(error):
            yield Message({"disk": [error.errno, error.strerror]})
        else:
            yield Message({"unusable": protocol.unusable(limits.blamed(error))})
    finally:
        limits.end()


def _send(stream: BinaryIO, message: Message) -> None:
    stream.write(protocol.pack(message))
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
