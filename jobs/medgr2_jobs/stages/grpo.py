"""Stage grpo: the policy learns from its own answers, graded by R and by trusted answers (rewards.py).

Before it policy and R are compared on the validation questions, and after it the policy with what it was: the training
may be skipped, and its checkpoint may stay behind (release.py).

Survives `kill -9` and SIGTERM: with one thread the published bytes are those of an undisturbed run. To that end
checkpoints lie only where no half-used generation batch would be lost: at multiples of
lcm(steps_per_generation · num_iterations, gradient_accumulation_steps) / gradient_accumulation_steps optimizer steps
(1 with TRL's defaults); a SIGTERM waits for the next one. Limit: when gradient_accumulation_steps does not divide the
generation batches of an epoch, a resume behind the first epoch is valid but not identical.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from trl.trainer.grpo_config import GRPOConfig

from medgr2_api.grpo_batches import GRPOBatches, UnevenBatches
from medgr2_api.policy import ResolvedGRPO, RewardTermType
from medgr2_api.stages.grpo import GRPOParameters

from ..curate.training_set import training_set
from ..engine.opening import samples_rollouts
from ..errors import ConfigError, DataError
from ..evaluate.release import Release, TrainedOn
from ..models import checkpoint, generation, held, vlm
from ..models.patches import pixel_cache, repeated_prompts, trl_head
from ..policy.dataset import grpo_dataset, grpo_prompts, with_seed_share
from ..policy.grpo_trainer import GRPOPolicyTrainer, filled_in
from ..policy.model import Start, save, trained
from ..policy.release_judge import ReleaseJudge
from ..policy.reward_terms import RememberedScores, Scorer, trusted_terms
from ..policy.rewards import PolicyReward, Rollouts, check_terms, summary, zero_variance
from ..policy.server_rollouts import Resampling, ServerRollouts, policy_server
from ..reward.model import RewardModel
from ..reward.scorer import score
from ..runner.context import StageContext, StageOutcome
from ..runner.distributed import deepspeed
from ..store.rows.candidates import Candidate, Triplet, triplet_of
from ..store.rows.training import Rollout
from ..training.checkpoints import latest_checkpoint, place_checkpoints
from ..training.guards import constant_reward, kl_out_of_bounds, logprobs_disagree
from ..training.stage_callback import StageCallback
from ..training.trainer import (
    lora_config,
    refusals,
    train,
    trainer_arguments,
    trainer_options,
)

FIELD = "policy.grpo.trainer"


def run(ctx: StageContext[GRPOParameters]) -> StageOutcome:
    """Trains the SFT checkpoint and publishes `release.json`, and unless it is skipped `model/`, table `rollouts` and
    `log.json`.

    Raises:
        ConfigError: a trainer option is unknown, owned or refused; batch and group do not fit; R is missing.
        DataError: there is no prompt.
        Checkpointed: asked to stop.
    """
    grpo = ctx.parameters.grpo
    check_terms(grpo.rewards, ctx.has_input("reward"), "policy.grpo.rewards")
    options = trainer_options(GRPOConfig, grpo.trainer, FIELD)
    args = trainer_arguments(
        GRPOConfig,
        ctx,
        options,
        field=FIELD,
        **batches(grpo, ctx.process_group.count, served=samples_rollouts(ctx.parameters.engine)).options(),
        num_train_epochs=grpo.num_epochs,
        learning_rate=grpo.learning_rate,
        num_generations=grpo.num_generations,
        beta=grpo.kl_coefficient,
        bf16=held.bfloat16(ctx.parameters.loading),
    )
    check_batches(args)
    judge = ReleaseJudge(ctx)
    with deepspeed.whole(args):
        release = ctx.process_group.broadcast(judge.before() if ctx.process_group.main else None)
    if release.trained_on is TrainedOn.NOTHING:
        return _released(ctx, release)
    if release.trained_on is TrainedOn.TRUSTED_ANSWERS:
        grpo = grpo.model_copy(update={"rewards": trusted_terms(grpo.rewards)})
    answer_format = ctx.parameters.answer_format
    training = training_set(ctx, ctx.request.iteration, answer_format)
    prompts = grpo_prompts(training, _triplets(ctx), answer_format, grpo.prompt_source)
    if all(term.type is RewardTermType.ANSWER_MATCH for term in grpo.rewards):  # without an answer: no reward
        prompts = [prompt for prompt in prompts if prompt.answer_index is not None]
    prompts = with_seed_share(prompts, grpo.seed_fraction)
    steps = total_steps(args, len(prompts))
    every = checkpoint_unit(args)
    place_checkpoints(args, steps, spread="save_steps" not in options, every=every)

    ctx.progress("load", 0, steps)
    start = Start(checkpoint.published(ctx, "sft"), lora_config(grpo.lora), ctx.parameters.loading)
    processor = start.checkpoint.processor("left")
    processor = repeated_prompts.apply(pixel_cache.apply(processor, vlm.device()), vlm.device())
    model = start.model()
    args.generation_kwargs = _generation_options(
        args, generation.never_sampled(processor, model.generation_config.eos_token_id)
    )
    trl_head.apply(vlm.device())
    rollouts = Rollouts()
    if ctx.process_group.main and (saved := latest_checkpoint(ctx.work, ctx.process_group.layout)):
        rollouts.load(saved)
    wants_r = any(term.type is RewardTermType.REWARD_MODEL for term in grpo.rewards)
    with deepspeed.whole(args):
        scorer = _scorer(ctx) if wants_r else None
    if scorer is not None and grpo.resample_groups:
        scorer = RememberedScores(scorer)
    encoder = vlm.Encoder(processor, ctx.images)
    reward = PolicyReward(
        grpo.rewards,
        grpo.num_generations,
        scorer,
        rollouts,
        answer_format,
        encoder.answered,
    )
    callback = StageCallback(
        ctx,
        "grpo",
        ("reward", "loss", "kl", "zero_variance_groups", "rollout_seconds", "weights_seconds"),
        settings="policy.grpo",
        every=every,
        extra=rollouts.save,
        guards=(constant_reward, kl_out_of_bounds, logprobs_disagree),
    )
    with policy_server(ctx, start) as server:
        sampling = None
        if server is not None:
            resampling = Resampling(grpo.resample_groups, reward.same_reward)
            beat = callback.watchdog.beat
            sampling = ServerRollouts(start, encoder, server, ctx.process_group, resampling, beat)
        with refusals(FIELD, "GRPOTrainer"):
            trainer = GRPOPolicyTrainer(
                model=model,
                reward_funcs=[reward.reward],
                args=args,
                train_dataset=grpo_dataset(prompts, ctx.images),
                processing_class=processor,
                peft_config=start.wrap,
                callbacks=[callback],
                rollout_func=sampling,
            )
        if sampling is not None:
            sampling.attach(trainer)
        train(trainer, callback)

    model = trained(trainer, start)
    if not ctx.process_group.main:
        return StageOutcome()
    save(model, start, ctx.writer.path("model"))
    ctx.writer.table(Rollout, rollouts.rows)
    history, global_step = trainer.state.log_history, trainer.state.global_step
    # what is measured is what was published, and it needs their memory
    del trainer, model, reward, scorer, sampling, callback
    with deepspeed.whole(args):
        release = judge.after(release, global_step)
    ctx.writer.path("log.json", digested=False).write_text(json.dumps(history, indent=1))
    return _released(
        ctx,
        release,
        prompts=len(prompts),
        prompts_trusted=sum(prompt.answer_index is not None for prompt in prompts),
        steps=global_step,
        **summary(history),
        **zero_variance(history, prompts_per_step(args)),
    )


def _released(ctx: StageContext[GRPOParameters], release: Release, **counters: float) -> StageOutcome:
    """What was decided, as every process returns it and the main one publishes it."""
    if ctx.process_group.main:
        ctx.writer.path("release.json").write_text(release.to_json())
    return StageOutcome({**counters, **release.counters()}, promoted=release.promoted, message=release.message)


def _triplets(ctx: StageContext[GRPOParameters]) -> list[Triplet]:
    """This iteration's, kept and rejected; none where generate is disabled."""
    role = f"generate-{ctx.request.iteration}"
    candidates = ctx.input(role).rows(Candidate) if ctx.has_input(role) else []
    return [triplet for row in candidates if (triplet := triplet_of(row))]


