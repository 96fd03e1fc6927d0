"""What the processes of one node leave for their parent: torchrun itself turns every failure into exit code 1."""

from __future__ import annotations

import threading
from pathlib import Path

from pydantic import ValidationError

from medgr2_api.stage_contract import ExitCode, StageResult

RANK_RESULTS_ENV = "MEDGR2_OUTCOMES"
_STOP = "stop"


class RankResults:
    """A folder: a file per process (empty while it runs), and the parent's request to stop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    def mark_started(self, local_rank: int) -> None:
        """This process has started."""
        self._path(local_rank).touch()

    def write_result(self, local_rank: int, result: StageResult) -> None:
        """How it ended; the first result counts."""
        with self._lock:
            path = self._path(local_rank)
            if not path.exists() or not path.read_bytes():
                path.write_text(result.to_termination_message())

    def request_stop(self) -> None:
        """Tells the processes that SIGTERM means: write a checkpoint. (torchrun sends one when another failed, too.)"""
        (self.folder / _STOP).touch()

    @property
    def stop_requested(self) -> bool:
        """Whether SIGTERM means that."""
        return (self.folder / _STOP).exists()

    def read(self) -> list[StageResult | None]:
        """In the order of the processes that have started; None: it ended without a result."""
        results: list[StageResult | None] = []
        for path in sorted(self.folder.glob("rank-*")):
            try:
                results.append(StageResult.model_validate_json(path.read_text()))
            except ValidationError:
                results.append(None)
        return results

    def _path(self, local_rank: int) -> Path:
        return self.folder / f"rank-{local_rank:03d}"


def worst(results: list[StageResult]) -> StageResult:
    """The one that explains how a node ended: a failure of its own, else a checkpoint, else being ended from outside,
    else success. Of several the first process's."""
    order = {ExitCode.CHECKPOINTED: 1, ExitCode.SIGTERM: 2, ExitCode.OK: 3}
    return min(results, key=lambda result: order.get(result.exit_code, 0))  # type: ignore[call-overload]
