"""What a training stage does at every step: progress, durable checkpoints, stopping, guards that end a ruined run."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import Checkpointed, NotFinite
from ..runner.context import StageContext
from ..store import atomic
from . import checkpoints
from .watchdog import Watchdog

_log = logging.getLogger(__name__)
#: What a trainer logs of each step and must be a number, here the mean over all processes.
_FINITE = {"loss": "loss", "grad_norm": "norm of the gradients"}
#: Where a trainer's log counts the tokens of all processes: TRL's own count, else the one of transformers.
_TOKENS = ("num_tokens", "num_input_tokens_seen")

#: Looks at the log of a training after each step, oldest entry first; raises where the run is ruined.
Guard = Callable[[Sequence[Mapping[str, Any]]], None]


class StageCallback(TrainerCallback):
    """Progress, durable checkpoints, SIGTERM → checkpoint → stop, and the end of a training that has diverged."""

    def __init__(
        self,
        context: StageContext[Any],
        phase: str,
        shown: tuple[str, ...] = ("loss",),
        *,
        settings: str,
        every: int = 1,
        extra: Callable[[Path], None] | None = None,
        guards: Sequence[Guard] = (),
    ) -> None:
        """
        Args:
            context: the stage's.
            phase: what `/progress` says.
            shown: figures of the trainer's log that `/progress` shows.
            settings: where the training's settings stand in the spec, for messages.
            every: stop only at multiples of this many steps, where a checkpoint is exact.
            extra: writes what else belongs into a checkpoint; it counts as complete only afterwards.
            guards: end a ruined run.
        """
        self.context = context
        self.phase = phase
        self.shown = shown
        self.settings = settings
        self.every = every
        self.extra = extra
        self.guards = guards
        self.watchdog = Watchdog(phase, context.request.stall_seconds, context.usage)
        self.stopped_at: int | None = None
        self._figures: dict[str, float] = {}
        self._logged: tuple[float, int, float | None] | None = None  # when, at which step, tokens by then
        self._saved = self._saving = time.monotonic()  # when the last checkpoint was whole, the next one begun
        self._warned = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        group, context = self.context.process_group, self.context
        # all stop, and all save, at the same step, or none
        stop_requested = group.any(context.stop.is_set())
        old = group.any(time.monotonic() - self._saved >= context.request.checkpoint_seconds)
        if state.global_step < state.max_steps and state.global_step % self.every == 0:
            control.should_save |= stop_requested or old
            if stop_requested:
                control.should_training_stop = True
                self.stopped_at = state.global_step
        self._saving = time.monotonic()
        self.watchdog.beat()

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.watchdog.beat()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        self._check_finite(args, state.global_step, logs)
        for guard in self.guards:
            guard(state.log_history)
        shown = {key: float(logs[key]) for key in self.shown if logs.get(key) is not None}
        self._figures |= {**shown, **self._speed(state.global_step, logs)}  # the last log of all has none of them
        self.context.progress(self.phase, state.global_step, state.max_steps, **self._figures)

    def _check_finite(self, args: TrainingArguments, step: int, logs: Mapping[str, Any]) -> None:
        """Before a checkpoint is written of it: raises NotFinite, in all processes at the same step."""
        for name, what in _FINITE.items():
            scaled = name == "grad_norm" and args.fp16  # its first steps find the scale by going too far
            if name in logs and not scaled and not math.isfinite(float(logs[name])):
                start = " It was so from the first step: look at the model that it starts from, too." * (step <= 1)
                raise NotFinite(
                    f"{self.phase}: the {what} of step {step} is {float(logs[name])}: the training has diverged. "
                    f"Lower {self.settings}.learningRate, warm up longer ({self.settings}.trainer.warmup_steps) or "
                    f"clip harder (max_grad_norm).{start}"
                )

    def _speed(self, step: int, logs: Mapping[str, Any]) -> dict[str, float]:
        """Tokens so far, and how fast the steps since the last log were; nothing that is not logged anyway is asked."""
        now, tokens = time.monotonic(), next((float(logs[key]) for key in _TOKENS if key in logs), None)
        before, self._logged = self._logged, (now, step, tokens)
        figures = {} if tokens is None else {"tokens": tokens}
        if before is not None and step > before[1] and now > before[0]:
            seconds = now - before[0]
            figures["step_seconds"] = seconds / (step - before[1])
            if tokens is not None and before[2] is not None:
                figures["tokens_per_second"] = (tokens - before[2]) / seconds
        return figures

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        group = self.context.process_group
        if self.extra is not None and group.main:
            self.extra(folder)
        group.barrier()  # each process has written its part of the checkpoint
        atomic.fsync_tree(folder)
        group.barrier()
        if group.main:
            checkpoints.mark_complete(folder, group.layout)
        group.barrier()  # the first process that ends takes those beside it along
        self._saved = time.monotonic()
        self._note_duration(self._saved - self._saving)
        self.watchdog.beat()

    def _note_duration(self, seconds: float) -> None:
        """How long a checkpoint took, and whether one on request would be whole before the process is killed."""
        self._figures["checkpoint_seconds"] = seconds
        usage, grace = self.context.usage, self.context.request.grace_seconds
        usage["checkpointSeconds"] = round(max(seconds, usage.get("checkpointSeconds", 0.0)), 3)
        step = self._figures.get("step_seconds", 0.0)  # the one that SIGTERM finds under way is ended first
        if step + seconds > grace and not self._warned and self.context.process_group.main:
            self._warned = True
            _log.warning(
                "a checkpoint took %.1f s and a step %.1f s: more than the %.0f s between SIGTERM and SIGKILL, so that "
                "one on request would not be whole and up to failurePolicy.checkpointSeconds of work would be lost; "
                "raise template.terminationGracePeriodSeconds",
                seconds,
                step,
                grace,
            )

    def raise_if_stopped(self) -> None:
        """After `trainer.train()`: raises Checkpointed when SIGTERM ended it early."""
        if self.stopped_at is not None:
            raise Checkpointed(self.stopped_at)
