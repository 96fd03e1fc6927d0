"""stdout and stderr of our processes: what is written, by whomever, leaves without secrets and control characters."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from . import printable, redaction


class GuardedStream(io.TextIOBase):
    """A text stream in front of another. Whole lines are passed on at once, the rest when it is flushed: a secret that
    is written piece by piece is seen as a whole."""

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw
        """For what writes control characters on purpose; it has to clean the texts of others itself."""
        self._waiting = ""

    def write(self, text: str) -> int:
        self._waiting += text
        lines, newline, self._waiting = self._waiting.rpartition("\n")
        if newline:
            self._pass_on(lines + newline)
        return len(text)

    def flush(self) -> None:
        if self._waiting:
            text, self._waiting = self._waiting, ""
            self._pass_on(text)
        self.raw.flush()

    def _pass_on(self, text: str) -> None:
        clean = printable.shown(redaction.redact(text))
        try:
            self.raw.write(clean)
        except UnicodeEncodeError:  # a terminal that knows fewer characters is no reason to fail
            self.raw.write(clean.encode(self.raw.encoding, "backslashreplace").decode(self.raw.encoding))

    def close(self) -> None:
        """Passes on what is left; the stream behind is not ours to close."""
        self.flush()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.raw.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.raw.errors

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.raw.isatty()

    def fileno(self) -> int:
        return self.raw.fileno()

    def __getattr__(self, name: str) -> Any:  # buffer, name, reconfigure, …
        return getattr(self.raw, name)


@contextmanager
def guarded() -> Iterator[None]:
    """Guards stdout and stderr while the block runs, for this process and those that it forks.

    What the names of environment variables call a secret is taken out as well.
    """
    redaction.register_environment(os.environ)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (raw if isinstance(raw, GuardedStream) else GuardedStream(raw) for raw in before)
    try:
        yield
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)  # through the guard: Python itself prints after it
        sys.exit(1)
    finally:
        try:
            sys.stdout.flush()
        finally:
            sys.stderr.flush()
            sys.stdout, sys.stderr = before


def raw(stream: TextIO) -> TextIO:
    """The stream behind a guarded one."""
    return stream.raw if isinstance(stream, GuardedStream) else stream
