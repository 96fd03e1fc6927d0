"""The package under tests/plugin_package, as if it were installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[1] / "plugin_package"
NAME = "medgr2-example-plugin"


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the package importable in this process, with its entry points; processes started from it have it, too."""
    monkeypatch.syspath_prepend(PACKAGE)
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE))


def plugin(name: str, version: str = "1.0", **options: Any) -> dict[str, Any]:
    """How a spec names one of its entry points."""
    return {"name": name, "version": version, "options": options}
