"""Stage generate: asks the generator for triplets of question, answer and rationale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from medgr2_api.generator import Prices, RateLimit, Sampling, Scripted, WeightedParadigm
from medgr2_api.hashing import NOT_HASHED
from medgr2_api.model import Model
from medgr2_api.training_spec import AnswerFormat
from medgr2_api.uris import SecretKeyRef

from .definition import Iterations, Of, Read, Source, StageDefinition, StageParameters, Wait

if TYPE_CHECKING:
    from medgr2_api.cycle import CycleSpec


class Provider(Model):
    """Who generates, and how to reach it."""

    kind: str
    """scripted, openAI, gemini or vllm."""
    model: str = ""
    """Model id; empty for the scripted generator."""
    scripted: Scripted | None = None
    """Error rates of the scripted generator."""
    base_url: Annotated[str, NOT_HASHED] = ""
    """Address of an OpenAI-compatible server."""
    api_key_secret_ref: Annotated[SecretKeyRef | None, NOT_HASHED] = None
    """Where the API key lies."""
    concurrency: Annotated[int, NOT_HASHED] = 1
    """Requests in flight at most, in each shard."""
    external: bool = False
    """Images without `allowExternal` are not sent to it."""
    prices: Annotated[Prices | None, NOT_HASHED] = None
    """What it charges."""
    rate_limit: Annotated[RateLimit, NOT_HASHED] = RateLimit()
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


def _build(source: Source) -> dict[str, Any]:
    return {
        "iteration": source.iteration,
        "provider": _provider(source.spec),
        "paradigms": [paradigm.dump() for paradigm in source.spec.generator.paradigms or []],
        "question_types": source.spec.generator.question_types,
        "candidates": source.spec.generator.candidates,
        "questions_per_image": source.spec.generator.questions_per_image,
        "sampling": source.spec.generator.sampling.dump(),
        "answer_format": source.spec.answer_format,
        "shards": source.spec.stage("generate").shards,
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


GENERATE = StageDefinition(
    name="generate",
    sentence="Asks the generator for candidates: question, options, answer and rationale for an image.",
    parameters=GenerateParameters,
    build=_build,
    spec_paths={
        "paradigms": "generator.paradigms",
        "questionTypes": "generator.questionTypes",
        "candidates": "generator.candidates",
        "questionsPerImage": "generator.questionsPerImage",
        "sampling": "generator.sampling",
        "provider": "generator",
        "shards": "stages[generate].shards",
    },
    iterations=Iterations.LOOP,
    reads=(Read("prepare", "prepare", Of.FIRST),),
    # it runs at most one iteration ahead, and not past an evaluation that may stop the loop
    waits=(Wait("curate"), Wait("evaluate", when=lambda spec: spec.early_stopping is not None)),
    publishes=("candidates.parquet",),
    may_publish=("truth.parquet",),
    code_version=2,  # prompts with priors; repair; reasons and costs in every row
    sharded=True,
    pays=True,
)
