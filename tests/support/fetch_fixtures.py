"""Contexts of stage prepare that fetch from a test's own servers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from medgr2_api.stages.prepare import PrepareParameters
from medgr2_jobs.runner.context import StageContext
from tests.support.fixtures import prepare_parameters, stage_request


def context(
    root: Path, fetch: dict[str, Any] | None = None, *, stop: threading.Event | None = None, **overrides: Any
) -> StageContext[PrepareParameters]:
    """A context of stage prepare in the workspace `root`.

    Args:
        root: made if it is not there.
        fetch: `data.fetch`, wire names.
        stop: set to ask for a checkpoint.
        overrides: parameters of prepare, see `prepare_parameters`.
    """
    root.mkdir(parents=True, exist_ok=True)
    data = {**overrides.pop("data", {}), "fetch": fetch or {}}
    asked = stage_request("prepare", 0, prepare_parameters(data=data, **overrides))
    parameters = PrepareParameters.model_validate(asked.parameters)
    return StageContext(asked, parameters, root, stop=stop)


def secrets(folder: Path, **values: str) -> Path:
    """A folder of secrets as `medgr2 run --secrets-dir` takes it: the Secret is called `store`, the keys as given."""
    (folder / "store").mkdir(parents=True)
    for key, value in values.items():
        (folder / "store" / key).write_text(f"{value}\n")
    return folder


def reference(key: str) -> dict[str, str]:
    """A reference to one of those keys."""
    return {"name": "store", "key": key}
