"""What `evaluate/release.py` decides by: answers to the validation questions, of R and of the policy before and after
GRPO."""

from __future__ import annotations

import gc
import json

import torch

from medgr2_api.policy import PolicyRelease, WhenPolicyBeatsReward
from medgr2_api.stages.grpo import GRPOParameters, learns_from

from ..engine.in_process import InProcessSampler
from ..evaluate import release
from ..evaluate.checkpoint_answers import answer
from ..evaluate.release import Floats, Release, Validation
from ..models import checkpoint, vlm
from ..models.checkpoint import Checkpoint
from ..models.vlm import PromptResponse
from ..prompts import answers
from ..runner.context import StageContext
from ..store import atomic
from ..store.rows import Split
from ..store.rows.prepared import Item
from ..store.rows.training import RewardAnswer

_BEFORE = "medgr2-sft-answers.json"


class ReleaseJudge:
    """Asks the checkpoints. Of several processes of a training only the main one does."""

    def __init__(self, ctx: StageContext[GRPOParameters]) -> None:
        self._ctx = ctx
        items = ctx.input("prepare").rows(Item)
        self._validation = Validation([item for item in items if item.split is Split.VALIDATION])
        self._compares = ctx.parameters.release is PolicyRelease.BEST and bool(self._validation.items)

    def before(self) -> Release:
        """What GRPO learns from. Measures nothing that decides nothing.

        Raises:
            Checkpointed: asked to stop.
        """
        when, reward = self._ctx.parameters.grpo.when_policy_beats_reward, self._reward()
        if reward is None and not self._compares:
            return Release(0)
        return release.before_training(self._validation, self._sft(), reward, when)

    def after(self, before: Release, step: int) -> Release:
        """Whether the checkpoint that was just written goes on.

        Args:
            before: what was decided before the training.
            step: that a stop would lose nothing of.

        Raises:
            Checkpointed: asked to stop.
        """
        if not self._compares:
            return before
        published = checkpoint.at(self._ctx, self._ctx.writer.path("model"))
        after = self._right(published, "measure grpo", step)
        return release.after_training(before, self._validation, self._sft(), after, self._ctx.parameters.release)

    def _reward(self) -> Floats | None:
        """How right R is; None: it judges nothing here, or this is not to be compared."""
        grpo = self._ctx.parameters.grpo
        if grpo.when_policy_beats_reward is WhenPolicyBeatsReward.TRAIN or not self._validation.items:
            return None
        if not learns_from(grpo.rewards) or not self._ctx.has_input("reward"):
            return None
        reward = self._ctx.input("reward")
        return self._validation.right_of_reward(reward.rows(RewardAnswer)) if reward.has_table(RewardAnswer) else None

    def _sft(self) -> Floats:
        """How right the policy is before its training: asked once, whatever interrupts the training."""
        path = self._ctx.work / _BEFORE
        if not path.is_file():
            right = self._right(checkpoint.published(self._ctx, "sft"), "measure sft", -1)
            atomic.write_text(path, json.dumps(right.tolist()))
        return release.as_floats(json.loads(path.read_text()))

    def _right(self, asked: Checkpoint, phase: str, step: int) -> Floats:
        """(N,) whether a checkpoint answers each validation question rightly."""
        items, answer_format = self._validation.items, self._ctx.parameters.answer_format

        def within(_: str, share: float) -> None:
            self._ctx.check_stop(step)
            self._ctx.progress(phase, int(share), len(items))

        prompts = [answers.prompt_of(item, answer_format) for item in items]
        rows = [PromptResponse(prompt.image_sha256, prompt.text) for prompt in prompts]
        _free()
        self._ctx.check_stop(step)
        encoder = vlm.Encoder(asked.processor(), self._ctx.images)
        sampler = InProcessSampler(asked)
        answered = answer(sampler, encoder, rows, [item.options for item in items], answer_format, within)
        del sampler  # and its model, or nothing would be freed
        _free()
        return self._validation.right_of_policy(answered.logprobs)


def _free() -> None:
    """Gives back what models that are gone have used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
