"""GRPO's completions by a vLLM: whole groups are asked of the newest adapters, which the server is given after each
optimizer step (TRL's `rollout_func`; `GRPOPolicyTrainer.follow` says what of TRL's own vLLM is kept)."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from trl.trainer.grpo_trainer import GRPOTrainer

from medgr2_api.stages.grpo import GRPOParameters

from ..engine import opening
from ..engine.served_adapters import ServedAdapters, check_logprobs
from ..engine.token_client import TokenClient
from ..engine.vllm_sampler import Sample, Served, VLLMSampler
from ..errors import ConfigError, StageError
from ..models import checkpoint, vlm
from ..models.generation import Decoding
from ..models.vlm import Encoder, PromptResponse
from ..runner.context import StageContext
from ..runner.process_group import ProcessGroup
from .grpo_trainer import GRPOPolicyTrainer, filled_in
from .model import Start

#: Of the model after temperature and forbidden tokens: by these completions are drawn.
LOGPROBS = "--logprobs-mode=processed_logprobs"
#: Figures of the trainer's log.
WEIGHTS_SECONDS, ROLLOUT_SECONDS, RESAMPLED = "weights_seconds", "rollout_seconds", "resampled_groups"

SameReward = Callable[[Sequence[Sequence[str]], Sequence[dict[str, Any]]], list[bool]]
"""Whether all answers of a group got one reward; for each group, its answers and its row of the data set."""


@dataclass(frozen=True)
class PolicyServer:
    """The vLLM that samples for a training."""

    adapters: ServedAdapters | None
    """What it has of the training; None in all processes but the main one, which sees to it."""


@contextmanager
def policy_server(ctx: StageContext[GRPOParameters], start: Start) -> Iterator[PolicyServer | None]:
    """It runs until the end of this block; None: the policy samples in the processes that train it.

    Raises:
        ConfigError: what is trained cannot be served.
        TemporaryError: the server cannot be started, or does not answer.
    """
    if not opening.samples_rollouts(ctx.parameters.engine):
        yield None
        return
    if start.lora is None or (start.checkpoint.adapter is not None and not start.continues):
        raise ConfigError(
            "policy.grpo.lora: a vLLM samples from adapters on the model that stage sft has started from: train "
            "adapters of the rank and alpha of policy.sft.lora, or have the policy sample in its own process "
            "(policy.engine.vllm.rolloutGPUs: 0)"
        )
    servers = opening.servers(ctx, ctx.parameters.engine, (LOGPROBS,)) if ctx.process_group.main else None
    if servers is None:
        ctx.process_group.barrier()  # a server takes longer to start than a tensor may be on its way
        yield PolicyServer(None)
        return
    try:
        ctx.progress("start vllm", 0, 0)
        served = servers.serving(replace(start.checkpoint, adapter=None), start.lora.r, ctx.check_stop)
        request = ctx.request
        adapters = ServedAdapters(served, ctx.work / "served", f"grpo-{request.input_hash[:16]}", request.attempt)
        adapters.begin()
        ctx.process_group.barrier()
        try:
            yield PolicyServer(adapters)
        finally:
            with contextlib.suppress(StageError):  # a server that is gone has none of them
                adapters.end()
    finally:
        servers.close()


@dataclass(frozen=True)
class Resampling:
    """Groups that taught nothing are asked anew."""

    rounds: int
    """How often; 0: never."""
    same_reward: SameReward


class ServerRollouts:
    """What TRL samples with. Each process of a training asks for its own prompts; the main one exchanges weights."""

    def __init__(
        self,
        start: Start,
        encoder: Encoder,
        server: PolicyServer,
        group: ProcessGroup,
        resampling: Resampling,
        beat: Callable[[], None],
    ) -> None:
        """
        Args:
            start: what is trained.
            encoder: of its processor.
            server: that samples.
            group: the processes of the training.
            resampling: what is asked anew.
            beat: called when answers have come, and no step has ended.
        """
        self._start, self._encoder, self._adapters = start, encoder, server.adapters
        self._group, self._resampling, self._beat = group, resampling, beat
        self._trainer: GRPOPolicyTrainer | None = None
        self._sampler: VLLMSampler | None = None
        self._step, self._drawn = -1, 0

    def attach(self, trainer: GRPOPolicyTrainer) -> None:
        """Makes this what the trainer samples with.

        Raises:
            ConfigError: the server's log-probabilities are not those that completions are drawn by.
        """
        self._trainer = trainer
        if self._adapters is not None and (trainer.args.temperature, trainer.args.top_p) != (1.0, 1.0):
            check_logprobs(self._adapters.base)
        trainer.follow(self)

    def sync_weights(self) -> None:
        """Has the server answer with the adapters as they are now. All processes must call this."""
        trainer, begun = self._trainer, time.monotonic()
        assert trainer is not None
        newest: Served | None = None
        if self._adapters is not None:
            model = trainer.accelerator.unwrap_model(trainer.model)
            precision = torch.bfloat16 if vlm.device().type == "cuda" else torch.float32  # as a server holds them
            newest = self._adapters.exchange(lambda folder: checkpoint.write_adapter(model, folder, precision))
        told = self._group.broadcast(None if newest is None else (newest.client.address, newest.model))
        served = newest or Served(TokenClient(told[0]), told[1])
        self._sampler = VLLMSampler(replace(self._start.checkpoint, adapter=None), lambda _: served)
        trainer.note(WEIGHTS_SECONDS, time.monotonic() - begun)

    def __call__(self, prompts: Sequence[Any], asking: GRPOTrainer) -> dict[str, list[Any]]:
        """TRL's `rollout_func`.

        Args:
            prompts: B conversations; a prompt's G stand side by side.
            asking: the trainer that this is attached to.

        Returns:
            `prompt_ids`, `completion_ids` and `logprobs`, B lists each.

        Raises:
            NotFinite: a log-probability is no number.
            ConfigError: the server gives the model another prompt than training does.
            TemporaryError: it does not answer.
        """
        trainer, begun = self._trainer, time.monotonic()
        assert trainer is not None
        assert trainer is asking
        size = filled_in(trainer.num_generations)
        rows = trainer.asked[::size]
        assert len(rows) * size == len(prompts)
        turns = [PromptResponse(row["image_sha256"], row["text"]) for row in rows]
        groups, again = self._ask(trainer, turns, size), 0
        for _ in range(self._resampling.rounds):
            texts = [self._texts(group) for group in groups]
            same = [at for at, found in enumerate(self._resampling.same_reward(texts, rows)) if found]
            if not same:
                break
            again += len(same)
            for at, group in zip(same, self._ask(trainer, [turns[at] for at in same], size), strict=True):
                groups[at] = group
        if self._resampling.rounds:
            trainer.note(RESAMPLED, again / len(groups))
        trainer.note(ROLLOUT_SECONDS, time.monotonic() - begun)
        samples = [sample for group in groups for sample in group]
        return {
            "prompt_ids": [self._encoder.prompt_ids(turn) for turn in turns for _ in range(size)],
            "completion_ids": [list(sample.token_ids) for sample in samples],
            "logprobs": [list(sample.logprobs) for sample in samples],
        }

    def _ask(self, trainer: GRPOPolicyTrainer, turns: Sequence[PromptResponse], size: int) -> list[list[Sample]]:
        assert self._sampler is not None
        step, args, most = trainer.state.global_step, trainer.args, 0
        self._drawn = self._drawn + 1 if step == self._step else 0
        self._step = step
        named = f"{args.seed}/{step}/{self._drawn}/{self._group.rank}"
        seed = int.from_bytes(hashlib.sha256(named.encode()).digest()[:8], "big")

        def between(done: int) -> None:
            nonlocal most
            if done > most:
                most = done
                self._beat()

        decoding = Decoding(args.temperature, args.top_p)
        longest = filled_in(args.max_completion_length)
        return self._sampler.samples(self._encoder, [(turn, size) for turn in turns], longest, decoding, seed, between)

    def _texts(self, group: Sequence[Sample]) -> list[str]:
        """As TRL reads them."""
        ids = [list(sample.token_ids) for sample in group]
        texts: list[str] = self._encoder.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts
