"""Which parts of the resolved spec each stage depends on: the `parameters` of its request, and of its input hash.

What is not here (image, resources, secrets, concurrency, addresses) may change without repeating paid work.
"""

from __future__ import annotations

import hashlib
from typing import Any

from .curation import Curation
from .cycle import AnswerFormat, CycleSpec
from .data import Data
from .generator import Prices, RateLimit, Sampling, Scripted, WeightedParadigm
from .hashing import sha256_of
from .model import Model
from .stage_contract import StageName
from .training_spec import GRPO, Control, Grades, InitFrom, Preferences, Promotion, RewardHead, RewardTraining, Training
from .types import FreeForm
from .uris import SecretKeyRef

#: Raised when a stage's code changes what it would publish for the same parameters and inputs.
CODE_VERSION: dict[StageName, int] = {
    **dict.fromkeys(StageName, 1),
    StageName.PREPARE: 3,  # images and grades say more; real texts get flipped findings
    StageName.GENERATE: 2,  # prompts with priors; repair; reasons and costs in every row
    StageName.CURATE: 2,  # near-duplicates, near images of benchmarks, guessable items, balance, reviews
    StageName.SFT: 2,  # on a CPU the LM head scores the answers only: other rounding
    StageName.GRPO: 2,  # the same
    StageName.REPORT: 2,  # the funnel
}


