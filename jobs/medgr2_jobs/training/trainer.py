"""What every training stage shares: checked trainer options, checkpoints that survive `kill -9`, stopping, progress."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from medgr2_api.hashing import normalise
from medgr2_api.training_spec import FullFineTuning, ResolvedLoRA
from medgr2_api.unsupported import OWNED_TRAINER_OPTIONS

from ..errors import Checkpointed, ConfigError, NotFinite
from ..runner.context import StageContext
from ..runner.distributed import deepspeed
from ..store import atomic

_log = logging.getLogger(__name__)
#: What a trainer logs of each step and must be a number, here the mean over all processes.
_FINITE = {"loss": "loss", "grad_norm": "norm of the gradients"}
_COMPLETE = "medgr2-complete"
#: Where a trainer's log counts the tokens of all processes: TRL's own count, else the one of transformers.
_TOKENS = ("num_tokens", "num_input_tokens_seen")
#: A `kill -9` costs at most this fraction of a run (an n-th of its steps).
CHECKPOINTS_PER_RUN = 5


def trainer_options(
    config: type[TrainingArguments],
    options: Mapping[str, Any],
    field: str,
) -> dict[str, Any]:
    """Checks a `trainer:` block before anything is loaded.

    Args:
        config: TrainingArguments, trl.SFTConfig or trl.GRPOConfig.
        options: the user's block.
        field: where it stands in the spec, for the message.

    Raises:
        ConfigError: an option the library does not have (with the nearest that it has), or that the contract owns.
    """
    field_types = {item.name: str(item.type) for item in dataclasses.fields(config) if item.init}
    for name in options:
        if name in OWNED_TRAINER_OPTIONS:
            raise ConfigError(f"{field}.{name}: not to be set here: {OWNED_TRAINER_OPTIONS[name]}")
        if name not in field_types:
            near = difflib.get_close_matches(name, field_types, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{field}.{name}: {config.__name__} has no such option{hint}")
    normalised = normalise(dict(options))
    # the normal form of 4.0 is 4, and transformers refuses a temperature that is no float
    return {
        name: float(value)
        if type(value) is int and "float" in field_types[name] and "int" not in field_types[name]
        else value
        for name, value in normalised.items()
    }


def trainer_arguments(
    config: type[TrainingArguments],
    context: StageContext[Any],
    options: Mapping[str, Any],
    *,
    field: str,
    total_steps: int | None = None,
    **ours: Any,
) -> Any:
    """Builds the arguments of a trainer: ours, then the user's checked options.

    Args:
        config: TrainingArguments, trl.SFTConfig or trl.GRPOConfig.
        context: the stage's.
        options: the user's `trainer:` block.
        field: where it stands in the spec.
        total_steps: optimizer steps of the whole run, when known: places the checkpoints.
        ours: settings that the stage owns.

    Raises:
        ConfigError: an option is unknown, owned, or refused by the library.
    """
    max_steps = options.get("max_steps", 0)
    if not isinstance(max_steps, int):
        raise ConfigError(f"{field}.max_steps: {max_steps!r} is not a whole number")
    steps = max_steps if max_steps > 0 else total_steps or 0
    return configured(
        config,
        options,
        field=field,
        output_dir=str(context.work),
        seed=context.parameters.seed,
        save_steps=max(1, math.ceil(steps / CHECKPOINTS_PER_RUN)) if steps else 500,
        deepspeed=deepspeed.config(),
        **ours,
    )


def configured(config: type[TrainingArguments], options: Mapping[str, Any], *, field: str, **ours: Any) -> Any:
    """Arguments of a trainer that the installed libraries take, with all that they need installed.

    Args:
        config: TrainingArguments, trl.SFTConfig or trl.GRPOConfig.
        options: the user's `trainer:` block.
        field: where it stands in the spec.
        ours: settings that the user's come after.

    Raises:
        ConfigError: an option is unknown, owned, refused by the library, or needs a package that is not there.
    """
    cpu = not torch.cuda.is_available()
    values: dict[str, Any] = {
        "report_to": "none",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it shows a loss that is no number as one that is: see `StageCallback`
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_total_limit": 2,
        "use_cpu": cpu,
        "bf16": not cpu,
        "dataloader_pin_memory": not cpu,
        **ours,
        **trainer_options(config, options, field),
    }
    field_names = {item.name for item in dataclasses.fields(config)}
    if "activation_checkpointing" in field_names:
        values.setdefault("activation_checkpointing", not cpu)
    with refusals(field, config.__name__):
        args = config(**values)
        _check_packages(args)
    return args


@contextmanager
def refusals(field: str, who: str) -> Iterator[None]:
    """What a library refuses within this block is a wrong setting: it is not tried again.

    Raises:
        ConfigError: instead of the library's error.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"{field}: {who} needs a package that is not installed here: {error}. Install it beside MedGR2 "
            "(on a cluster: in the image of template.image), or leave the option out"
        ) from error
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"{field}: {who} refuses these settings: {error}") from error


#: Options that are looked at when a trainer is built, hours later → the package that each needs.
_PACKAGES = {"use_liger_kernel": "liger_kernel", "use_vllm": "vllm"}


