"""What every training stage shares: checked trainer options, and a run that goes on from the newest checkpoint."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from transformers import PrinterCallback, Trainer, TrainingArguments

from medgr2_api.hashing import normalise
from medgr2_api.model_families import ADAPTED
from medgr2_api.training_spec import FullFineTuning, ResolvedLoRA
from medgr2_api.unsupported import owned_options

from ..errors import ConfigError, NotFinite
from ..runner.context import StageContext
from ..runner.distributed import deepspeed
from .checkpoints import CHECKPOINTS_PER_RUN, latest_checkpoint, remove_torn_checkpoints
from .stage_callback import StageCallback
from .tracking.tracking_callback import tracked


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
    reasons = owned_options(field)
    for name in options:
        if name in reasons:
            raise ConfigError(f"{field}.{name}: not to be set here: {reasons[name]}")
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
        "activation_checkpointing": not cpu,
        **ours,
        **_by_new_names(trainer_options(config, options, field), field),
    }
    with refusals(field, config.__name__):
        args = config(**values)
        _check_packages(args)
    if args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs in one process: torch's DataParallel would tear images apart; one process for each GPU "
            "(numProcPerNode of the stage in spec.stages), or one visible GPU (CUDA_VISIBLE_DEVICES)"
        )
    return args


#: Options that transformers has renamed; it reads the old name only where the new one is not set, and ours sets it.
_RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


def _by_new_names(options: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Options under the names that the library goes by.

    Raises:
        ConfigError: an option is given under both names.
    """
    for old, new in _RENAMED.items():
        if old in options and new in options:
            raise ConfigError(f"{field}.{old}: {new} is its new name: give one of the two")
    return {_RENAMED.get(name, name): value for name, value in options.items()}


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
_PACKAGES = {"use_liger_kernel": "liger_kernel"}


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
        target_modules=ADAPTED,
        task_type=task_type,
    )


def train(trainer: Trainer, callback: StageCallback) -> None:
    """Runs a trainer to its end, from its newest complete checkpoint if there is one.

    Args:
        trainer: built with `callback` among its callbacks and `context.work` as its output folder.
        callback: the same.

    Raises:
        Checkpointed: SIGTERM came, and the checkpoint is on the volume.
        NotFinite: the training has diverged.
        StageError: one of the callback's guards.
    """
    trainer.remove_callback(PrinterCallback)  # the log goes into `log.json`, not to stdout
    folder, group = callback.context.work, callback.context.process_group
    checkpoint = None
    if group.main:
        remove_torn_checkpoints(folder, group.layout)
        checkpoint = latest_checkpoint(folder, group.layout)
    broadcast_path = group.broadcast(str(checkpoint or ""))
    try:
        with tracked(trainer, callback.context), callback.watchdog:
            trainer.train(resume_from_checkpoint=broadcast_path or None)
            callback.raise_if_stopped()
    except RuntimeError as error:
        if "probability tensor contains" not in str(error):  # what torch says when it cannot sample
            raise
        raise NotFinite(
            f"{callback.phase}: nothing can be sampled any more after step {trainer.state.global_step}: the model's "
            f"probabilities are no numbers. Lower {callback.settings}.learningRate"
        ) from error
