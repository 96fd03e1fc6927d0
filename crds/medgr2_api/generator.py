"""The `generator` part of a cycle's spec: who proposes question, answer and rationale, and what that may cost.

A field whose value a preset owns is optional and has no default here: `presets.py` fills it in, and the model's
`Resolved` form, which follows it, requires it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from .cel_rules import Keyed, Rule
from .distillation import Distillation, ResolvedDistillation
from .model import ApiEnum, Model
from .plugin import PluginRef
from .server_address import is_external
from .types import Argument, Fraction, FreeForm, HttpURL, Positive
from .uris import SecretKeyRef
from .vllm_options import ALLOWED_OPTION

ModelName = Annotated[str, Field(min_length=1, max_length=512)]


class SchemaDialect(StrEnum):
    """In whose words a request says which form the answer must have."""

    RESPONSE_FORMAT = "response_format"
    """OpenAI's chat completions."""
    RESPONSE_SCHEMA = "responseSchema"
    """Gemini's generateContent."""
    JSON_SCHEMA = "JSON Schema"
    """As it is; a plugin puts it as its provider wants it."""


class GeneratorKind(Model):
    """A kind of generator. All that others have to know of a kind stands in its class; its client is `<Class>Client` in
    `medgr2_jobs.generate.providers.<kind>_client`."""

    kind: ClassVar[str]
    """Its field in `generator`."""
    asked: ClassVar[bool] = True
    """It is asked question by question, through a client; else our own code makes the candidates."""
    always_external: ClassVar[bool] = True
    """Images sent to it are data egress, whatever the spec says."""
    charges: ClassVar[bool] = True
    """Its questions cost money: `budget.generatorUSD` needs `prices`."""
    needs_key: ClassVar[bool] = False
    """Without `apiKeySecretRef` it is not asked."""
    needs_address: ClassVar[bool] = False
    """Without an address it cannot be asked."""
    beside_stage: ClassVar[bool] = False
    """The operator runs it beside each pod of stage generate, and tells the stage its address."""
    cluster_only: ClassVar[str] = ""
    """Why `medgr2 run` cannot have it, and what to do instead; empty: it can."""
    dialect: ClassVar[SchemaDialect] = SchemaDialect.RESPONSE_FORMAT
    names_images: ClassVar[bool] = False
    """An image is sent with its sha256 as its name."""

    @property
    def has_egress(self) -> bool:
        """Whether images sent to it leave the site (data egress)."""
        return self.always_external


class ReasoningEffort(StrEnum):
    """How hard a reasoning model thinks, in OpenAI's words."""

    NONE = "none"
    MINIMAL = "minimal"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Gemini(GeneratorKind):
    """Google's Gemini API."""

    kind = "gemini"
    needs_key = True
    dialect = SchemaDialect.RESPONSE_SCHEMA

    model: ModelName
    """Model id; `medgr2 doctor` asks the provider whether it exists."""
    api_key_secret_ref: SecretKeyRef
    """Where the API key lies. Never write the key itself here."""
    base_url: Annotated[HttpURL | None, Field(alias="baseURL")] = None
    """Address of a proxy that speaks Gemini's API; absent: Google's own. Images leave the site either way."""


class OpenAI(GeneratorKind):
    """Any server that speaks OpenAI's chat completions with images, such as vLLM."""

    kind = "openAI"
    always_external = False
    needs_address = True

    model: ModelName
    """Model id as the server names it."""
    base_url: Annotated[HttpURL, Field(alias="baseURL")]
    """Address of the API, such as http://vllm.models.svc:8000/v1; without user, password or query."""
    api_key_secret_ref: SecretKeyRef | None = None
    """Where the API key lies; absent: the server asks for none."""
    reasoning_effort: ReasoningEffort | None = None
    """How hard the model thinks (OpenAI's `reasoning_effort`); absent: as it does by itself."""
    chat_template_kwargs: FreeForm = {}
    """Arguments of the model's chat template, for servers that take them (vLLM, SGLang): `{enable_thinking: false}`."""
    external: bool | None = None
    """Whether the server is outside the site, so that images without `allowExternal` are not sent to it. Default:
    false for loopback, private addresses, single names, and names that end in .svc, .local, .internal or .lan; else
    true, also for an address that clients read in different ways."""

    @property
    def has_egress(self) -> bool:
        """As the spec says, else by its address."""
        return is_external(self.base_url) if self.external is None else self.external


class ResolvedOpenAI(OpenAI):
    """With what follows from its address."""

    external: bool


