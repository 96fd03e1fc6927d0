"""`medgr2` with the fake forkserver."""

from __future__ import annotations

import sys
from pathlib import Path

from medgr2_operator.cli import app
from medgr2_operator.local import runner


def main() -> None:
    """Its entry point, as `medgr2`'s."""
    runner.Runner.__init__.__kwdefaults__["command"] = (  # type: ignore[index]
        sys.executable,
        str(Path(__file__).with_name("fake_forkserver.py")),
    )
    app.main()
