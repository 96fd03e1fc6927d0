"""Fetches one URI, in a process of its own: `python -m medgr2_jobs.fetch.worker` with a `FetchRequest` on stdin.

A process, because the libraries cannot be interrupted in the middle of a download, and read their settings (offline or
not, where their cache is) when they are imported, which for a stage may have been long ago. It can be killed at any
moment. It reports its progress in lines of JSON on stdout: `{"done": 1, "total": 2}`, at last `{"ok": true}` or
`{"error": "ConfigError", "message": "…"}`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from medgr2_api import redaction
from medgr2_api.guarded_streams import guarded

from ..errors import StageError
from ..runner.background_process import die_with_parent
from ..store import atomic
from . import files, hub, pin_file, s3
from .request import FetchedSource, FetchRequest, Tick

_SECONDS = 0.2  # between two lines
_SCHEMES: dict[str, Callable[[FetchRequest, Path, Tick], FetchedSource]] = {
    "hf": hub.fetch,
    "s3": s3.fetch,
    "file": files.fetch,
}
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


def fetch(request: FetchRequest, tick: Tick) -> None:
    """Fetches and commits, unless another process did so meanwhile.

    Raises:
        StageError: as the stage will raise it.
    """
    folder = pin_file.folder_of(Path(request.root), request.uri, request.kind)
    scratch = pin_file.scratch_of(folder)
    partial = scratch / "partial"
    with atomic.disk_errors(folder):
        atomic.make_folder(scratch)
        with _locked(scratch / "lock"):
            if pin_file.load(folder, request.uri, request.kind) is not None:
                return
            atomic.make_folder(partial)
            source = _SCHEMES[request.uri.partition("://")[0]](request, partial, tick)
            described = pin_file.describe(partial, source.etags, lambda done: None)
            fetched = pin_file.PinFile(
                uri=request.uri, kind=request.kind, revision=source.revision, path=source.path, files=described
            )
            pin_file.commit(partial, folder, fetched)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for its turn: two cycles of a workspace may fetch the same at the same time.

    Where the file system has no locks, the last to finish stands.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield


class _Reporter:
    """Lines on stdout, a few a second."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = 0.0

    def tick(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= _SECONDS:
            self._last = now
            self.say(done=done, total=total)

    def say(self, **words: object) -> None:
        self._stream.write(json.dumps(redaction.redact_values(words)) + "\n")
        self._stream.flush()


def main() -> int:
    """Entry point."""
    die_with_parent(signal.SIGKILL)
    reporter = _Reporter(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # a stray print must not look like a line of ours
    request = FetchRequest.model_validate_json(sys.stdin.readline())
    for secret in (request.hub_token, request.s3_access_key, request.s3_secret_key):
        redaction.register(secret or "")
    if os.getppid() != request.parent:  # it died before the kernel was asked
        return 128 + signal.SIGTERM
    try:
        fetch(request, reporter.tick)
    except StageError as error:
        reporter.say(error=error.reason, message=str(error))
    except Exception as error:
        traceback.print_exc()
        reporter.say(error="StageError", message=f"{request.label}: {type(error).__name__}: {error}")
    else:
        reporter.say(ok=True)
    return 0


if __name__ == "__main__":
    with guarded():
        code = main()
    # No finalisers: a thread of a library that still waits for a server would keep the process.
    os._exit(code)