class VLLM(GeneratorKind):
    """A `vllm serve` that runs beside each generate pod and gets its GPUs."""

    kind = "vllm"
    always_external = False
    charges = False
    needs_address = True
    beside_stage = True
    cluster_only = (
        "a vLLM beside the stage needs Kubernetes: run `vllm serve` yourself and name it in generator.openAI.baseURL"
    )
    names_images = True

    model: Annotated[
        ModelName, Rule("!self.startsWith('-')", "must not begin with '-'", lambda name: not name.startswith("-"))
    ]
    """Model that the server loads: an hf:// URI or a path on the volume."""
    image: str = ""
    """Container image; empty: the operator's default."""
    args: Annotated[list[Annotated[Argument, ALLOWED_OPTION]], Field(max_length=100)] = []
    """Further arguments of `vllm serve`: options about speed, memory and precision."""
    chat_template_kwargs: FreeForm = {}
    """Arguments of the model's chat template: `{enable_thinking: false}` where the model thinks too much."""


class ScriptedErrors(ApiEnum):
    """What the scripted generator's wrong answers depend on."""

    BY_VALUE = "ByValue"
    """On what the image shows: a value is always taken for the same other one, and some values are never got right."""
    UNIFORM = "Uniform"
    """On nothing: as many errors of each kind, but they strike every value alike, and any wrong option is as likely."""


class Scripted(GeneratorKind):
    """A generator made of code, for phantom images only: its errors are known exactly."""

    kind = "scripted"
    asked = False
    always_external = False
    charges = False

    error_rate: Fraction | None = None
    """How often a systematic confusion strikes the values that the script confuses."""
    blind_spots: Fraction | None = None
    """Share of the values of each attribute that the script never gets right."""
    irrelevant_rate: Fraction | None = None
    """Share of candidates whose rationale is about something else."""
    incoherent_rate: Fraction | None = None
    """Share of candidates whose rationale has lost words."""
    errors: ScriptedErrors = ScriptedErrors.BY_VALUE
    """What its wrong answers depend on. ByValue: on what the image shows, as a model with wrong beliefs errs. Uniform:
    each type of question has as many errors of each kind as by value, but they are noise."""


class ResolvedScripted(Scripted):
    """With every rate."""

    error_rate: Fraction
    blind_spots: Fraction
    irrelevant_rate: Fraction
    incoherent_rate: Fraction


class PluginProvider(PluginRef, GeneratorKind):
    """A provider whose client comes from another package (entry points medgr2.providers)."""

    kind = "plugin"
    always_external = False
    dialect = SchemaDialect.JSON_SCHEMA

    model: ModelName
    """Model id; every candidate is marked with it."""
    base_url: Annotated[HttpURL | None, Field(alias="baseURL")] = None
    """Address, for plugins that want one; absent: it gets none. Unlike `options` it can be changed without repeating
    paid work."""
    api_key_secret_ref: SecretKeyRef | None = None
    """Where the API key lies; absent: the plugin gets none."""
    external: bool = True
    """Whether it sends images out of the site, so that those without `allowExternal` are not given to it."""

    @property
    def has_egress(self) -> bool:
        """As the spec says."""
        return self.external


KINDS: tuple[type[GeneratorKind], ...] = (Gemini, OpenAI, VLLM, Scripted, PluginProvider)
GENERATORS: dict[str, type[GeneratorKind]] = {kind.kind: kind for kind in KINDS}
"""By its field in `generator`."""


class Paradigm(ApiEnum):
    """Prompting paradigms of the paper."""

    DIRECT = "Direct"
    STEP_BY_STEP = "StepByStep"
    META_COGNITIVE = "MetaCognitive"


class WeightedParadigm(Model):
    """A prompting paradigm and its share."""

    name: Paradigm
    """Name of the prompting paradigm."""
    weight: Positive = 1.0
    """Weight of this one relative to the others in the list."""


class Sampling(Model):
    """Sampling settings with which the generator is asked."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Sampling temperature; 0 takes the likeliest token each time."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Probability mass that nucleus sampling draws from (top-p)."""
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """Largest number of tokens in one answer."""
    thinking_tokens: Annotated[int | None, Field(ge=0)] = None
    """Tokens that it may think with before the answer, beside `maxTokens`: Gemini's thinking budget (0: none, where the
    model can do without); any other server is given so many tokens more. Absent: the model thinks as it does by itself,
    within `maxTokens`."""

    @property
    def max_output_tokens(self) -> int:
        """Thinking and answer together: what is asked for, and charged, at most."""
        return self.max_tokens + (self.thinking_tokens or 0)


class MinUsable(Model):
    """When a provider's answers are too bad to go on paying for them."""

    fraction: Fraction = 0.05
    """Least share of answers that are triplets; 0: whatever comes is paid for."""
    after_answers: Annotated[int, Field(ge=1)] = 100
    """Answers, in each shard, before it is judged."""


