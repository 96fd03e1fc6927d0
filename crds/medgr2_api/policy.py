"""The part of a cycle's spec that describes the policy π: fine-tuning, GRPO, which checkpoint goes on, preferences.

A field whose value a preset owns is optional and has no default here: `presets.py` fills it in, and the model's
`Resolved` form, which follows it, requires it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from .cel_rules import Rule
from .engine import IN_PROCESS, Engine
from .hashing import Since
from .model import ApiEnum, Model
from .plugin import PluginRef
from .training_spec import InitFrom, LoRA, ModelLoading, ResolvedLoRA, ResolvedTraining, Training
from .types import Fraction, FreeForm, NonNegative, Positive, ProperFraction
from .uris import ModelURI


class RewardTermType(ApiEnum):
    """Terms of GRPO's reward."""

    REWARD_MODEL = "RewardModel"
    ANSWER_MATCH = "AnswerMatch"
    PLUGIN = "Plugin"


class Normalization(ApiEnum):
    """How a term is scaled before it is weighted."""

    MIN_MAX = "MinMax"
    NONE = "None"


class RewardTerm(Model):
    """One term of GRPO's reward, with its weight."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(self.type == 'Plugin') == has(self.plugin)",
            "'plugin' goes with type Plugin: give both or neither",
            lambda t: (t.type is RewardTermType.PLUGIN) == (t.plugin is not None),
        ),
    )

    type: RewardTermType
    """RewardModel: R(I, q, a'). AnswerMatch: 1 where the answer equals a trusted one. Plugin: of another package."""
    weight: float
    """Weight of the term (paper: α = 0.8 for R, β = 0.2 for the match)."""
    normalization: Normalization = Normalization.MIN_MAX
    """Of RewardModel. MinMax: (R + 6) / 16; None: raw."""
    plugin: PluginRef | None = None
    """The term of another package (entry points medgr2.rewards)."""


#: Several terms may be plugins, so the type alone is no key of the list.
_ONCE = Rule(
    "self.all(t, self.exists_one(u, u.type == t.type &&"
    " (has(t.plugin) ? t.plugin.name : '') == (has(u.plugin) ? u.plugin.name : '')))",
    "a term is named twice",
    lambda terms: len({(t.type, t.plugin and t.plugin.name) for t in terms}) == len(terms),
)


RewardTerms = Annotated[list[RewardTerm], Field(min_length=1, max_length=8), _ONCE]


class PromptSource(ApiEnum):
    """Which prompts GRPO sees."""

    CANDIDATES = "Candidates"
    KEPT = "Kept"


GroupSize = Annotated[int, Field(ge=2, le=256)]


ResampleGroups = Annotated[int, Field(ge=0, le=10)]


PromptsPerStep = Annotated[int, Field(ge=0, le=65_536)]


class WhenPolicyBeatsReward(ApiEnum):
    """What GRPO does where the policy answers the validation questions better than the reward model that would judge
    it (docs/decisions.md, 23)."""

    SKIP = "Skip"
    """Nothing is trained: the policy of SFT goes on."""
    TRUSTED_ONLY = "TrustedOnly"
    """GRPO learns from the trusted answers alone, without the reward model."""
    TRAIN = "Train"
    """GRPO is trained all the same; nothing is compared before (the paper)."""


class GRPO(Model):
    """Reinforcement learning with group-relative advantages."""

    rewards: RewardTerms | None = None
    """Terms of the reward, which are added by their weights."""
    prompt_source: PromptSource | None = None
    """Candidates: questions of kept and rejected candidates and of the seed; the match term counts only where the
    answer is trusted. Kept: only what the filter kept (the paper)."""
    seed_fraction: ProperFraction | None = None
    """Least share of prompts that are seed questions with gold answers, repeated if there are too few of them."""
    when_policy_beats_reward: WhenPolicyBeatsReward | None = None
    """Skip, TrustedOnly or Train: what happens where the policy is right more often than the reward model on the
    validation questions (macro accuracy). A policy learns from a worse judge to be like it."""
    num_generations: GroupSize | None = None
    """Samples per prompt: the group size G."""
    prompts_per_step: PromptsPerStep | None = None
    """Prompts of an optimizer step, over all processes; each has a group of samples. 0: what the trainer's options come
    to, one prompt in each process where they say nothing."""
    resample_groups: ResampleGroups | None = None
    """How often a group whose completions all got the same reward is sampled anew before the step: it would teach
    nothing. Only where a vLLM samples."""
    kl_coefficient: NonNegative | None = None
    """Weight of the KL term (TRL's beta)."""
    learning_rate: Positive | None = None
    """Peak learning rate of the schedule; default: 1e-5 with adapters, 1e-6 without."""
    num_epochs: Positive | None = None
    """Number of passes over the prompts."""
    lora: LoRA | None = None
    """LoRA adapters to train, which are what is published, beside the base model; rank 0: all weights are fine-tuned.
    Absent: as the preset says."""
    trainer: FreeForm = {}
    """Further trl.GRPOConfig fields, less those the contract owns."""


class ResolvedGRPO(GRPO):
    """With everything that the presets own."""

    rewards: RewardTerms
    prompt_source: PromptSource
    seed_fraction: ProperFraction
    when_policy_beats_reward: Annotated[WhenPolicyBeatsReward, Since("Train")]
    num_generations: GroupSize
    prompts_per_step: Annotated[PromptsPerStep, Since(0)]
    resample_groups: Annotated[ResampleGroups, Since(0)]
    kl_coefficient: NonNegative
    learning_rate: Positive
    num_epochs: Positive
    lora: ResolvedLoRA


Samples = Annotated[int, Field(ge=1, le=256)]


Temperature = Annotated[float, Field(gt=0, le=2)]


TopP = Annotated[float, Field(gt=0, le=1)]


class Preferences(Model):
    """The policy's own answers, graded, for the next reward model."""

    prompts: Annotated[int, Field(ge=1)] | None = None
    """Number of prompts that preferences are sampled for."""
    samples_per_prompt: Samples | None = None
    """Number of answers that are sampled for each prompt."""
    temperature: Temperature | None = None
    """Temperature at which the answers are sampled."""
    top_p: TopP | None = None
    """Nucleus sampling; 1: from all tokens."""
    seed_fraction: Fraction | None = None
    """Least share of prompts whose answer is gold; on the others R would only learn its own filter's errors."""


class ResolvedPreferences(Preferences):
    """With everything that the presets own."""

    prompts: Annotated[int, Field(ge=1)]
    samples_per_prompt: Samples
    temperature: Temperature
    top_p: Annotated[TopP, Since(1.0)]
    seed_fraction: Fraction


class PolicyRelease(ApiEnum):
    """Which of an iteration's checkpoints goes on."""

    BEST = "Best"
    LAST = "Last"


class Policy(Model):
    """π, the policy: the vision-language model that the loop trains."""

    base_model: ModelURI
    """Model to start from: a folder on the volume, an id of the Hugging Face hub (fetched and pinned by prepare), a URI
    (hf://org/name@revision, s3://…, file:///…), or builtin://tiny-qwen2.5-vl."""
    init_from: InitFrom = InitFrom.BASE
    """Where each iteration's SFT starts: the base model, or the previous iteration's policy."""
    loading: ModelLoading = ModelLoading()
    """How sft and grpo hold the model that they train: precision, attention, quantization, what is frozen."""
    sft: Training = Training()
    """Supervised fine-tuning of the policy on D_gen."""
    grpo: GRPO = GRPO()
    """Reinforcement learning of the policy by GRPO."""
    release: PolicyRelease | None = None
    """Which of an iteration's checkpoints the next stages read. Best: that of GRPO, unless on the validation questions
    it is worse than that of SFT (macro accuracy). Last: that of GRPO, whatever validation says (the paper)."""
    preferences: Preferences = Preferences()
    """Sampling for the next reward model."""
    engine: Engine = IN_PROCESS
    """Who answers where the stages relabel, preferences and evaluate ask it, and who samples for grpo."""


class ResolvedPolicy(Policy):
    """With everything that the presets own."""

    sft: ResolvedTraining
    grpo: ResolvedGRPO
    release: Annotated[PolicyRelease, Since("Last")]
    preferences: ResolvedPreferences
