"""The libraries that figures are given to: transformers' own callbacks, each with a run that is opened here.

A callback would take its run from the environment, where another program's settings may lie, and would hand out
weights, folders and the machine's name if it were told to. So the run is opened with all of its settings, and what a
callback still looks up is set while it is open.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback
from transformers.integrations.integration_utils import MLflowCallback, TensorBoardCallback, WandbCallback

from medgr2_api.tracking import MLflowTracking, WandbMode, WandbTracking
from medgr2_api.uris import SecretKeyRef

from .tracked_run import TrackedRun

#: Reads a secret: its name and key → its value.
Secret = Callable[[str, str], str]
#: Seconds that a server may take for one answer: a training waits for it.
_TIMEOUT = 10
#: How a training ended, in MLflow's words.
FINISHED, STOPPED, FAILED = "FINISHED", "KILLED", "FAILED"


class Tracker(ABC):
    """One library. What it raises is for `TrackingCallback` to take."""

    name: ClassVar[str]

    def __init__(self, run: TrackedRun) -> None:
        self.run = run

    @abstractmethod
    def open(self) -> TrainerCallback:
        """Begins the run; transformers' callback for it."""

    @abstractmethod
    def close(self, ending: str) -> None:
        """Ends the run, as far as it was begun: `FINISHED`, `STOPPED` or `FAILED`."""


class TensorBoard(Tracker):
    """Event files in the workspace."""

    name = "TensorBoard"

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        self._writer: SummaryWriter | None = None

    def open(self) -> TrainerCallback:
        self._writer = SummaryWriter(log_dir=str(self.run.tensorboard))
        return TensorBoardCallback(self._writer)

    def close(self, ending: str) -> None:  # noqa: ARG002 # the files do not say it
        if self._writer is not None:
            self._writer.close()


class MLflow(Tracker):
    """A tracking server, or a file store in the workspace."""

    name = "MLflow"

    def __init__(self, run: TrackedRun, spec: MLflowTracking, secret: Secret) -> None:
        super().__init__(run)
        self._spec, self._secret = spec, secret
        self._environment = _Environment()

    def open(self) -> TrainerCallback:
        spec = self._spec
        self._environment.set(
            {
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_ALLOW_FILE_STORE": "true",  # a database on a network volume is worse
                "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
                "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_TIMEOUT),
                "HF_MLFLOW_LOG_ARTIFACTS": None,
                "MLFLOW_NESTED_RUN": None,
                "MLFLOW_RUN_ID": None,
                "MLFLOW_TAGS": None,
                "MLFLOW_TRACKING_TOKEN": self._value(spec.token_secret_ref),
                "MLFLOW_TRACKING_USERNAME": self._value(spec.username_secret_ref),
                "MLFLOW_TRACKING_PASSWORD": self._value(spec.password_secret_ref),
            }
        )
        import mlflow

        mlflow.set_tracking_uri(spec.tracking_uri or self.run.mlflow.as_uri())
        experiment = mlflow.set_experiment(spec.experiment)
        whose = {"mlflow.user": "medgr2", "mlflow.source.name": "medgr2", "mlflow.note.content": self.run.group}
        mlflow.start_run(
            experiment_id=experiment.experiment_id, run_name=self.run.name, tags={**self.run.tags, **whose}
        )
        return _MLflowCallback()  # type: ignore[no-untyped-call]

    def _value(self, reference: SecretKeyRef | None) -> str | None:
        return None if reference is None else self._secret(reference.name, reference.key)

    def close(self, ending: str) -> None:
        import mlflow

        try:
            if mlflow.active_run() is not None:
                mlflow.end_run(ending)
        finally:
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type] # as before any was set
            self._environment.restore()


class _MLflowCallback(MLflowCallback):
    """Sends figures in the training's thread: one that another thread could not send would be lost unseen."""

    def setup(self, args: Any, state: Any, model: Any) -> None:
        super().setup(args, state, model)  # type: ignore[no-untyped-call]
        self._async_log = False


class WandB(Tracker):
    """Weights & Biases: files in the workspace, or its server."""

    name = "W&B"

    def __init__(self, run: TrackedRun, spec: WandbTracking, secret: Secret) -> None:
        super().__init__(run)
        self._spec, self._secret = spec, secret
        self._environment = _Environment()

    def open(self) -> TrainerCallback:
        self._environment.set({"WANDB_ERROR_REPORTING": "false", "WANDB_LOG_MODEL": "false", "WANDB_WATCH": "false"})
        import wandb

        spec, reference = self._spec, self._spec.api_key_secret_ref
        online = spec.mode is WandbMode.ONLINE and reference is not None
        wandb.init(
            project=spec.project,
            entity=spec.entity or None,
            name=self.run.name,
            id=self.run.id,
            group=self.run.group,
            job_type=self.run.request.stage,
            config=dict(self.run.tags),
            settings=wandb.Settings(
                mode="online" if online else "offline",
                base_url=spec.base_url,
                api_key=self._secret(reference.name, reference.key) if online and reference else None,
                resume="allow" if online else None,  # the same attempt again
                root_dir=str(self.run.wandb.parent),
                init_timeout=3 * _TIMEOUT,
                x_service_wait=3 * _TIMEOUT,
                x_graphql_retry_max=2,
                x_file_stream_retry_max=2,
                x_file_transfer_retry_max=2,
                silent=True,
                # nothing of the machine, of its user and of what is printed
                console="off",
                host="",
                program="medgr2",
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )
        return WandbCallback()

    def close(self, ending: str) -> None:
        import wandb

        try:
            if wandb.run is not None:
                wandb.finish(exit_code=0 if ending == FINISHED else 1)
        finally:
            wandb.teardown()
            self._environment.restore()


class _Environment:
    """Variables that are set while a run is open; None: not set."""

    def __init__(self) -> None:
        self._before: dict[str, str | None] = {}

    def set(self, values: dict[str, str | None]) -> None:
        """Sets these, and notes what was there; the second time it is known."""
        self._before = {name: os.environ.get(name) for name in values} | self._before
        self._apply(values)

    def restore(self) -> None:
        """As it was."""
        self._apply(self._before)

    @staticmethod
    def _apply(values: dict[str, str | None]) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
