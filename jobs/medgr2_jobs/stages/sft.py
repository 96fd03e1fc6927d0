"""Stage sft: supervised fine-tuning on D_gen, L = -E[log π(a | I, q)] over the answer's tokens only.

Survives `kill -9` and SIGTERM: with one thread the published bytes are those of an undisturbed run.
"""

from __future__ import annotations

import json
import math

from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from medgr2_api.stages.sft import SFTParameters
from medgr2_api.training_spec import InitFrom

from ..curate.training_set import training_set
from ..models import vlm
from ..models.patches import trl_head
from ..policy.dataset import CompletionCollator, sft_dataset, sft_rows
from ..policy.model import ExactResume, save, trained
from ..runner.context import StageContext, StageOutcome
from ..training.trainer import (
    StageCallback,
    lora_config,
    place_checkpoints,
    refusals,
    train,
    trainer_arguments,
    trainer_options,
)

FIELD = "policy.sft.trainer"


class SFTPolicyTrainer(ExactResume, SFTTrainer):
    """SFTTrainer that resumes exactly."""


def run(ctx: StageContext[SFTParameters]) -> StageOutcome:
    """Trains from the base model (or the previous policy) and publishes `model/` and `log.json`.

    Raises:
        ConfigError: a trainer option is unknown, owned or refused; no usable model.
        DataError: D_gen is empty, or a row has nothing to learn from.
        Checkpointed: asked to stop.
    """
    parameters = ctx.parameters
    options = trainer_options(SFTConfig, parameters.training.trainer, FIELD)
    args = trainer_arguments(
        SFTConfig,
        ctx,
        options,
        field=FIELD,
        learning_rate=parameters.training.learning_rate,
        num_train_epochs=parameters.training.num_epochs,
        max_length=None,  # TRL's default of 1024 may cut the answer off and then trains on nothing, at loss 0
        remove_unused_columns=False,
    )
    rows = sft_rows(training_set(ctx, ctx.request.iteration, parameters.answer_format), parameters.answer_format)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.max_steps if args.max_steps > 0 else math.ceil(math.ceil(len(rows) / batch) * args.num_train_epochs)
    place_checkpoints(args, steps, spread="save_steps" not in options)

    previous = parameters.init_from is InitFrom.PREVIOUS and ctx.has_input("policy")  # iteration 1 has no previous one
    source = ctx.input("policy").folder_of("model") if previous else ctx.input("prepare").folder_of("models/policy")
    ctx.progress("load", 0, steps)
    processor = vlm.load_processor(source)
    collator = CompletionCollator(vlm.Encoder(processor, ctx.images))
    collator.check(rows)

    lora = lora_config(parameters.training.lora)
    trl_head.apply(vlm.device())
    callback = StageCallback(ctx, "sft", ("loss", "mean_token_accuracy"), settings="policy.sft")
    with refusals(FIELD, "SFTTrainer"):
        trainer = SFTPolicyTrainer(
            model=vlm.load_model(source, train=True),
            args=args,
            data_collator=collator,
            train_dataset=sft_dataset(rows),
            processing_class=processor,
            peft_config=lora,
            callbacks=[callback],
        )
    if ctx.process_group.count > 1:  # the mean over all tokens of a step, not over the processes' means
        trainer.model_accepts_loss_kwargs = True
    train(trainer, callback)

    model = trained(trainer, source, lora)
    if not ctx.process_group.main:
        return StageOutcome()
    save(model, source, ctx.writer.path("model"))
    history = trainer.state.log_history
    ctx.writer.path("log.json", digested=False).write_text(json.dumps(history, indent=1))
    losses = [entry["loss"] for entry in history if "loss" in entry]
    return StageOutcome(
        counters={
            "rows": len(rows),
            "steps": trainer.state.global_step,
            "first_loss": losses[0],
            "train_loss": losses[-1],
        }
    )