def _check_packages(args: TrainingArguments) -> None:
    """Raises what the library would when it builds the trainer and its optimizer.

    Raises:
        ImportError: a package is missing.
        ValueError: there is no such optimizer.
    """
    for option, package in _PACKAGES.items():
        if getattr(args, option, False) and importlib.util.find_spec(package) is None:
            raise ImportError(f"{option} needs {package} (`pip install {package.replace('_', '-')}`)")
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except ValueError as error:
        if "pass a model" not in str(error):  # GaLore and its like: all else is there
            raise


def lora_config(lora: ResolvedLoRA, *, task_type: str | None = "CAUSAL_LM") -> LoraConfig | None:
    """peft's configuration on the language model's linear layers; None for full fine-tuning."""
    if isinstance(lora, FullFineTuning):
        return None
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] # peft divides it by the rank: any number
        lora_dropout=lora.dropout,
        # the language model only: vLLM serves no adapters on the vision tower
        target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        task_type=task_type,
    )


def place_checkpoints(args: TrainingArguments, total_steps: int, *, spread: bool, every: int = 1) -> None:
    """Sets `save_steps`, once the arguments and the data have told how long the run is.

    Args:
        args: the trainer's; changed.
        total_steps: optimizer steps of the whole run.
        spread: place `CHECKPOINTS_PER_RUN` of them evenly; otherwise keep what the user asked for.
        every: save only at multiples of this many steps: rounds up.
    """
    interval = total_steps / CHECKPOINTS_PER_RUN if spread else args.save_steps
    if interval < 1 and not spread:  # transformers reads a fraction as a share of the run
        interval *= total_steps
    args.save_steps = max(1, math.ceil(interval / every)) * every


def latest_checkpoint(folder: Path, layout: str = "") -> Path | None:
    """The newest checkpoint that can be gone on from; half-written ones (a kill, a full disk) are passed over, and so
    are those of another number of processes: they divide the data and the optimizer up differently."""
    checkpoints = [
        (int(path.name.rsplit("-", 1)[1]), path) for path in folder.glob("checkpoint-*") if _usable(path, layout)
    ]
    return max(checkpoints)[1] if checkpoints else None


def remove_torn_checkpoints(folder: Path, layout: str = "") -> None:
    """Removes the others: transformers would count them among those it keeps, and drop a usable one."""
    for path in folder.glob("checkpoint-*"):
        if not _usable(path, layout):
            _log.warning("%s: not complete, or of another number of processes; removed", path)
            atomic.remove_tree(path)


def _usable(checkpoint: Path, layout: str) -> bool:
    """Whether it was written to its end, by as many processes (`ProcessGroup.layout`)."""
    mark = checkpoint / _COMPLETE
    return mark.is_file() and mark.read_text() == layout


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
    ) -> None:
        """
        Args:
            context: the stage's.
            phase: what `/progress` says.
            shown: figures of the trainer's log that `/progress` shows.
            settings: where the training's settings stand in the spec, for messages.
            every: stop only at multiples of this many steps, where a checkpoint is exact.
            extra: writes what else belongs into a checkpoint; it counts as complete only afterwards.
        """
        self.context = context
        self.phase = phase
        self.shown = shown
        self.settings = settings
        self.every = every
        self.extra = extra
        self.stopped_at: int | None = None
        self._figures: dict[str, float] = {}
        self._logged: tuple[float, int, float | None] | None = None  # when, at which step, tokens by then

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        stop_requested = self.context.process_group.any(
            self.context.stop.is_set()
        )  # all stop at the same step, or none
        if stop_requested and state.global_step < state.max_steps and state.global_step % self.every == 0:
            control.should_save = True
            control.should_training_stop = True
            self.stopped_at = state.global_step

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
            atomic.write_text(folder / _COMPLETE, group.layout)
        group.barrier()  # the first process that ends takes those beside it along

    def raise_if_stopped(self) -> None:
        """After `trainer.train()`: raises Checkpointed when SIGTERM ended it early."""
        if self.stopped_at is not None:
            raise Checkpointed(self.stopped_at)


def train(trainer: Trainer, callback: StageCallback) -> None:
    """Runs a trainer to its end, from its newest complete checkpoint if there is one.

    Args:
        trainer: built with `callback` among its callbacks and `context.work` as its output folder.
        callback: the same.

    Raises:
        Checkpointed: SIGTERM came, and the checkpoint is on the volume.
        NotFinite: the training has diverged.
    """
    trainer.remove_callback(PrinterCallback)  # the log goes into `log.json`, not to stdout
    folder, group = callback.context.work, callback.context.process_group
    checkpoint = None
    if group.main:
        remove_torn_checkpoints(folder, group.layout)
        checkpoint = latest_checkpoint(folder, group.layout)
    broadcast_path = group.broadcast(str(checkpoint or ""))
    try:
        trainer.train(resume_from_checkpoint=broadcast_path or None)
    except RuntimeError as error:
        if "probability tensor contains" not in str(error):  # what torch says when it cannot sample
            raise
        raise NotFinite(
            f"{callback.phase}: nothing can be sampled any more after step {trainer.state.global_step}: the model's "
            f"probabilities are no numbers. Lower {callback.settings}.learningRate"
        ) from error
    callback.raise_if_stopped()
