"""The `generator.distillation` part of a cycle's spec: a generator of one's own, taught by what the loop made."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .model import Model
from .training_spec import ResolvedTraining, Training
from .types import Fraction, NonNegative
from .uris import ModelURI

Share = Annotated[float, Field(gt=0, le=1)]
Attempts = Annotated[int, Field(ge=1, le=16)]


class StudentPromotion(Model):
    """A student takes tasks over only if it passes all of these on the probe: pictures that no student learns from."""

    min_tasks: Annotated[int, Field(ge=1)] = 50
    """Least number of tasks in the probe: with fewer nothing can be told."""
    min_parse_rate: Fraction = 0.9
    """Least share of tasks that end as a triplet, those asked again included."""
    min_acceptance_gain: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Least gain over the first generator in the share of tasks whose triplet R accepts: what the lower end of its 95 %
    interval must reach (images drawn with replacement)."""
    max_entropy_loss: NonNegative = 0.05
    """How much less even its answers to a kind of question may be than the first generator's (entropy, 1: all answers
    equally often)."""
    max_option_prior_gain: NonNegative = 0.03
    """How much more of its questions the options alone may answer than of the first generator's."""
    min_distinct_ratio: NonNegative = 0.9
    """Least number of distinct questions for each distinct one of the first generator's."""
    max_agreement_loss: NonNegative = 0.0
    """How much less often the policy may give its answers than the first generator's."""
    max_gold_loss: NonNegative = 0.25
    """How far its answers to the validation split's questions may fall behind the policy's."""
    min_kind_ratio: Fraction = 0.5
    """Least share of right answers to each kind of these questions, as a part of its mean over the kinds."""


class Distillation(Model):
    """A student: an open vision-language model that learns to write triplets from D_gen, and then generates too."""

    terms_allow_training: bool | None = None
    """Whether the terms of the generator's provider allow to train a model with its output. An outside provider's must
    be answered, with true; absent: not answered."""
    base_model: ModelURI | None = None
    """Model that each student starts from, never from the student before; as `policy.baseModel`, which it is when
    absent."""
    share: Share = 0.7
    """Share of the tasks that the student is asked once it is promoted, by hash of the task; the generator keeps the
    others. 1: the generator is not asked any more."""
    max_attempts: Attempts = 4
    """How often a task is asked at most, each time with another seed, until a triplet comes of it."""
    training: Training = Training()
    """How the student learns."""
    promotion: StudentPromotion = StudentPromotion()
    """Bounds on what a student does on the probe, for it to take tasks over."""


class ResolvedDistillation(Distillation):
    """With everything that the presets own."""

    training: ResolvedTraining