class Prices(Model):
    """What the provider charges. Thinking counts as output."""

    input_usd: Annotated[float, Field(ge=0, alias="inputUSDPerMillionTokens")]
    """US dollars for a million tokens of prompt and image."""
    output_usd: Annotated[float, Field(ge=0, alias="outputUSDPerMillionTokens")]
    """US dollars for a million tokens of answer."""
    max_image_tokens: Annotated[int, Field(ge=1)] = 2500
    """Most tokens that the provider counts for an image: what a request may cost is reserved before it is sent."""


class RateLimit(Model):
    """What the provider allows, over all shards together."""

    requests_per_minute: Annotated[float | None, Field(gt=0)] = None
    """Requests a minute; absent: no limit of ours."""
    tokens_per_minute: Annotated[float | None, Field(gt=0)] = None
    """Tokens a minute, in and out; absent: no limit of ours."""


Paradigms = Annotated[list[WeightedParadigm], Field(min_length=1, max_length=3), Keyed(("name",))]
QuestionTypes = Annotated[list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=32)]
#: The kinds of question that the prompts say more about than their name; `priors.yaml` of the jobs has the words.
KNOWN_QUESTION_TYPES = ("Diagnosis", "Procedural", "Descriptive", "Modality", "Anatomy", "Grading")
CustomQuestionTypes = Annotated[
    dict[str, Annotated[str, Field(min_length=1, max_length=1000)]],
    Field(max_length=32),
]
Candidates = Annotated[int, Field(ge=0)]
QuestionsPerImage = Annotated[int, Field(ge=1, le=64)]
Concurrency = Annotated[int, Field(ge=1, le=4096)]


class Generator(Model):
    """Who proposes question, answer and rationale. Exactly one kind of generator must be given."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"[{', '.join(f'has(self.{name})' for name in GENERATORS)}].exists_one(given, given)",
            f"exactly one of {' and '.join([', '.join([*GENERATORS][:-1]), [*GENERATORS][-1]])} must be given",
            lambda g: len(g.given) == 1,
        ),
    )

    gemini: Gemini | None = None
    """Ask a model of Google's Gemini API."""
    openai: Annotated[OpenAI | None, Field(alias="openAI")] = None
    """Ask a server that speaks OpenAI's chat API."""
    vllm: VLLM | None = None
    """Run a vLLM server as a sidecar of the stage, and ask it."""
    scripted: Scripted | None = None
    """Use the scripted generator (phantom sources only)."""
    plugin: PluginProvider | None = None
    """Use a client from another package."""
    paradigms: Paradigms | None = None
    """Which prompting paradigms, and how often."""
    question_types: QuestionTypes | None = None
    """Kinds of question to ask for: Diagnosis, Procedural, Descriptive, Modality, Anatomy, Grading, or names of
    `customQuestionTypes`."""
    custom_question_types: CustomQuestionTypes = {}
    """Kinds of question of your own, by name: what such a question asks for, as the prompt says it."""
    candidates: Candidates | None = None
    """Number of candidates to generate in each iteration."""
    questions_per_image: QuestionsPerImage | None = None
    """Number of questions that are asked about each image."""
    sampling: Sampling = Sampling()
    """Sampling settings with which the generator is asked."""
    min_usable: MinUsable = MinUsable()
    """The stage stops when fewer of the answers can be used."""
    concurrency: Concurrency | None = None
    """Requests in flight at most, in each shard; fewer while the provider says that it has enough."""
    prices: Prices | None = None
    """What the provider charges; needed for `budget.generatorUSD`."""
    rate_limit: RateLimit = RateLimit()
    """Largest rate of requests and tokens that the provider allows."""
    distillation: Distillation | None = None
    """A generator of one's own, which learns from what the loop made and takes tasks over; absent: none."""

    @property
    def given(self) -> list[GeneratorKind]:
        """The kinds that the spec names."""
        values = (getattr(self, name) for name in type(self).model_fields)
        return [value for value in values if isinstance(value, GeneratorKind)]

    @property
    def chosen(self) -> GeneratorKind:
        """The one that the spec names."""
        return self.given[0]

    @property
    def external(self) -> bool:
        """Whether images sent to it leave the site (data egress)."""
        return self.chosen.has_egress


class ResolvedGenerator(Generator):
    """With everything that the presets own."""

    openai: Annotated[ResolvedOpenAI | None, Field(alias="openAI")] = None
    scripted: ResolvedScripted | None = None
    paradigms: Paradigms
    question_types: QuestionTypes
    candidates: Candidates
    questions_per_image: QuestionsPerImage
    concurrency: Concurrency
    distillation: ResolvedDistillation | None = None
