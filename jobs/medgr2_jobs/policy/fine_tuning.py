"""Supervised fine-tuning, L = -E[log π(answer | image, prompt)] over the answer's tokens only: SFT and students.

Survives `kill -9` and SIGTERM: with one thread the weights are those of an undisturbed run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from medgr2_api.training_spec import BY_DEFAULT, ModelLoading, ResolvedTraining

from ..models import held, image_check, vlm
from ..models.checkpoint import Checkpoint
from ..models.patches import trl_head
from ..models.vlm import PromptResponse
from ..runner.context import StageContext
from ..training.checkpoints import place_checkpoints
from ..training.stage_callback import StageCallback
from ..training.trainer import lora_config, refusals, train, trainer_arguments, trainer_options
from .dataset import CompletionCollator, sft_dataset
from .model import ExactResume, Start, trained


class SFTPolicyTrainer(ExactResume, SFTTrainer):
    """SFTTrainer that resumes exactly."""


@dataclass(frozen=True)
class FineTuned:
    """What came of a training."""

    model: Any
    """With whole weights, unwrapped; None in processes that do not get them (`policy.model.trained`)."""
    start: Start
    """What it started from."""
    steps: int
    """Optimizer steps."""
    log: list[dict[str, Any]]
    """The trainer's log."""

    @property
    def losses(self) -> list[float]:
        """Loss of each step that was logged."""
        return [entry["loss"] for entry in self.log if "loss" in entry]


def fine_tune(
    ctx: StageContext[Any],
    rows: Sequence[tuple[str, PromptResponse]],
    source: Checkpoint,
    training: ResolvedTraining,
    *,
    settings: str,
    loading: ModelLoading = BY_DEFAULT,
) -> FineTuned:
    """Trains a checkpoint on rows, from the newest checkpoint of this stage if there is one.

    Args:
        ctx: the stage's.
        rows: (name of the row, row); not empty.
        source: what to start from.
        training: how it learns.
        settings: where that stands in the spec, for messages.
        loading: how the model is held meanwhile.

    Raises:
        ConfigError: a trainer option is unknown, owned or refused; no usable model.
        DataError: a row has nothing to learn from.
        Checkpointed: asked to stop.
        NotFinite: the training has diverged.
    """
    field = f"{settings}.trainer"
    options = trainer_options(SFTConfig, training.trainer, field)
    args = trainer_arguments(
        SFTConfig,
        ctx,
        options,
        field=field,
        learning_rate=training.learning_rate,
        num_train_epochs=training.num_epochs,
        max_length=None,  # TRL's default of 1024 may cut the answer off and then trains on nothing, at loss 0
        remove_unused_columns=False,
        bf16=held.bfloat16(loading),
    )
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.max_steps if args.max_steps > 0 else math.ceil(math.ceil(len(rows) / batch) * args.num_train_epochs)
    place_checkpoints(args, steps, spread="save_steps" not in options)

    ctx.progress("load", 0, steps)
    processor = source.processor()
    collator = CompletionCollator(vlm.Encoder(processor, ctx.images))
    collator.check(rows)

    start = Start(source, lora_config(training.lora), loading)
    trl_head.apply(vlm.device())
    callback = StageCallback(ctx, ctx.request.stage, ("loss", "mean_token_accuracy"), settings=settings)
    with refusals(field, "SFTTrainer"):
        trainer = SFTPolicyTrainer(
            model=start.model(),
            args=args,
            data_collator=collator,
            train_dataset=sft_dataset(rows),
            processing_class=processor,
            peft_config=start.wrap,
            callbacks=[callback],
        )
    image_check.check(trainer.model, collator.encoder, (row for _, row in rows))
    if ctx.process_group.count > 1:  # the mean over all tokens of a step, not over the processes' means
        trainer.model_accepts_loss_kwargs = True
    train(trainer, callback)
    return FineTuned(trained(trainer, start), start, trainer.state.global_step, trainer.state.log_history)
