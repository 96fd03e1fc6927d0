"""The parts of a cycle's spec that name models and how they learn: generator, reward model, policy.

A field whose value a preset owns is optional and has no default here: `presets.py` fills it in.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from .base import ApiEnum, Argument, Fraction, FreeForm, HttpURL, Model, RelativePath
from .curation import Curation as Curation
from .curation import SelectionStrategy as SelectionStrategy
from .rules import Keyed, Rule

ModelName = Annotated[str, Field(min_length=1, max_length=512)]
Positive = Annotated[float, Field(gt=0)]


class SecretKeyRef(Model):
    """One key of a Secret in the cycle's namespace (locally: a file `<secrets-dir>/<name>/<key>`)."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the Secret."""
    key: Annotated[str, Field(min_length=1, max_length=253)]
    """Key inside the Secret."""


class Gemini(Model):
    """Google's Gemini API."""

    model: ModelName
    """Model id; `medgr2 doctor` asks the provider whether it exists."""
    api_key_secret_ref: SecretKeyRef
    """Where the API key lies. Never write the key itself here."""


class OpenAI(Model):
    """Any server that speaks OpenAI's chat completions with images, such as vLLM."""

    model: ModelName
    """Model id as the server names it."""
    base_url: Annotated[HttpURL, Field(alias="baseURL")]
    """Address of the API, such as http://vllm.models.svc:8000/v1; without user, password or query."""
    api_key_secret_ref: SecretKeyRef | None = None
    """Where the API key lies; absent: the server asks for none."""


class VLLM(Model):
    """A `vllm serve` that runs beside each generate pod and gets its GPUs."""

    model: ModelName
    """Model to serve."""
    image: str = ""
    """Container image; empty: the operator's default."""
    args: Annotated[list[Argument], Field(max_length=128)] = []
    """Further arguments of `vllm serve`."""


class Scripted(Model):
    """A generator made of code, for phantom images only: its errors are known exactly."""

    error_rate: Annotated[Fraction | None, Field()] = None
    """How often a systematic confusion strikes the values that the script confuses."""
    blind_spots: Annotated[Fraction | None, Field()] = None
    """Share of the values of each attribute that the script never gets right."""
    irrelevant_rate: Annotated[Fraction | None, Field()] = None
    """Share of candidates whose rationale is about something else."""
    incoherent_rate: Annotated[Fraction | None, Field()] = None
    """Share of candidates whose rationale has lost words."""


class Paradigm(ApiEnum):
    """Prompting paradigms of the paper."""

    DIRECT = "Direct"
    STEP_BY_STEP = "StepByStep"
    META_COGNITIVE = "MetaCognitive"


class WeightedParadigm(Model):
    """A prompting paradigm and its share."""

    name: Paradigm
    """Which paradigm."""
    weight: Positive = 1.0
    """Share relative to the others."""


class Sampling(Model):
    """How the generator samples."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Sampling temperature; 0: greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus sampling."""
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """Longest answer, in tokens."""


class Distillation(Model):
    """Fine-tune an open generator on the kept triplets. Absent: off."""

    base_model: ModelName
    """Model to fine-tune."""
    min_acceptance_delta: float = -0.02
    """The new generator replaces the old one only if its acceptance on a fixed probe set changes by at least this."""


