"""The parts of a cycle's spec that name models and how they learn: reward model and policy.

A field whose value a preset owns is optional and has no default here: `presets.py` fills it in, and the model's
`Resolved` form, which follows it, requires it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .cel_rules import Keyed, Rule
from .hashing import Since
from .model import ApiEnum, Model
from .plugin import PluginRef
from .types import Fraction, FreeForm, NonNegative, Positive, ProperFraction
from .uris import ModelURI


class LoRA(Model):
    """Low-rank adapters instead of full fine-tuning."""

    rank: Annotated[int, Field(ge=0, le=1024)]
    """Rank r of the adapters; 0: full fine-tuning, whatever the preset says."""
    alpha: Positive | None = None
    """Scale of the adapters' update; default: twice the rank."""
    dropout: ProperFraction = 0.0
    """Dropout probability on the adapters' input."""


class FullFineTuning(LoRA):
    """No adapters: every weight learns."""

    rank: Literal[0]


class Adapters(LoRA):
    """The weights stay; adapters beside them learn."""

    rank: Annotated[int, Field(ge=1, le=1024)]
    alpha: Positive


ResolvedLoRA = FullFineTuning | Adapters


class RewardHead(ApiEnum):
    """What the scalar head of the reward model sees."""

    LAST_TOKEN = "LastToken"
    LAST_TOKEN_AND_LIKELIHOOD = "LastTokenAndLikelihood"


class Grades(Model):
    """Target scores of the four grades and of the image mismatch (paper, section on the reward model)."""

    original: float = 10.0
    """Target score of a text as an expert wrote it."""
    perturbed: float = 6.0
    """Target score of a text in which words were replaced by synonyms."""
    incoherent: float = 0.0
    """Target score of a text from which phrases were deleted."""
    irrelevant: float = -6.0
    """Target score of a text that is irrelevant, hallucinated or wrong."""
    image_mismatch: float = -6.0
    """Right text beside the wrong image."""


class InitFrom(ApiEnum):
    """Where the training of each iteration starts: at the base model, or at the model of the iteration before."""

    BASE = "Base"
    PREVIOUS = "Previous"


class RetrainOn(ApiEnum):
    """What the reward model is retrained on, beside D_grade."""

    CROSS_EXAMINED = "CrossExamined"
    """The candidates' questions whose answer the witnesses settle (stage relabel), of all iterations so far."""
    POLICY_ANSWERS = "PolicyAnswers"
    """The policy's own answers, graded by rule: D_pref, as in the paper (stage preferences)."""


Correlation = Annotated[float, Field(ge=-1, le=1)]


class Promotion(Model):
    """A retrained reward model replaces the one in force only if it passes all of these: least values on held-out
    grades, and how it answers the validation questions, compared with the one in force."""

    min_spearman: Correlation | None = None
    """Least rank correlation with the grades."""
    min_pairwise_accuracy: Fraction | None = None
    """Least share of same-question pairs put in the right order."""
    min_image_sensitivity: Fraction | None = None
    """Least share of right texts that score higher with their own image than with another."""
    max_mean_absolute_error: NonNegative | None = None
    """Largest mean absolute error of its scores, in points of R."""
    min_auroc_gain: Correlation | None = None
    """Least gain over the model in force in AUROC of right against wrong answers to the validation questions."""
    max_regression: NonNegative | None = None
    """How much its top-1 accuracy over the options of the validation questions, and its image sensitivity, may fall
    below those of the model in force."""
    non_inferiority_margin: NonNegative | None = None
    """How far below 0 the 95 % interval of any of the three differences may reach (paired bootstrap, drawn by
    image). With few validation images the interval is wide: then only a better model is taken over."""


class ResolvedPromotion(Promotion):
    """With every bound."""

    min_spearman: Correlation
    min_pairwise_accuracy: Fraction
    min_image_sensitivity: Fraction
    max_mean_absolute_error: NonNegative
    min_auroc_gain: Correlation
    max_regression: NonNegative
    non_inferiority_margin: NonNegative


class RewardTraining(Model):
    """How the reward model learns."""

    lora: LoRA | None = None
    """LoRA adapters to train; absent: all weights are fine-tuned."""
    learning_rate: Positive | None = None
    """Peak learning rate of the schedule."""
    num_epochs: Positive | None = None
    """Number of passes over the training data."""
    trainer: FreeForm = {}
    """Further transformers.TrainingArguments, less those the contract owns."""
    retrain_trainer: FreeForm = {}
    """Changes to `trainer` for the retraining in each iteration."""


class ResolvedRewardTraining(RewardTraining):
    """With everything that the presets own."""

    lora: ResolvedLoRA
    learning_rate: Positive
    num_epochs: Positive


#: Wrong-image and wrong-answer rows of one gold item.
Mismatches = Annotated[int, Field(ge=0, le=16)]