def batches(grpo: ResolvedGRPO, processes: int, *, served: bool) -> GRPOBatches:
    """How a step's prompts are divided up.

    Raises:
        ConfigError: they cannot be.
    """
    try:
        return GRPOBatches.of(grpo, processes, served=served)
    except UnevenBatches as error:
        raise ConfigError(f"policy.grpo.{error}") from None


def check_batches(args: GRPOConfig) -> None:
    """Refuses batches that would tear a group apart.

    TRL asks this of all processes together; we ask it of each, for a group's statistics are taken where its
    completions are.

    Raises:
        ConfigError: the samples one process draws at a time are no multiple of the group size.
    """
    steps, group = filled_in(args.steps_per_generation), filled_in(args.num_generations)
    samples = args.per_device_train_batch_size * steps
    if samples % group:
        raise ConfigError(
            f"{FIELD}: per_device_train_batch_size x steps_per_generation is {samples}, which policy.grpo."
            f"numGenerations ({group}) does not divide; choose a multiple, such as "
            f"per_device_train_batch_size: {math.lcm(samples, group) // steps}"
        )


def total_steps(args: GRPOConfig, prompts: int) -> int:
    """Optimizer steps of the whole run.

    Raises:
        DataError: there are fewer prompts than one generation batch takes: TRL would silently train on nothing.
    """
    at_once = filled_in(args.generation_batch_size) // filled_in(args.num_generations)
    if prompts < at_once:
        raise DataError(
            f"GRPO has {prompts} distinct prompts, and one generation batch takes {at_once} "
            f"(generation_batch_size {args.generation_batch_size} / numGenerations {args.num_generations}); lower "
            f"policy.grpo.promptsPerStep or {FIELD}.per_device_train_batch_size, or let more candidates through"
        )
    if args.max_steps > 0:
        return int(args.max_steps)
    batches = prompts // at_once * args.num_iterations * filled_in(args.steps_per_generation)
    return math.ceil(math.ceil(batches / args.gradient_accumulation_steps) * args.num_train_epochs)


def prompts_per_step(args: GRPOConfig) -> float:
    """Prompts that are sampled for each optimizer step, over all processes."""
    samples = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return float(samples / (filled_in(args.num_generations) * args.num_iterations))


def checkpoint_unit(args: GRPOConfig) -> int:
    """Optimizer steps after which a generation batch is used up (see the module's docstring)."""
    passes = filled_in(args.steps_per_generation) * args.num_iterations
    return math.lcm(passes, args.gradient_accumulation_steps) // args.gradient_accumulation_steps


def _generation_options(args: GRPOConfig, never: Sequence[int]) -> dict[str, Any]:
    """The user's `generation_kwargs`, and what must not be sampled."""
    generation_kwargs = args.generation_kwargs or {}
    assert not isinstance(generation_kwargs, str)  # GRPOConfig has read it
    return {**generation_kwargs, "suppress_tokens": sorted({*never, *(generation_kwargs.get("suppress_tokens") or [])})}


def _scorer(ctx: StageContext[GRPOParameters]) -> Scorer:
    """R, loaded with its own processor."""
    folder = ctx.input("reward").folder_of("model")
    encoder = vlm.Encoder(vlm.load_processor(folder), ctx.images)
    return partial(score, RewardModel.load(folder), encoder)