class Generator(Model):
    """Who proposes question, answer and rationale. Exactly one of gemini, openAI, vllm, scripted."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "[has(self.gemini), has(self.openAI), has(self.vllm), has(self.scripted)].exists_one(given, given)",
            "exactly one of gemini, openAI, vllm and scripted must be given",
            lambda g: [g.gemini, g.openai, g.vllm, g.scripted].count(None) == 3,
        ),
    )

    gemini: Gemini | None = None
    """Use Google's Gemini API."""
    openai: Annotated[OpenAI | None, Field(alias="openAI")] = None
    """Use an OpenAI-compatible server."""
    vllm: VLLM | None = None
    """Run vLLM beside the stage."""
    scripted: Scripted | None = None
    """Use the scripted generator (phantom sources only)."""
    paradigms: Annotated[list[WeightedParadigm], Field(min_length=1, max_length=3), Keyed(("name",))] | None = None
    """Which prompting paradigms, and how often."""
    question_types: Annotated[list[Annotated[str, Field(max_length=64)]] | None, Field(min_length=1, max_length=32)] = (
        None
    )
    """Kinds of question to ask for."""
    candidates: Annotated[int | None, Field(ge=0)] = None
    """Candidates per iteration."""
    questions_per_image: Annotated[int | None, Field(ge=1, le=64)] = None
    """Questions per image."""
    sampling: Sampling = Sampling()
    """How the generator samples."""
    concurrency: Annotated[int | None, Field(ge=1, le=4096)] = None
    """Requests in flight at most."""
    distillation: Distillation | None = None
    """Fine-tune the generator on what was kept."""


class LoRA(Model):
    """Low-rank adapters instead of full fine-tuning."""

    rank: Annotated[int, Field(ge=0, le=1024)]
    """Rank r of the adapters; 0: full fine-tuning, whatever the preset says."""
    alpha: Annotated[float | None, Field(gt=0)] = None
    """Scale; default: twice the rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters."""


class RewardHead(ApiEnum):
    """What the scalar head of the reward model sees (DECISIONS 16)."""

    LAST_TOKEN = "LastToken"
    LAST_TOKEN_AND_LIKELIHOOD = "LastTokenAndLikelihood"


class Grades(Model):
    """Target scores of the four grades and of the image mismatch (paper, section on the reward model)."""

    original: float = 10.0
    """Text as an expert wrote it."""
    perturbed: float = 6.0
    """Lightly changed: synonyms."""
    incoherent: float = 0.0
    """Phrases deleted."""
    irrelevant: float = -6.0
    """Irrelevant, hallucinated, or wrong."""
    image_mismatch: float = -6.0
    """Right text beside the wrong image."""


class Promotion(Model):
    """A retrained reward model replaces the old one only if it passes all of these on held-out grades."""

    min_spearman: Annotated[float | None, Field(ge=-1, le=1)] = None
    """Least rank correlation with the grades."""
    min_pairwise_accuracy: Fraction | None = None
    """Least share of same-question pairs put in the right order."""
    min_image_sensitivity: Fraction | None = None
    """Least share of right texts that score higher with their own image than with another."""
    max_regression: Annotated[float | None, Field(ge=0)] = None
    """How much any of the three may fall below the old model's."""


class RewardTraining(Model):
    """How the reward model learns."""

    lora: LoRA | None = None
    """Adapters; absent: full fine-tuning."""
    learning_rate: Positive | None = None
    """Peak learning rate."""
    num_epochs: Positive | None = None
    """Passes over the data."""
    trainer: FreeForm = {}
    """Further transformers.TrainingArguments, less those the contract owns."""
    retrain_trainer: FreeForm = {}
    """Changes to `trainer` for the retraining on preferences in each iteration."""


class RewardModel(Model):
    """R: scores a triplet in [-6, 10]."""

    base_model: ModelName
    """Model to start from: a folder on the volume, or builtin://tiny-qwen2.5-vl."""
    checkpoint: RelativePath | None = None
    """Bring your own R⁽⁰⁾: folder on the volume; the first training is then left out."""
    head: RewardHead | None = None
    """What the scalar head sees."""
    grades: Grades = Grades()
    """Target scores."""
    mismatches_per_item: Annotated[int | None, Field(ge=0, le=16)] = None
    """How many wrong-image and wrong-answer rows each gold item gets."""
    replay_fraction: Annotated[Fraction | None, Field(lt=1)] = None
    """Share of graded rows in each retraining, beside the preferences."""
    promotion: Promotion = Promotion()
    """When a retrained model is taken over."""
    training: RewardTraining = RewardTraining()
    """How it learns."""


class InitFrom(ApiEnum):
    """Where each iteration's SFT starts."""

    BASE = "Base"
    PREVIOUS = "Previous"


