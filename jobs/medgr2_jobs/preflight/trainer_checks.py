"""Whether the installed trainers take the options that the spec gives them, before anything is paid."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from typing import Any

from medgr2_api.grpo_batches import GRPOBatches, UnevenBatches
from medgr2_api.rollout_gpus import share
from medgr2_api.stages import GRPO

from ..errors import ConfigError
from .check_result import CheckResult, PreflightContext, failed, ok, skipped

#: What a library says of an option that only a GPU, or a newer one, can do.
_ABOUT_GPUS = re.compile(r"\bGPUs?\b|CUDA|Ampere", re.IGNORECASE)


def trainers(context: PreflightContext) -> Iterator[CheckResult]:
    """Every `trainer:` block that the user wrote, as the library sees it, with the packages it needs; and what else the
    trainings need: DeepSpeed, bitsandbytes, flash attention."""
    spec = context.spec
    written, known = context.cycle.spec, spec.policy.grpo
    try:
        batches = GRPOBatches.of(known, spec.stage(GRPO.name).num_nodes * share(spec, GRPO.name).processes)
    except UnevenBatches as error:
        yield failed("policy.grpo", str(error))
        return
    grpo = {"num_generations": known.num_generations, **batches.options()}
    first, again = spec.reward_model.training.trainer, spec.reward_model.training.retrain_trainer
    blocks = {
        "rewardModel.training.trainer": (written.reward_model.training.trainer, "TrainingArguments", first, {}),
        "rewardModel.training.retrainTrainer": (
            written.reward_model.training.retrain_trainer,
            "TrainingArguments",
            {**first, **again},
            {},
        ),
        "policy.sft.trainer": (written.policy.sft.trainer, "SFTConfig", spec.policy.sft.trainer, {}),
        "policy.grpo.trainer": (written.policy.grpo.trainer, "GRPOConfig", spec.policy.grpo.trainer, grpo),
    }
    for where, (given, config, options, ours) in blocks.items():
        if given:
            yield _trainer(context, where, config, options, ours)
    yield from _loading(context)
    for stage in spec.stages:
        if stage.deepspeed is not None:
            where = f"stages[{stage.name}].deepspeed"
            if importlib.util.find_spec("deepspeed") is None:
                yield failed(where, "the package deepspeed is not installed here: install MedGR2 with `distributed`")
            else:
                yield ok(where, "deepspeed is there")


def _loading(context: PreflightContext) -> Iterator[CheckResult]:
    """Whether what `policy.loading` asks for is installed here."""
    where, asked = "policy.loading", context.cycle.spec.policy.loading
    if not asked.model_fields_set:
        return
    from ..models import held

    try:
        held.check(asked)
    except ConfigError as error:
        lacking = "needs a GPU" in str(error)
        yield (skipped if lacking else failed)(where, str(error).removeprefix(f"{where}."))
        return
    yield ok(where, "what it asks for is there")


def _trainer(
    context: PreflightContext, where: str, config: str, options: dict[str, Any], ours: dict[str, Any]
) -> CheckResult:
    import torch

    from ..training import trainer  # torch and TRL take seconds to import: only where there is something to look at
    from ..training.option_table import CONFIGS

    library = {one.__name__: one for one in CONFIGS}[config]
    try:
        trainer.configured(library, options, field=where, output_dir=str(context.root), **ours)
    except ConfigError as error:
        message = str(error).removeprefix(f"{where}: ")
        if not torch.cuda.is_available() and _ABOUT_GPUS.search(message):
            return skipped(where, f"there is no GPU here: {message}")
        return failed(where, message)
    return ok(where, f"{config} takes its {len(options)} options")
