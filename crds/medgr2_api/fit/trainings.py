"""Stages that train: sft, distill, reward and grpo."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from medgr2_api.grpo_batches import GRPOBatches, UnevenBatches
from medgr2_api.policy import ResolvedGRPO, RewardTermType
from medgr2_api.reward_model import RewardHead
from medgr2_api.rollout_gpus import share
from medgr2_api.scheduling import DeepSpeed
from medgr2_api.stages import DISTILL, GRPO, REWARD, SFT
from medgr2_api.training_spec import Adapters, Attention, Precision, ResolvedLoRA, ResolvedTraining

from . import memory, work
from .gpus import GPU
from .memory import GIB, BatchSize, MemoryPart, Need, TrainingSetup
from .publishing import adapters_of
from .readers import scoring_seconds
from .result import StageFit
from .setting import Setting, StagePlace
from .shapes import ModelShape

#: Rows of a batch where the spec does not say: transformers' default.
_ROWS = 8
#: Longest completion where the spec does not say: TRL's default.
_COMPLETION = 512
#: Rank that is proposed: that of the presets' SFT.
_RANK = 64


def sft(setting: Setting) -> StageFit:
    """Supervised fine-tuning of the policy on D_gen."""
    return _supervised(setting, SFT.name, setting.models.policy, setting.spec.policy.sft, "policy.sft")


def distill(setting: Setting) -> StageFit | None:
    """The student's training; None: the cycle has none."""
    distillation = setting.spec.generator.distillation
    if distillation is None:
        return None
    model = setting.models.student or setting.models.policy
    return _supervised(setting, DISTILL.name, model, distillation.training, "generator.distillation.training")


def _supervised(setting: Setting, name: str, model: ModelShape, taught: ResolvedTraining, field: str) -> StageFit:
    place = setting.place(name)
    tokens, on_base = setting.prompt(model) + setting.longest(), adapters_of(setting.spec, name)
    training = _training(setting, place, taught.lora, taught.trainer, model, tokens, stands_on_base=on_base)
    if name == SFT.name:
        training = _held(setting, training)
    rows = _bounded(taught.trainer, place) or setting.counts.taught * taught.num_epochs
    return _fit(setting, _Case(name, field, model, place, training), _seconds(setting, place, model, training, rows))


def reward(setting: Setting) -> StageFit:
    """R: the first training before the loop, then a retraining in every iteration but the last; the mean of them."""
    taught, model, counts = setting.spec.reward_model.training, setting.models.reward, setting.counts
    place = setting.place(REWARD.name)
    training = _training(setting, place, taught.lora, taught.trainer, model, setting.prompt(model) + setting.longest())
    if setting.spec.reward_model.head is RewardHead.LAST_TOKEN_AND_LIKELIHOOD:
        training = replace(training, loss_positions=training.batch.rows * setting.longest())
    first = _bounded(taught.trainer, place) or counts.graded * taught.num_epochs
    again = _bounded({**taught.trainer, **taught.retrain_trainer}, place) or counts.retrained * taught.num_epochs
    runs = setting.spec.iterations
    rows = (first + (runs - 1) * again) / runs
    case = _Case(REWARD.name, "rewardModel.training", model, place, training)
    return _fit(setting, case, _seconds(setting, place, model, training, rows))


def grpo(setting: Setting) -> StageFit:
    """GRPO: samples groups, scores them by R, compares with the reference, and learns."""
    settings, model = setting.spec.policy.grpo, setting.models.policy
    place, group = setting.place(GRPO.name), settings.num_generations
    longest = whole(settings.trainer.get("max_completion_length"), _COMPLETION)
    tokens, on_base = setting.prompt(model) + longest, adapters_of(setting.spec, GRPO.name)
    options = {**_grpo_batches(settings, place), **settings.trainer}
    training = _training(setting, place, settings.lora, options, model, tokens, rows=group, stands_on_base=on_base)
    training = _held(setting, training)
    beside = []
    if settings.kl_coefficient > 0 and training.rank == 0:  # DeepSpeed has the copy in bfloat16
        beside.append(MemoryPart("reference", model.parameters * (2 if training.zero else 4)))
    judged = any(term.type is RewardTermType.REWARD_MODEL and term.weight for term in settings.rewards)
    if judged:
        beside.append(MemoryPart("R", setting.models.reward.parameters * (2 if place.on_gpu else 4)))
    prompts = (_bounded(options, place, group) / group) or setting.counts.prompts * settings.num_epochs
    case = _Case(GRPO.name, "policy.grpo", model, place, training, tuple(beside), group)
    return _fit(setting, case, _grpo_seconds(setting, place, training, prompts, judged=judged))


