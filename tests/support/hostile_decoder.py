"""A decoder process whose decoders do what a file says: `python -m tests.support.hostile_decoder`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

from PIL import Image

from medgr2_jobs.data.decoder import limits, pictures, worker
from medgr2_jobs.data.decoder.protocol import Message

#: Of the killed process: whoever is asked again finds this file.
ONCE = "once"
_leaked: list[bytes] = []


def answer(request: Message) -> Iterator[Message]:
    """An item for each word of the file's first line: done, or the end of this process."""
    with open(request.header["path"]) as file:
        words = file.readline().split()
    for item in range(request.header.get("start", 0), len(words)):
        limits.begin()
        yield _item(words[item], request, item)


def _item(word: str, request: Message, item: int) -> Message:
    match word:
        case "abort":
            os.abort()
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(7)
        case "spin":
            while True:
                item = (item * 31 + 7) % 1009
        case "wait":
            time.sleep(3600)
        case "memory":
            bytearray(2 * limits.MEMORY)
        case "leak":
            _leaked.append(bytes(300 * limits.MiB))
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "killed-once":
            mark = os.path.join(os.path.dirname(request.header["path"]), ONCE)
            if not os.path.exists(mark):
                os.mkdir(mark)
                os.kill(os.getpid(), signal.SIGKILL)
        case "print":
            print("the name of a patient", flush=True)
            print("the name of a patient", file=sys.stderr, flush=True)
        case "disk":
            raise OSError(5, "Input/output error")
        case "panic":
            raise BaseException("the name of a patient")
        case "write":
            with open(request.header["path"] + ".out", "w") as file:
                file.write("x")
    return pictures.finished(Image.effect_noise((8, 8), 50).convert("RGB"), 10**6, item=item)


if __name__ == "__main__":
    limits.SECONDS = 0.5
    worker.ANSWERS = {"picture": "hostile", "dicom": "hostile"}
    sys.modules["medgr2_jobs.data.decoder.hostile"] = sys.modules["__main__"]
    sys.exit(worker.main())
