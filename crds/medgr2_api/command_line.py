"""How every command line of ours ends: whatever happens, in one clear sentence and with an exit code of the contract.

The one place where exceptions become words. `MEDGR2_DEBUG=1` (`medgr2 --debug`) shows the traceback as well. Imports
nothing that takes time: `medgr2 --help` does not wait for models.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from .guarded_streams import guarded

DEBUG_ENV = "MEDGR2_DEBUG"
"""Not empty: an error comes with its traceback."""

_USAGE, _DATA_ERROR, _TEMPORARY = 2, 65, 75  # of `stage_contract.ExitCode`, which imports pydantic
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)


def explain(error: BaseException) -> tuple[str, int]:
    """What to say of an exception that ends a command, and with which exit code to end.

    An exception of ours has an `exit_code`, and its text says what, where and what to do. Of the others the operating
    system's are the user's business; what is left is a fault of this program.
    """
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return str(error), int(code)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 128 + signal.SIGINT
    if isinstance(error, BrokenPipeError):  # `medgr2 … | head`: whoever reads has seen enough
        return "", 0
    if isinstance(error, ConnectionError | TimeoutError):
        return f"no connection: {error}", _TEMPORARY
    if isinstance(error, OSError):
        places = [str(name) for name in (error.filename, error.filename2) if name is not None]
        text = ": ".join(filter(None, [" → ".join(places), error.strerror or str(error)]))
        return text, _TEMPORARY if error.errno in _FULL else _USAGE
    if isinstance(error, UnicodeDecodeError):
        return f"a file that should be UTF-8 text is not: {error.reason} at byte {error.start}", _DATA_ERROR
    if isinstance(error, MemoryError):
        return "out of memory", _TEMPORARY
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the package {error.name.partition('.')[0]} is not installed, or not whole: {error}", 78
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} (a fault of medgr2: please report it; {DEBUG_ENV}=1 shows where it is)", 1


def report(error: BaseException) -> int:
    """Says on stderr how a command ended; returns its exit code."""
    text, code = explain(error)
    if os.environ.get(DEBUG_ENV):
        traceback.print_exception(error)
    if text:
        print(text, file=sys.stderr)
    return code


def end(command: Callable[[], int | None]) -> NoReturn:
    """Runs a command line, and ends the process with its exit code."""
    _open_standard_streams()
    code = 0
    try:
        with guarded():
            code = _run(command)
    except (OSError, KeyboardInterrupt) as error:  # what was still to be written cannot be
        text, why = explain(error)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)  # Python flushes once more on its way out, and must not complain of the same
        if text and not code:  # else the command has said already why it fails
            with contextlib.suppress(OSError):
                os.write(2, f"the output cannot be written: {text}\n".encode())
        os.dup2(null, 2)
        code = code or why
    sys.exit(code)


def _run(command: Callable[[], int | None]) -> int:
    try:
        return command() or 0
    except SystemExit as ended:  # of argparse and click, which have said why
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:
        return report(error)


def _open_standard_streams() -> None:
    """Whoever starts us with closed streams (`>&-`) gets none of our files in their place."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