class Training(Model):
    """Supervised fine-tuning on D_gen."""

    lora: LoRA | None = None
    """Adapters; absent: full fine-tuning."""
    learning_rate: Positive | None = None
    """Peak learning rate."""
    num_epochs: Positive | None = None
    """Passes over the data."""
    trainer: FreeForm = {}
    """Further trl.SFTConfig fields, less those the contract owns."""


class RewardTermType(ApiEnum):
    """Terms of GRPO's reward."""

    REWARD_MODEL = "RewardModel"
    ANSWER_MATCH = "AnswerMatch"


class Normalization(ApiEnum):
    """How a term is scaled before it is weighted (DECISIONS 1)."""

    MIN_MAX = "MinMax"
    NONE = "None"


class RewardTerm(Model):
    """One term of GRPO's reward."""

    type: RewardTermType
    """RewardModel: R(I, q, a'). AnswerMatch: 1 where the answer equals a trusted one."""
    weight: float
    """Weight of the term (paper: α = 0.8 for R, β = 0.2 for the match)."""
    normalization: Normalization = Normalization.MIN_MAX
    """MinMax: (R + 6) / 16; None: raw."""


class PromptSource(ApiEnum):
    """Which prompts GRPO sees (DECISIONS 20)."""

    CANDIDATES = "Candidates"
    KEPT = "Kept"


class GRPO(Model):
    """Reinforcement learning with group-relative advantages."""

    rewards: Annotated[list[RewardTerm], Field(min_length=1, max_length=2), Keyed(("type",))] | None = None
    """Terms of the reward."""
    prompt_source: PromptSource | None = None
    """Candidates: questions of kept and rejected candidates and of the seed; the match term counts only where the
    answer is trusted. Kept: only what the filter kept (the paper)."""
    seed_fraction: Annotated[Fraction | None, Field(lt=1)] = None
    """Least share of prompts that are seed questions with gold answers, repeated if there are too few of them."""
    num_generations: Annotated[int | None, Field(ge=2, le=256)] = None
    """Samples per prompt: the group size G."""
    kl_coefficient: Annotated[float | None, Field(ge=0)] = None
    """Weight of the KL term (TRL's beta)."""
    learning_rate: Positive | None = None
    """Peak learning rate."""
    num_epochs: Positive | None = None
    """Passes over the prompts."""
    lora: LoRA | None = None
    """Adapters; absent: full fine-tuning."""
    trainer: FreeForm = {}
    """Further trl.GRPOConfig fields, less those the contract owns."""


class Preferences(Model):
    """The policy's own answers, graded, for the next reward model."""

    prompts: Annotated[int | None, Field(ge=1)] = None
    """How many prompts."""
    samples_per_prompt: Annotated[int | None, Field(ge=1, le=256)] = None
    """Answers per prompt."""
    temperature: Annotated[float | None, Field(gt=0, le=2)] = None
    """Sampling temperature."""
    seed_fraction: Fraction | None = None
    """Least share of prompts whose answer is gold; on the others R would only learn its own filter's errors."""


class Policy(Model):
    """π: the model the user wants."""

    base_model: ModelName
    """Model to start from: a folder on the volume, or builtin://tiny-qwen2.5-vl."""
    init_from: InitFrom = InitFrom.BASE
    """Where each iteration's SFT starts: the base model, or the previous iteration's policy."""
    sft: Training = Training()
    """Supervised fine-tuning."""
    grpo: GRPO = GRPO()
    """Reinforcement learning."""
    preferences: Preferences = Preferences()
    """Sampling for the next reward model."""


class Control(ApiEnum):
    """What else is measured, so that a score can be believed (DECISIONS 9)."""

    BLANK_IMAGE = "BlankImage"
    SHUFFLED_IMAGE = "ShuffledImage"
    OPTIONS_ONLY = "OptionsOnly"
    OPTION_PRIOR = "OptionPrior"


class Evaluation(Model):
    """How checkpoints are measured."""

    controls: Annotated[list[Control], Field(max_length=4), Keyed()] = list(Control)
    """Controls beside the real measurement; chance is always shown."""
