"""Gives the figures of a training to whoever follows it, and never lets the training suffer for it."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...errors import Checkpointed
from ...runner.context import StageContext
from .tracked_run import TrackedRun
from .trackers import FAILED, FINISHED, STOPPED, MLflow, TensorBoard, Tracker, WandB

_log = logging.getLogger(__name__)
#: Seconds for which a tracker is left alone after it failed, times how often it has failed in a row.
_PAUSE = 60.0
#: Among the attempt's usage: entries that a tracker did not take.
LOST = "trackingFailures"


@contextmanager
def tracked(trainer: Trainer, context: StageContext[Any]) -> Iterator[None]:
    """While the block runs, the trainer's figures go to TensorBoard files and to what the request names.

    Only in the process that reports. A block that ends with `Checkpointed` ends the run as stopped.

    Args:
        trainer: built, and not begun.
        context: the stage's; its usage gets `LOST` when something was lost.
    """
    if not context.process_group.main:
        yield
        return
    callbacks = [TrackingCallback(tracker, context.usage) for tracker in _trackers(context)]
    for callback in callbacks:
        trainer.add_callback(callback)
    ending = FAILED
    try:
        yield
        ending = FINISHED
    except Checkpointed:
        ending = STOPPED
        raise
    finally:
        for callback in callbacks:
            callback.close(ending)


def _trackers(context: StageContext[Any]) -> Iterator[Tracker]:
    run, spec = TrackedRun(context.request, context.root), context.request.tracking
    yield TensorBoard(run)
    if spec is not None and spec.mlflow is not None:
        yield MLflow(run, spec.mlflow, context.secret)
    if spec is not None and spec.wandb is not None:
        yield WandB(run, spec.wandb, context.secret)


class TrackingCallback(TrainerCallback):
    """One tracker. What it raises is told once and counted; after it, the tracker is left alone for a while."""

    def __init__(self, tracker: Tracker, usage: dict[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            tracker: who is given the figures.
            usage: of the attempt.
            clock: tells the time in seconds.
        """
        self._tracker, self._usage, self._clock = tracker, usage, clock
        self._callback: TrainerCallback | None = None
        self._begun = False
        self._failed = 0  # in a row
        self._again = 0.0  # when it may be tried again
        self._warned = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._guarded(lambda: self._begin(args, state, control))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self._clock() < self._again:
            self._count()
        else:
            self._guarded(lambda: self._log_entry(args, state, control, dict(logs or {})))

    def close(self, ending: str) -> None:
        """Ends the run."""
        if self._begun:
            self._guarded(lambda: self._tracker.close(ending))

    def _begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> TrainerCallback:
        self._begun = True
        callback = self._tracker.open()
        self._callback = callback
        callback.on_train_begin(self._shown(args), state, control, model=None)
        return callback

    def _log_entry(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any]
    ) -> None:
        callback = self._callback or self._begin(args, state, control)
        callback.on_log(self._shown(args), state, control, logs=logs, model=None)

    def _shown(self, args: TrainingArguments) -> TrainingArguments:
        """The settings, without the names of this computer's folders."""
        shown = copy.copy(args)
        shown.output_dir, shown.run_name = self._tracker.run.group, self._tracker.run.name
        shown.resume_from_checkpoint = None
        return shown

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            self._failed += 1
            self._again = self._clock() + self._failed * _PAUSE
            self._count()
            level = logging.DEBUG if self._warned else logging.WARNING
            _log.log(
                level,
                "%s does not take the figures of this training, which goes on without it and tries again now and then "
                "(usage %s counts what is lost): %s: %s",
                self._tracker.name,
                LOST,
                type(error).__name__,
                next(iter(str(error).splitlines()), ""),
            )
            self._warned = True
        else:
            self._failed = 0

    def _count(self) -> None:
        self._usage[LOST] = self._usage.get(LOST, 0.0) + 1
