"""`medgr2` with the fake forkserver."""

from __future__ import annotations

from medgr2_operator.cli import app
from medgr2_operator.local import runner
from tests.support.fake_forkserver import COMMAND


def main() -> None:
    """Its entry point, as `medgr2`'s."""
    runner.Runner.__init__.__kwdefaults__["command"] = COMMAND  # type: ignore[index]
    app.main()
