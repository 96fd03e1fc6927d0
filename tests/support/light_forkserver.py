"""Stage processes by the hundred: the forkserver of `medgr2 run`, without the libraries that take seconds."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medgr2_api.stage_contract import REQUEST_ENV, WORKSPACE_ENV, StageRequest

_CODE = """
import sys
from medgr2_jobs.runner import forkserver
forkserver.PRELOAD = (
    "pyarrow.parquet", "medgr2_jobs.runner.main", "medgr2_jobs.stages.generate",
    "medgr2_jobs.generate.request_scheduler", "medgr2_jobs.generate.providers.openai_client",
    "medgr2_jobs.generate.providers.gemini_client",
)
sys.exit(forkserver.main())
"""


class LightForkserver:
    """Starts stages; `events` has what it says of them: a pid at the start, an exit code at the end."""

    def __init__(self, process: subprocess.Popen[str], root: Path) -> None:
        self._process = process
        self._root = root
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        assert self.events.get(timeout=120)["ready"]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.events.put(json.loads(line))

    def start(self, name: str, request: StageRequest, **environment: str) -> None:
        """Asks for a stage; its output goes to a file beside the workspace."""
        env = {REQUEST_ENV: json.dumps(request.dump()), WORKSPACE_ENV: str(self._root), **environment}
        order = {"id": name, "env": env, "log": str(self._root.parent / "logs" / f"{name}.log")}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def log(self, name: str) -> str:
        """What a stage said."""
        return (self._root.parent / "logs" / f"{name}.log").read_text()


@contextmanager
def light_forkserver(root: Path) -> Iterator[LightForkserver]:
    """A running one; its stages end with it."""
    process = subprocess.Popen(
        [sys.executable, "-c", _CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        yield LightForkserver(process, root)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)
