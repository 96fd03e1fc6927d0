"""What a stage's code is given: its request, its inputs, where to write, how to report progress, when to stop."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from medgr2_api import paths, redaction
from medgr2_api.stage_contract import Progress, StageRequest
from medgr2_api.stages import StageParameters, definition

from ..errors import Checkpointed, ConfigError
from ..store.artifact import ArtifactReader, ArtifactWriter
from ..store.images import ImageStore
from . import mounted_secrets, stage_log
from .process_group import ProcessGroup

P = TypeVar("P", bound=StageParameters)

_log = logging.getLogger(__name__)
_PROGRESS_INTERVAL = 0.5  # seconds between writes of the progress file


@dataclass
class StageOutcome:
    """What a stage's code returns when it succeeded; the files it wrote are published with it."""

    counters: dict[str, float] = field(default_factory=dict)
    """Headline figures; must be the same for the same inputs (no times)."""
    promoted: bool | None = None
    """A stage whose model has to be promoted: false keeps the model before it."""
    message: str = ""
    """What it decided and why, for people; as much the same for the same inputs as the counters."""
    usage: dict[str, float] = field(default_factory=dict)
    """Money and time."""


class StageContext(Generic[P]):
    """Everything a stage's `run(ctx)` needs."""

    def __init__(
        self,
        request: StageRequest,
        parameters: P,
        root: Path,
        *,
        stop: threading.Event | None = None,
        process_group: ProcessGroup | None = None,
        usage: dict[str, float] | None = None,
    ) -> None:
        self.request = request
        self.parameters = parameters
        self.root = root
        self.images = ImageStore(root)
        self.writer = ArtifactWriter(root, request)
        self.stop = stop or threading.Event()
        """Set by SIGTERM: write a checkpoint and raise `Checkpointed`."""
        self.process_group = process_group or ProcessGroup()
        """The processes of this training. Only the main one writes parts; the others return an empty `StageOutcome`."""
        self.usage: dict[str, float] = {} if usage is None else usage
        """Money spent so far, by name: reported however this attempt ends."""
        self._progress_written = 0.0
        self._progress_logged = 0.0
        self._silent = not self.process_group.main
        self._phase: tuple[str, int, float] | None = None  # its name, first step and when that was
        self._readers: dict[str, ArtifactReader] = {}

    @property
    def work(self) -> Path:
        """Folder for checkpoints: survives this attempt, removed after publishing."""
        return self.writer.work

    def has_input(self, role: str) -> bool:
        """Whether the request names an input of that role.

        Raises:
            ConfigError: the stage's definition does not.
        """
        self._declared(role)
        return role in self.request.inputs

    def input(self, role: str) -> ArtifactReader:
        """The artifact of that role.

        Raises:
            ConfigError: the request names none, or the stage's definition does not.
            CorruptArtifact: it is not what the request says.
        """
        self._declared(role)
        if role not in self._readers:
            if role not in self.request.inputs:
                raise ConfigError(f"stage {self.request.stage} was given no input {role!r}")
            self._readers[role] = ArtifactReader(self.root, self.request.inputs[role])
            self._log_input(role, self._readers[role])
        return self._readers[role]

    def _log_input(self, role: str, reader: ArtifactReader) -> None:
        if self._silent:
            return
        rows = reader.rows_of_tables
        told = ", ".join(f"{name} ({n:,} rows)" for name, n in rows.items()) or "no table"
        fields = {"role": role, "outputDigest": reader.digest, "rows": rows}
        _log.info("reads %s %s: %s", role, reader.digest[:12], told, extra={"fields": fields})

    def _declared(self, role: str) -> None:
        if not definition(self.request.stage).declares(role):
            raise ConfigError(f"stage {self.request.stage} reads input {role!r}, which its definition does not declare")

    def progress(self, phase: str, step: int, total: int, **metrics: float) -> None:
        """Says how far the stage is. Cheap: written at most twice a second (the last step always).

        A progress file that cannot be written is no reason to fail.
        """
        if self._silent:
            return
        now = time.monotonic()
        if self._phase is None or self._phase[0] != phase or step < self._phase[1]:
            self._phase = (phase, step, now)
            self._log_progress(phase, step, total, metrics)
        elif now - self._progress_logged >= stage_log.INTERVAL:
            self._log_progress(phase, step, total, metrics)
        if now - self._progress_written < _PROGRESS_INTERVAL and step < total:
            return
        self._progress_written = now
        _, first, since = self._phase  # a resumed stage does not begin at step 0
        eta = (now - since) / (step - first) * (total - step) if first < step <= total else None
        state = Progress(phase=redaction.redact(phase), step=step, total=total, eta_seconds=eta, metrics=metrics)
        path = self._progress_path
        temporary = path.with_name(f".{path.name}.tmp")
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(state.dump()))
            temporary.replace(path)

    def _log_progress(self, phase: str, step: int, total: int, metrics: dict[str, float]) -> None:
        self._progress_logged = time.monotonic()
        figures = "".join(f", {name} {value:.4g}" for name, value in metrics.items())
        fields = {"phase": phase, "step": step, "total": total, "metrics": metrics}
        _log.info("%s: %s%s", phase, f"{step}/{total}" if total else step, figures, extra={"fields": fields})

    def silence(self) -> None:
        """No more progress from this process: it works beside the one that reports (`background_process.py`)."""
        self._silent = True

    def check_stop(self, step: int = -1) -> None:
        """Raises Checkpointed when asked to stop; call where nothing would be lost."""
        if self.stop.is_set():
            raise Checkpointed(step)

    def secret(self, name: str, key: str) -> str:
        """The value of a secret, from a mounted file; never logged.

        Raises:
            ConfigError: it is not there, or empty.
        """
        return mounted_secrets.read(name, key)

    @cached_property
    def _progress_path(self) -> Path:
        request = self.request
        name = paths.attempt_name(request.iteration, request.stage, request.token, request.attempt, request.shard.index)
        return self.root / paths.progress(request.cycle.name, name)
