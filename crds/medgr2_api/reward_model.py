"""The part of a cycle's spec that describes the reward model R: how it learns, when a retrained one is taken over.

A field whose value a preset owns is optional and has no default here: `presets.py` fills it in, and the model's
`Resolved` form, which follows it, requires it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .hashing import Since
from .model import ApiEnum, Model
from .training_spec import InitFrom, LoRA, ResolvedLoRA
from .types import Fraction, FreeForm, NonNegative, Positive, ProperFraction
from .uris import ModelURI


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