def seed_for(seed: int, stage: StageName, iteration: int) -> int:
    """A stage's own seed in [0, 2^31), independent of the other stages'."""
    digest = hashlib.sha256(f"{seed}/{stage}/{iteration}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class StageParameters(Model):
    """Base of the parameters of every stage."""

    seed: int
    """The stage's own seed."""


class PrepareParameters(StageParameters):
    """Inputs to fetch, pin and split; D_grade to build."""

    data: Data
    """Sources, split and benchmarks."""
    policy_base_model: str
    """Model that the policy starts from."""
    reward_base_model: str
    """Model that R starts from."""
    reward_checkpoint: str | None = None
    """The user's own R⁽⁰⁾, if any."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""
    grades: Grades
    """Target scores of D_grade."""
    mismatches_per_item: int
    """Wrong-image and wrong-answer rows of each gold item."""


class RewardParameters(StageParameters):
    """R⁽⁰⁾ (iteration 0) or its retraining."""

    retrain: bool
    """false: R⁽⁰⁾ on D_grade; true: retraining on preferences."""
    head: RewardHead
    """What the scalar head sees."""
    grades: Grades
    """Target scores of D_grade and of the preferences."""
    training: RewardTraining
    """How the reward model learns."""
    replay_fraction: float
    """Share of graded rows in a retraining."""
    promotion: Promotion
    """When a retrained model is taken over."""
    checkpoint: str | None = None
    """The user's own R⁽⁰⁾, if any; iteration 0 only."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""


class Provider(Model):
    """Who generates. `base_url` and the secret say how to reach it, not what it answers: they are not hashed."""

    kind: str
    """scripted, openAI, gemini or vllm."""
    model: str = ""
    """Model id; empty for the scripted generator."""
    scripted: Scripted | None = None
    """Error rates of the scripted generator."""
    base_url: str = ""
    """Address of an OpenAI-compatible server."""
    api_key_secret_ref: SecretKeyRef | None = None
    """Where the API key lies."""
    concurrency: int = 1
    """Requests in flight at most, in each shard."""
    external: bool = False
    """Images without `allowExternal` are not sent to it."""
    prices: Prices | None = None
    """What it charges."""
    rate_limit: RateLimit = RateLimit()
    """What it allows, over all shards."""


class GenerateParameters(StageParameters):
    """What to ask, and whom."""

    iteration: int
    """Iteration that the candidates belong to."""
    provider: Provider
    """Whom to ask."""
    paradigms: list[WeightedParadigm]
    """Prompting paradigms and their shares."""
    question_types: list[str]
    """Kinds of question to ask for."""
    candidates: int
    """Candidates in this iteration, over all shards."""
    questions_per_image: int
    """Questions per image."""
    sampling: Sampling
    """How the generator samples."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""
    shards: int
    """Parts that the work is divided into."""


class ScoreParameters(StageParameters):
    """Scoring has no parameters but the model's."""

    shards: int
    """Parts that the work is divided into."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""


class CurateParameters(StageParameters):
    """How the kept candidates are chosen."""

    curation: Curation
    """Selection, overlap and balance."""
    review: str = ""
    """sha256 of an expert's decisions on this iteration's triplets; empty: none."""


class SFTParameters(StageParameters):
    """Supervised fine-tuning."""

    init_from: InitFrom
    """Where the training starts."""
    training: Training
    """How the policy learns."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""


class GRPOParameters(StageParameters):
    """Reinforcement learning."""

    grpo: GRPO
    """Rewards, prompts and how the policy learns."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""


class PreferencesParameters(StageParameters):
    """Sampling the policy."""

    preferences: Preferences
    """How many prompts and answers, and from where."""
    grades: Grades
    """Target scores of right and wrong answers."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""


class EvaluateParameters(StageParameters):
    """Measuring checkpoints."""

    iteration: int
    """Iteration that made the checkpoints."""
    controls: list[Control]
    """Controls beside the real measurement."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""


class ReportParameters(StageParameters):
    """Tables and figures of one cycle."""

    cycle: str
    """Name of the cycle."""
    iteration: int
    """Newest iteration in the report."""
    settings: FreeForm
    """The resolved spec's headline choices, for the report's table."""


def stage_parameters(spec: CycleSpec, cycle_name: str, stage: StageName, iteration: int) -> StageParameters:
    """The parameters of a stage.

    Args:
        spec: a spec that went through `presets.resolve`.
        cycle_name: `metadata.name`; only the report depends on it.
        stage: which stage.
        iteration: which iteration.

    Raises:
        KeyError: the stage has no parameters in this version.
    """
    document: dict[str, Any] = {"seed": seed_for(spec.seed, stage, iteration), **_BUILDERS[stage](spec, iteration)}
    if stage is StageName.REPORT:
        document["cycle"] = cycle_name
    return _MODELS[stage].model_validate(document)


def input_hash(stage: StageName, parameters: StageParameters, inputs: dict[str, str], token: str = "") -> str:
    """Where a stage publishes: sha256 over code version, normalised parameters, input digests and restart token.

    Args:
        stage: which stage.
        parameters: its parameters.
        inputs: output digest of each input, by role.
        token: the restartFrom token under which the stage runs; empty at first.

    Returns:
        64 hex digits.
    """
    hashed = parameters.dump()
    for part, fields in _NOT_HASHED.items():
        for field in fields:
            hashed.get(part, {}).pop(field, None)
    return sha256_of(
        {"stage": stage, "code": CODE_VERSION[stage], "parameters": hashed, "inputs": inputs, "token": token}
    )


#: How something is reached, and how fast: changing it must not repeat paid work.
_NOT_HASHED = {
    "provider": ("baseUrl", "apiKeySecretRef", "concurrency", "prices", "rateLimit"),
    "data": ("fetch",),
}


def _provider(spec: CycleSpec) -> dict[str, Any]:
    generator = spec.generator
    if generator.scripted is not None:
        return {"kind": "scripted", "scripted": generator.scripted.dump(), "concurrency": 1}
    asked = generator.openai or generator.gemini or generator.vllm
    assert asked is not None
    kind = {"OpenAI": "openAI", "Gemini": "gemini", "VLLM": "vllm"}[type(asked).__name__]
    secret = getattr(asked, "api_key_secret_ref", None)
    return {
        "kind": kind,
        "model": asked.model,
        "base_url": getattr(asked, "base_url", None) or "",
        "api_key_secret_ref": secret.dump() if secret else None,
        "concurrency": generator.concurrency,
        "external": generator.external,
        "prices": generator.prices.dump() if generator.prices else None,
        "rate_limit": generator.rate_limit.dump(),
    }


_BUILDERS: dict[StageName, Any] = {
    StageName.PREPARE: lambda s, t: {
        "data": s.data.dump(),
        "policy_base_model": s.policy.base_model,
        "reward_base_model": s.reward_model.base_model,
        "reward_checkpoint": s.reward_model.checkpoint,
        "answer_format": s.answer_format,
        "grades": s.reward_model.grades.dump(),
        "mismatches_per_item": s.reward_model.mismatches_per_item,
    },
    StageName.REWARD: lambda s, t: {
        "retrain": t > 0,
        "head": s.reward_model.head,
        "grades": s.reward_model.grades.dump(),
        # R⁽⁰⁾ is not retrained: another way of retraining must not repeat it
        "training": s.reward_model.training.model_dump(mode="json", exclude=None if t else {"retrain_trainer"}),
        "replay_fraction": s.reward_model.replay_fraction,
        "promotion": s.reward_model.promotion.dump(),
        "checkpoint": s.reward_model.checkpoint if t == 0 else None,
        "answer_format": s.answer_format,
    },
    StageName.GENERATE: lambda s, t: {
        "iteration": t,
        "provider": _provider(s),
        "paradigms": [p.dump() for p in s.generator.paradigms or []],
        "question_types": s.generator.question_types,
        "candidates": s.generator.candidates,
        "questions_per_image": s.generator.questions_per_image,
        "sampling": s.generator.sampling.dump(),
        "answer_format": s.answer_format,
        "shards": s.stage(StageName.GENERATE).shards,
    },
    StageName.SCORE: lambda s, t: {"shards": s.stage(StageName.SCORE).shards, "answer_format": s.answer_format},
    StageName.CURATE: lambda s, t: {
        "curation": s.curation.dump(),
        "review": next((review.sha256 for review in s.reviews if review.iteration == t), ""),
    },
    StageName.SFT: lambda s, t: {
        "init_from": s.policy.init_from,
        "training": s.policy.sft.dump(),
        "answer_format": s.answer_format,
    },
    StageName.GRPO: lambda s, t: {"grpo": s.policy.grpo.dump(), "answer_format": s.answer_format},
    StageName.PREFERENCES: lambda s, t: {
        "preferences": s.policy.preferences.dump(),
        "grades": s.reward_model.grades.dump(),
        "answer_format": s.answer_format,
    },
    StageName.EVALUATE: lambda s, t: {
        "iteration": t,
        "controls": s.evaluation.controls,
        "answer_format": s.answer_format,
    },
    StageName.REPORT: lambda s, t: {"cycle": "", "iteration": t, "settings": {"preset": str(s.preset), "seed": s.seed}},
}

_MODELS: dict[StageName, type[StageParameters]] = {
    StageName.PREPARE: PrepareParameters,
    StageName.REWARD: RewardParameters,
    StageName.GENERATE: GenerateParameters,
    StageName.SCORE: ScoreParameters,
    StageName.CURATE: CurateParameters,
    StageName.SFT: SFTParameters,
    StageName.GRPO: GRPOParameters,
    StageName.PREFERENCES: PreferencesParameters,
    StageName.EVALUATE: EvaluateParameters,
    StageName.REPORT: ReportParameters,
}


def parameters_model(stage: StageName) -> type[StageParameters]:
    """The model that `StageRequest.parameters` of this stage must satisfy."""
    return _MODELS[stage]
