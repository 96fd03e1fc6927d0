"""`medgr2 fetch`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from medgr2_api.stage_contract import SECRETS_ENV

from .loading import load


def fetch_cycle(file: Path, workspace: Path, secrets: Path | None) -> int:
    """Fetching is the jobs' business: this process becomes theirs, so that a signal reaches it and its code is ours.

    Returns:
        Never; only an error comes back, as an exception.
    """
    load(file)
    command = [sys.executable, "-m", "medgr2_jobs.fetch", str(file), "--workspace", str(workspace)]
    sys.stdout.flush()
    os.execve(command[0], command, {**os.environ, SECRETS_ENV: str(secrets.resolve()) if secrets else ""})