class RewardModelSpec(Model):
    """R: scores a triplet in [-6, 10]."""

    base_model: ModelURI
    """Model to start from: a folder on the volume, an id of the Hugging Face hub (fetched and pinned by prepare), a URI
    (hf://org/name@revision, s3://…, file:///…), or builtin://tiny-qwen2.5-vl."""
    checkpoint: ModelURI | None = None
    """Bring your own R⁽⁰⁾: as `baseModel`, with the head beside it; the first training is then left out. Absent: it
    is trained."""
    head: RewardHead | None = None
    """What the scalar head of the reward model reads: the last token, or also the likelihood."""
    grades: Grades = Grades()
    """Target scores of D_grade that the reward model is trained on."""
    mismatches_per_item: Mismatches | None = None
    """How many wrong-image and wrong-answer rows each gold item gets."""
    retrain_on: RetrainOn | None = None
    """What each retraining learns from, beside D_grade. CrossExamined: questions of the candidates on which policy,
    reward model and generator were cross-examined, graded as D_grade is. PolicyAnswers: the policy's own answers,
    graded by rule (the paper)."""
    retrain_from: InitFrom | None = None
    """Where each retraining starts. Base: the base model, on all that is known so far. Previous: the reward model in
    force (the paper)."""
    replay_fraction: ProperFraction | None = None
    """Share of rows of D_grade in each batch of a retraining. Few images that are seen often are learnt by heart."""
    promotion: Promotion = Promotion()
    """When a retrained model is taken over."""
    training: RewardTraining = RewardTraining()
    """Training settings: epochs, learning rate, adapters, trainer options."""


class ResolvedRewardModel(RewardModelSpec):
    """With everything that the presets own."""

    head: RewardHead
    mismatches_per_item: Mismatches
    retrain_on: Annotated[RetrainOn, Since("PolicyAnswers")]
    retrain_from: Annotated[InitFrom, Since("Previous")]
    replay_fraction: ProperFraction
    promotion: ResolvedPromotion
    training: ResolvedRewardTraining


class AnswerFormat(ApiEnum):
    """What stands between <answer> and </answer>."""

    LETTER = "Letter"
    OPTION_TEXT = "OptionText"


class Training(Model):
    """Supervised fine-tuning on D_gen."""

    lora: LoRA | None = None
    """LoRA adapters to train; absent: all weights are fine-tuned."""
    learning_rate: Positive | None = None
    """Peak learning rate of the schedule."""
    num_epochs: Positive | None = None
    """Number of passes over the training data."""
    trainer: FreeForm = {}
    """Further trl.SFTConfig fields, less those the contract owns."""


class ResolvedTraining(Training):
    """With everything that the presets own."""

    lora: ResolvedLoRA
    learning_rate: Positive
    num_epochs: Positive


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
    kl_coefficient: NonNegative | None = None
    """Weight of the KL term (TRL's beta)."""
    learning_rate: Positive | None = None
    """Peak learning rate of the schedule."""
    num_epochs: Positive | None = None
    """Number of passes over the prompts."""
    lora: LoRA | None = None
    """LoRA adapters to train; absent: all weights are fine-tuned."""
    trainer: FreeForm = {}
    """Further trl.GRPOConfig fields, less those the contract owns."""


class ResolvedGRPO(GRPO):
    """With everything that the presets own."""

    rewards: RewardTerms
    prompt_source: PromptSource
    seed_fraction: ProperFraction
    when_policy_beats_reward: Annotated[WhenPolicyBeatsReward, Since("Train")]
    num_generations: GroupSize
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
    sft: Training = Training()
    """Supervised fine-tuning of the policy on D_gen."""
    grpo: GRPO = GRPO()
    """Reinforcement learning of the policy by GRPO."""
    release: PolicyRelease | None = None
    """Which of an iteration's checkpoints the next stages read. Best: that of GRPO, unless on the validation questions
    it is worse than that of SFT (macro accuracy). Last: that of GRPO, whatever validation says (the paper)."""
    preferences: Preferences = Preferences()
    """Sampling for the next reward model."""


class ResolvedPolicy(Policy):
    """With everything that the presets own."""

    sft: ResolvedTraining
    grpo: ResolvedGRPO
    release: Annotated[PolicyRelease, Since("Last")]
    preferences: ResolvedPreferences


class Control(ApiEnum):
    """What else is measured, so that a score can be believed."""

    BLANK_IMAGE = "BlankImage"
    SHUFFLED_IMAGE = "ShuffledImage"
    OPTIONS_ONLY = "OptionsOnly"
    OPTION_PRIOR = "OptionPrior"


class Evaluation(Model):
    """How checkpoints are evaluated: benchmarks, controls, scoring."""

    controls: Annotated[list[Control], Field(max_length=4), Keyed()] = list(Control)
    """Controls beside the real measurement; chance is always shown."""