def _grpo_batches(settings: ResolvedGRPO, place: StagePlace) -> dict[str, int]:
    """TRL's options for the prompts of a step; none where they cannot be shared out, which validate says."""
    try:
        return GRPOBatches.of(settings, place.processes).options()
    except UnevenBatches:
        return {}


def _grpo_seconds(
    setting: Setting, place: StagePlace, training: TrainingSetup, prompts: float, *, judged: bool
) -> float:
    """On the clock: the training, the reference's and the policy's forward passes, sampling, and R."""
    gpu, known, model, settings = place.gpu, setting.known, setting.models.policy, setting.spec.policy.grpo
    if gpu is None:
        return math.nan
    completions, prompt, answer = prompts * settings.num_generations, setting.prompt(model), setting.answer()
    tower = work.vision_flops(model, setting.image_tokens(model))
    row = work.text_flops(model, prompt + answer, logits=answer) + tower
    seconds = _seconds(setting, place, model, training, completions) * place.processes
    shared = share(setting.spec, GRPO.name)
    served = setting.server or shared.served or setting.asks_on_site
    if served:  # the importance ratios need the policy's own log-probabilities before the step
        seconds += completions * work.reading_seconds(row, gpu, known)
    if settings.kl_coefficient > 0:
        seconds += completions * work.reading_seconds(row, gpu, known)
    if judged:
        seconds += scoring_seconds(setting, gpu, prompts, settings.num_generations)
    if setting.asks_on_site:
        return math.nan
    if served:  # one after the other
        return seconds / place.processes + rollout_seconds(setting, gpu, prompts) / (shared.server or place.processes)
    seconds += completions * work.reading_seconds(work.text_flops(model, prompt) + tower, gpu, known)
    longest = min(setting.longest(), whole(settings.trainer.get("max_completion_length"), _COMPLETION))
    batches = completions / training.batch.rows
    cast = training.halved and training.frozen_bytes == 4  # anew for each token
    moved = 4.5 if training.quantized else 8.0 if cast else training.frozen_bytes
    seconds += batches * work.generate_seconds(model, longest, gpu, known, moved=moved)
    return seconds / place.processes


def rollout_seconds(setting: Setting, gpu: GPU, prompts: float) -> float:
    """Of one GPU: vLLM reads every prompt once, its prefix cache has it for the rest of the group, and samples."""
    model, known = setting.models.policy, setting.known
    flops = work.text_flops(model, setting.prompt(model)) + work.vision_flops(model, setting.image_tokens(model))
    tokens = prompts * setting.spec.policy.grpo.num_generations * setting.answer()
    return prompts * work.reading_seconds(flops, gpu, known) + work.server_seconds(model, tokens, gpu, known)


def _seconds(setting: Setting, place: StagePlace, model: ModelShape, training: TrainingSetup, rows: float) -> float:
    """On the clock, for training so many rows; NaN without a GPU."""
    if place.gpu is None:
        return math.nan
    text, tower = work.training_factor(
        training.rank, checkpointing=training.checkpointing, tower_frozen=training.tower_frozen
    )
    tokens = setting.prompt(model) + setting.answer()
    flops = text * work.text_flops(model, tokens, logits=setting.answer())
    flops += tower * work.vision_flops(model, setting.image_tokens(model))
    slower = setting.known.unpacking.value if training.quantized else 1.0
    return slower * work.training_seconds(rows * flops, place.gpu, setting.known) / place.processes


def _training(
    setting: Setting,
    place: StagePlace,
    lora: ResolvedLoRA,
    options: dict[str, Any],
    model: ModelShape,
    tokens: int,
    rows: int = _ROWS,
    *,
    stands_on_base: bool = False,
) -> TrainingSetup:
    """How a stage trains; a base that adapters stand on is bfloat16 on a GPU, other weights are float32."""
    rows = whole(options.get("per_device_train_batch_size"), rows)
    again = options.get("activation_checkpointing", options.get("gradient_checkpointing", place.on_gpu))
    return TrainingSetup(
        rank=lora.rank if isinstance(lora, Adapters) else 0,
        batch=BatchSize(rows, tokens, setting.image_tokens(model), rows),
        processes=place.processes,
        zero={None: 0, DeepSpeed.ZERO2: 2, DeepSpeed.ZERO3: 3}[place.settings.deepspeed],
        accumulation=whole(options.get("gradient_accumulation_steps"), 1),
        checkpointing=bool(again),
        on_gpu=place.on_gpu,
        base_bytes=0.0 if stands_on_base and not place.settings.deepspeed else 4.0,
    )


