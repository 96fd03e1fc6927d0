"""The server that tests fork programs from."""

from __future__ import annotations

import sys

from tests.support import fork_runner


def _end_with_whether_imported(name: str) -> None:
    sys.exit(name not in sys.modules)


def test_what_is_asked_for_is_imported_whoever_asked_before() -> None:
    """Or hundreds of processes would each import torch, and only be slow."""
    for name in ("wave", "colorsys", "wave"):
        process = fork_runner.context([name]).Process(target=_end_with_whether_imported, args=(name,))
        process.start()
        process.join(60)
        assert process.exitcode == 0, name
