"""The files below a folder, one at a time in the order of their names, and what stands there that is none."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

#: File system errors that are about this one path.
_THIS_PATH = {errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO}


def files(top: Path) -> Iterator[tuple[Path, str]]:
    """Each file below `top`, or `top` itself if it is one, and why it cannot be used (empty: it can).

    Links to folders are not followed, as they may lead in circles: each comes once, with the reason. Links to files
    are files; where they lead is for the caller to check.
    """
    waiting = [top]
    while waiting:
        path = waiting.pop()
        if path.is_dir() and (path == top or not path.is_symlink()):
            try:
                waiting += sorted((Path(entry) for entry in os.scandir(path)), reverse=True)
            except OSError as error:
                if error.errno not in _THIS_PATH:  # the disk's fault, not the folder's
                    raise
                yield path, f"a folder that cannot be opened ({error.strerror})"
        elif path.is_dir():
            yield path, "a link to a folder, which is not followed; copy the folder"
        elif path.is_symlink() and not path.exists():
            yield path, "a link that leads nowhere"
        else:
            yield path, "" if path.is_file() else "neither a file nor a folder"


def wrong_with(path: Path, root: Path) -> str:
    """Why what a record names is no file below the workspace that can be opened; empty: it is one.

    Raises:
        OSError: the disk's fault.
    """
    try:
        if not path.resolve().is_relative_to(root):
            return "a link that leads outside the workspace"
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "image file is missing"
    except (ValueError, RuntimeError) as error:  # a NUL byte, half of a surrogate pair; a link that leads to itself
        return f"cannot be the name of a file ({type(error).__name__})"
    except OSError as error:
        if error.errno not in _THIS_PATH:
            raise
        return f"cannot be opened ({error.strerror})"
    if stat.S_ISDIR(mode):
        return "is a folder"
    return "" if stat.S_ISREG(mode) else "is a device or a pipe, and no file"
