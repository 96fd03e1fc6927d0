"""The fence: the newest attempt of a stage writes its number; an older one that wakes up then publishes nothing.

It keeps an old attempt from working on; that at most one attempt publishes does not depend on it (`manifest.commit`).
"""

from __future__ import annotations

import json
from pathlib import Path

from medgr2_api import paths
from medgr2_api.stage_contract import StageRequest

from ..errors import Fenced
from . import atomic


def _path(root: Path, request: StageRequest) -> Path:
    path = root / paths.fence(request.cycle.name, request.iteration, request.stage)
    return path.with_name(f"{path.stem}-s{request.shard.index}.json") if request.shard.count > 1 else path


def _read(path: Path) -> dict[str, object]:
    try:
        fence = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # not yet there, or a first write that was cut off
        return {}
    return fence if isinstance(fence, dict) else {}


def raise_fence(root: Path, request: StageRequest) -> None:
    """Announces this attempt.

    Raises:
        Fenced: a newer attempt under the same restart token is already here.
    """
    path = _path(root, request)
    check(root, request)
    atomic.write_text(path, json.dumps({"uid": request.cycle.uid, "token": request.token, "attempt": request.attempt}))


def check(root: Path, request: StageRequest) -> None:
    """Raises Fenced when a newer attempt has taken over; another restart token publishes elsewhere and is no rival."""
    fence = _read(_path(root, request))
    if fence.get("uid") != request.cycle.uid or fence.get("token") != request.token:
        return
    newest = fence.get("attempt")
    if isinstance(newest, int) and newest > request.attempt:
        raise Fenced(f"attempt {newest} of {request.stage}@{request.iteration} has taken over from {request.attempt}")
