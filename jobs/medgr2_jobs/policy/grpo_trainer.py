"""TRL's GRPO trainer as stage grpo needs it: resumed exactly, and sampled for by a vLLM that is not TRL's."""

from __future__ import annotations

from typing import Any, Protocol

from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from .model import ExactResume


def filled_in(value: int | None) -> int:
    """TRL works out what was not given, and its types do not say so."""
    assert value is not None
    return value


class EpochSampler(RepeatSampler):
    """TRL's sampler, but an epoch's order depends on its number only: a resumed run meets the same prompts.

    (TRL's draws one permutation after another from one generator, which a resume starts anew.)
    """

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        if self.shuffle:
            self.generator.manual_seed(filled_in(self.seed) + epoch)


class Weights(Protocol):
    """What samples, as TRL sees it."""

    def sync_weights(self) -> None:
        """Called before the first sampling after an optimizer step."""
        ...


class GRPOPolicyTrainer(ExactResume, GRPOTrainer):
    """GRPOTrainer that resumes exactly, with the sampler above."""

    args: GRPOConfig
    vllm_generation: Any
    asked: list[dict[str, Any]]
    """Rows of the data set that are being sampled for, one for each completion."""

    def follow(self, weights: Weights) -> None:
        """Says that a vLLM samples, by `rollout_func`.

        With TRL's `use_vllm` the trainer would start, or look for, a vLLM of TRL's. What it then does around it is what
        ours needs, too: it has the weights exchanged after each step, and weighs completions by the ratio of their
        probabilities here and there (`vllm_importance_sampling_correction`).
        """
        self.use_vllm, self.vllm_generation, self._last_loaded_step = True, weights, -1

    def note(self, name: str, value: float) -> None:
        """Puts a figure of this sampling into the trainer's log, as reward functions do."""
        self._pending_metrics[name].append(value)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.asked = inputs
        return super()._generate_and_score_completions(inputs)

    def _get_per_token_logps_and_entropies(self, *given: Any, **named: Any) -> Any:
        """Without what LLaVA-OneVision's processor says beside the pictures and TRL 1.16 does not know: how many each
        prompt has. That is one, which is what the model takes for granted."""
        named.pop("batch_num_images", None)
        return super()._get_per_token_logps_and_entropies(*given, **named)

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        rows: Any = self.train_dataset if dataset is None else dataset
        group = filled_in(self.num_generations)
        return EpochSampler(
            data_source=rows,
            mini_repeat_count=group,
            batch_size=filled_in(self.args.generation_batch_size) // group,
            repeat_count=self.num_iterations * filled_in(self.args.steps_per_generation),
            shuffle=bool(self.shuffle_dataset),
            seed=self.args.seed,
        )
