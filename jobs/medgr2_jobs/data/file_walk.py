"""The files below a folder, one at a time in the order of their names, and what stands there that is none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..store.images import UNREADABLE


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
                if error.errno not in UNREADABLE:  # the disk's fault, not the folder's
                    raise
                yield path, f"a folder that cannot be opened ({error.strerror})"
        elif path.is_dir():
            yield path, "a link to a folder, which is not followed; copy the folder"
        elif path.is_symlink() and not path.exists():
            yield path, "a link that leads nowhere"
        else:
            yield path, "" if path.is_file() else "neither a file nor a folder"
