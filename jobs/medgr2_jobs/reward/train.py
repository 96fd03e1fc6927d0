"""Training R by regression on grades: transformers.Trainer with our model, batches and checkpoints.

TRL's RewardTrainer is not used: it learns from text-only pairs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from medgr2_api.reward_model import ResolvedRewardTraining

from ..errors import DataError
from ..models import image_check
from ..models.vlm import Encoder, PromptResponse
from ..runner.context import StageContext
from ..training.checkpoints import place_checkpoints
from ..training.stage_callback import StageCallback
from ..training.trainer import lora_config, refusals, trainer_arguments
from ..training.trainer import train as run_trainer
from .model import RewardModel

_WEIGHTS = "trainable.safetensors"


@dataclass(frozen=True)
class TrainingExample:
    """A row and its grade."""

    row: PromptResponse
    target: float


def fit(
    ctx: StageContext[Any],
    model: RewardModel,
    encoder: Encoder,
    rows: Sequence[TrainingExample],
    *,
    replay: Sequence[TrainingExample] = (),
    replay_fraction: float = 0.0,
    training: ResolvedRewardTraining,
    retrain: bool = False,
) -> list[dict[str, float]]:
    """Trains `model` in place and leaves it merged and in evaluation mode.

    Goes on from the newest checkpoint in `ctx.work`; the result is the same, bit by bit, as without the interruption.

    Args:
        ctx: the stage's context.
        model: a fresh R, or the one to retrain.
        encoder: of the model's processor.
        rows: graded rows of this training; one epoch is one pass over them.
        replay: graded rows to mix in (docs/decisions.md, 6).
        replay_fraction: their share of every batch.
        training: how to learn.
        retrain: whether `retrain_trainer` applies: a retraining is shorter than the first training.

    Returns:
        The log: step, loss, learning rate.

    Raises:
        DataError: there is nothing to train on.
        ConfigError: an option is unknown or refused.
        Checkpointed: SIGTERM came, and a checkpoint is on the volume.
    """
    if not rows:
        raise DataError("no rows to train the reward model on; look at table grades of stage prepare")
    options: dict[str, Any] = dict(training.trainer)
    if retrain:
        options |= training.retrain_trainer
    field = "rewardModel.training.retrainTrainer" if retrain else "rewardModel.training.trainer"
    arguments = trainer_arguments(
        TrainingArguments,
        ctx,
        options,
        field=field,
        learning_rate=training.learning_rate,
        num_train_epochs=1,  # of the whole run's rows
        remove_unused_columns=False,
        label_names=["targets"],
        include_num_input_tokens_seen="non_padding",  # for tokens per second; TRL's trainers count by themselves
    )
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    share = replay_fraction if replay else 0.0
    rows_drawn = max(1, round(training.num_epochs * len(rows) / (1 - share)))
    length = arguments.max_steps * batch if arguments.max_steps > 0 else rows_drawn
    place_checkpoints(arguments, math.ceil(length / batch), spread="save_steps" not in options)
    model.add_adapters(lora_config(training.lora, task_type=None))
    image_check.check(model.core, encoder, (example.row for example in rows))
    callback = StageCallback(ctx, "retrain" if retrain else "train", settings="rewardModel.training")
    with refusals(field, "Trainer"):
        trainer = _RewardTrainer(
            model=model,
            args=arguments,
            train_dataset=order(rows, replay, share, length, ctx.parameters.seed),
            data_collator=_Collator(encoder),
            callbacks=[callback],
        )
    run_trainer(trainer, callback)
    model.merge_adapters()
    model.eval()
    return [
        {"step": entry["step"], "loss": entry["loss"], "learning_rate": entry["learning_rate"]}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def order(
    rows: Sequence[TrainingExample], replay: Sequence[TrainingExample], share: float, length: int, seed: int
) -> list[TrainingExample]:
    """The whole run's rows in the order in which they are seen.

    Each source is passed through in a new random order every time; replay rows are spread evenly, so that every batch
    holds their share.

    Args:
        rows: new rows.
        replay: rows to mix in.
        share: of replay rows, in [0, 1).
        length: how many to draw in all.
        seed: for the orders.
    """
    new, old = _passes(rows, random.Random(f"{seed}/new")), _passes(replay, random.Random(f"{seed}/replay"))
    return [next(old if int((at + 1) * share) > int(at * share) else new) for at in range(length)]


def _passes(rows: Sequence[TrainingExample], chance: random.Random) -> Iterator[TrainingExample]:
    while True:
        yield from chance.sample(rows, len(rows))


@dataclass
class _Collator:
    """Graded rows → what `RewardModel.forward` takes."""

    encoder: Encoder

    def __call__(self, rows: list[TrainingExample]) -> dict[str, Any]:
        batch = self.encoder.batch([example.row for example in rows])
        targets = torch.tensor([example.target for example in rows], dtype=torch.float32)
        return {**batch.inputs, "labels": batch.labels, "targets": targets}


class _RewardTrainer(Trainer):
    """Keeps our order of rows, and saves what is trained: adapters or backbone, and the head."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(rows)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        parameters = self.accelerator.unwrap_model(self.model).named_parameters()
        weights = {name: (state_dict or {}).get(name, value) for name, value in parameters if value.requires_grad}
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, folder / _WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        target = self.accelerator.unwrap_model(model if model is not None else self.model)
        weights = load_file(Path(resume_from_checkpoint) / _WEIGHTS)
        trained = {name: value for name, value in target.named_parameters() if value.requires_grad}
        if weights.keys() != trained.keys():
            raise DataError(f"{resume_from_checkpoint}: its weights are not those that are trained; remove the folder")
        with torch.no_grad():
            for name, value in trained.items():
                value.copy_(weights[name])