def _held(setting: Setting, training: TrainingSetup) -> TrainingSetup:
    """A training of the policy, held as `policy.loading` says."""
    loading = setting.spec.policy.loading
    told = None if loading.precision is None else loading.precision is Precision.BFLOAT16
    return replace(
        training,
        bfloat16=told,
        quantized=loading.quantization is not None and training.rank > 0,
        tower_frozen=bool(loading.freeze_vision_tower) and training.rank == 0,
        eager=loading.attention is Attention.EAGER,
    )


@dataclass(frozen=True)
class _Case:
    """A training whose memory is reckoned."""

    name: str
    field: str
    """Where it stands in the spec."""
    model: ModelShape
    place: StagePlace
    training: TrainingSetup
    beside: tuple[MemoryPart, ...] = ()
    least_rows: int = 1

    def need(self, training: TrainingSetup) -> Need:
        """With other settings; adapters need no copy as their reference."""
        beside = [part for part in self.beside if not (part.name == "reference" and training.rank)]
        return memory.training_need(self.model, training, *beside)


def _fit(setting: Setting, case: _Case, seconds: float) -> StageFit:
    place, training = case.place, case.training
    need, host = case.need(training), None
    if place.on_gpu:
        beside = sum(part.bytes for part in case.beside if part.name == "R")
        host = memory.host_need(
            case.model, place.per_node, trained_whole=training.frozen_bytes == 4, zero=training.zero, others=beside
        )
    advice = tuple(_changes(case)) if 0 < place.limit < need.total else ()
    return setting.stage(case.name, place, need, seconds, model=case.model, host=host, advice=advice)


def _changes(case: _Case) -> Iterator[str]:
    """What makes it fit, mildest first, by the same formula; two at most."""
    now, rows = case.training, case.least_rows
    eight, field = max(8, now.processes), case.field
    fewer = {"batch": replace(now.batch, rows=rows, pictures=rows)}
    smaller = f"{field}.trainer.per_device_train_batch_size: {rows}"
    adapters = f"{field}.lora: {{rank: {_RANK}}}"
    rank = {"rank": now.rank or _RANK, "base_bytes": 0.0 if not now.zero and case.name != REWARD.name else 4.0}
    again, kept = f"{field}.trainer.activation_checkpointing: true", {"checkpointing": True}
    # a base of 4 bits, under adapters of the policy
    four, packed = "policy.loading: {quantization: NF4}", {"quantized": True}
    packs = case.name in (SFT.name, GRPO.name) and not now.zero

    def zero(stage: int) -> str:
        return f"stages[{case.name}]: {{deepspeed: Zero{stage}, numProcPerNode: {eight}}} on {eight} GPUs"

    options: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        ((smaller,), fewer),
        ((again,), kept),
        ((smaller, again), fewer | kept),
        ((adapters,), rank),
        ((adapters, smaller), rank | fewer),
        ((four,), packed),
        ((four, smaller, again), packed | fewer | kept),
        ((zero(2),), {"zero": 2, "processes": eight}),
        ((zero(3),), {"zero": 3, "processes": eight}),
        ((adapters, smaller, again), rank | fewer | kept),
        ((adapters, four, smaller, again), rank | packed | fewer | kept),
        ((zero(3), smaller, again), {"zero": 3, "processes": eight} | fewer | kept),
    ]
    told: list[TrainingSetup] = []
    for changes, values in options:
        changed = replace(now, **values)
        if changed.quantized and (changed.zero or not (packs and changed.rank)):
            continue
        idle = any(replace(now, **{name: value}) == now for name, value in values.items())  # says what is so already
        if idle or len(told) == 2 or (changed.zero and told):
            continue
        total = case.need(changed).total
        if total <= case.place.limit:
            told.append(changed)
            yield f"{' and '.join(changes)}: {total / GIB:,.0f} GiB"
    if not told:
        yield "a GPU with more memory, or a smaller model: no setting of this stage suffices"


def whole(value: object, default: int) -> int:
    """A trainer's option that is a whole number above 0, else the default."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default


def _bounded(options: dict[str, Any], place: StagePlace, rows: int = _ROWS) -> float:
    """Rows of a run whose steps the user has bounded (`max_steps`); 0: not bounded."""
    steps = whole(options.get("max_steps"), 0)
    batch = whole(options.get("per_device_train_batch_size"), rows)
    return float(steps * batch * whole(options.get("gradient_accumulation_steps"), 1) * place.processes)
