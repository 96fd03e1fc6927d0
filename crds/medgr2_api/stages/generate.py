"""Stage generate: asks the generator for triplets of question, answer and rationale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from medgr2_api.data import Benchmark, ResolvedSource
from medgr2_api.distillation import Attempts, Share
from medgr2_api.generator import (
    GENERATORS,
    GeneratorKind,
    MinUsable,
    Prices,
    RateLimit,
    ReasoningEffort,
    ResolvedGenerator,
    ResolvedScripted,
    Sampling,
    WeightedParadigm,
)
from medgr2_api.hashing import NOT_HASHED, HashedAs
from medgr2_api.model import Model
from medgr2_api.plugin import PluginRef
from medgr2_api.server_address import is_overheard
from medgr2_api.training_spec import AnswerFormat
from medgr2_api.types import FreeForm
from medgr2_api.uris import SecretKeyRef
from medgr2_api.vllm_options import answering

from .definition import Iterations, Of, Read, Source, StageDefinition, StageParameters, Wait

if TYPE_CHECKING:
    from medgr2_api.cycle import ResolvedSpec


def _known(kind: str) -> str:
    if kind not in GENERATORS:
        raise ValueError(f"there is no generator {kind!r}: this version has {', '.join(GENERATORS)}")
    return kind


class Provider(Model):
    """Who generates, and how to reach it."""

    kind: Annotated[str, AfterValidator(_known)]
    """One of `generator.GENERATORS`."""
    model: str = ""
    """Model id; empty for the scripted generator."""
    scripted: ResolvedScripted | None = None
    """Error rates of the scripted generator."""
    plugin: PluginRef | None = None
    """Where its client comes from, when it is of another package."""
    reasoning_effort: ReasoningEffort | None = None
    """How hard it thinks."""
    chat_template_kwargs: FreeForm = {}
    """Arguments of its chat template."""
    args: Annotated[list[str], HashedAs(answering)] = []
    """Arguments of the vLLM beside the stage."""
    base_url: Annotated[str, NOT_HASHED] = ""
    """Address of its server."""
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

    @property
    def about(self) -> type[GeneratorKind]:
        """What is known of its kind."""
        return GENERATORS[self.kind]

    @property
    def has_egress(self) -> bool:
        """Whether images sent to it leave the site (data egress)."""
        return self.external or self.about.always_external

    @property
    def overheard(self) -> str:
        """What is wrong, and what to do, where its key would cross networks of others unencrypted; else empty."""
        if self.api_key_secret_ref is None or not self.has_egress or not is_overheard(self.base_url):
            return ""
        inside = "" if self.about.always_external else ", or say external: false if the server is on site"
        return f"the API key would cross networks of others unencrypted: use https{inside}"

    @property
    def where(self) -> str:
        """What messages call it."""
        return self.base_url or (f"plugin {self.plugin.name}" if self.plugin else self.kind)


class StudentUse(Model):
    """What a student of the loop is asked, once there is one."""

    share: Share
    """Share of the tasks, by hash of the task."""
    max_attempts: Attempts
    """How often a task is asked at most."""


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
    custom_question_types: dict[str, str] = {}
    """Of these, what those ask for that the prompts do not know."""
    candidates: int
    """Candidates in this iteration, over all shards."""
    questions_per_image: int
    """Number of questions that are asked about each image."""
    sampling: Sampling
    """Sampling settings with which the generator is asked."""
    min_usable: Annotated[MinUsable, NOT_HASHED] = MinUsable()
    """When too few answers can be used to go on."""
    student: StudentUse | None = None
    """What a promoted student is asked; absent: nothing, there is none, as in the first iteration."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""
    shards: int
    """Parts that the work is divided into."""
    sources: Annotated[list[ResolvedSource], NOT_HASHED] = []
    """`data.sources` as they are when the stage starts: an image leaves the site only where these and the prepared
    table allow it. What they said when the images were read is part of prepare's hash."""
    benchmarks: Annotated[list[Benchmark], NOT_HASHED] = []
    """`data.benchmarks` as they are when the stage starts: none of their images leaves the site."""


def _build(source: Source) -> GenerateParameters:
    return GenerateParameters(
        seed=source.seed,
        iteration=source.iteration,
        provider=Provider.model_validate(_provider(source.spec)),
        paradigms=source.spec.generator.paradigms,
        question_types=source.spec.generator.question_types,
        custom_question_types=_custom(source.spec.generator),
        candidates=source.spec.generator.candidates,
        questions_per_image=source.spec.generator.questions_per_image,
        sampling=source.spec.generator.sampling,
        min_usable=source.spec.generator.min_usable,
        student=_student(source),
        answer_format=source.spec.answer_format,
        shards=source.spec.stage("generate").shards,
        sources=list(source.spec.data.sources),
        benchmarks=list(source.spec.data.benchmarks),
    )


def _student(source: Source) -> StudentUse | None:
    """None in the first iteration, where nobody has learnt yet: who adds a student later pays for no question again."""
    taught = source.spec.generator.distillation
    if taught is None or source.iteration == 1:
        return None
    return StudentUse(share=taught.share, max_attempts=taught.max_attempts)


def _custom(generator: ResolvedGenerator) -> dict[str, str]:
    """The user's own kinds of question, less those that are not asked for."""
    asked = generator.question_types
    return {name: asks for name, asks in generator.custom_question_types.items() if name in asked}


#: Fields of a kind of generator that a provider has under the same name.
_AS_IN_SPEC = ("base_url", "api_key_secret_ref", "reasoning_effort", "chat_template_kwargs", "args")


def _provider(spec: ResolvedSpec) -> dict[str, Any]:
    generator, chosen = spec.generator, spec.generator.chosen
    if not chosen.asked:
        return {"kind": chosen.kind, chosen.kind: chosen.dump(), "concurrency": 1}
    access = {name: getattr(chosen, name, None) for name in _AS_IN_SPEC}
    plugin = {name: getattr(chosen, name) for name in PluginRef.model_fields} if isinstance(chosen, PluginRef) else None
    return {
        "kind": chosen.kind,
        "model": getattr(chosen, "model", ""),
        **{name: value for name, value in access.items() if value},
        "plugin": plugin,
        "concurrency": generator.concurrency,
        "external": generator.external,
        "prices": generator.prices.dump() if generator.prices else None,
        "rate_limit": generator.rate_limit.dump(),
    }


GENERATE = StageDefinition(
    name="generate",
    sentence="Asks the generator for candidates: question, options, answer and rationale of an image, with outcome and"
    " cost ([generation.md](generation.md)).",
    parameters=GenerateParameters,
    build=_build,
    spec_paths={
        "paradigms": "generator.paradigms",
        "questionTypes": "generator.questionTypes",
        "candidates": "generator.candidates",
        "questionsPerImage": "generator.questionsPerImage",
        "sampling": "generator.sampling",
        "minUsable": "generator.minUsable",
        "provider": "generator",
        "student": "generator.distillation",
        "shards": "stages[generate].shards",
    },
    iterations=Iterations.LOOP,
    reads=(
        Read("prepare", "prepare", Of.FIRST),
        Read("student", "distill", Of.NEWEST, required=False),
    ),
    # it runs at most one iteration ahead, and not past an evaluation that may stop the loop
    waits=(Wait("curate"), Wait("measure", when=lambda spec: spec.early_stopping is not None)),
    publishes=("candidates.parquet",),
    may_publish=("truth.parquet",),
    code_version=2,  # prompts with priors; repair; reasons and costs in every row
    sharded=True,
    pays=True,
)
