"""The `crossExamination` part of a cycle's spec: how questions without gold get an answer that several sources support.

A field whose value a preset owns is optional and has no default here: `presets.py` fills it in, and the model's
`Resolved` form requires it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .model import Model
from .policy import Samples, Temperature

Posterior = Annotated[float, Field(gt=0.5, lt=1)]
Questions = Annotated[int, Field(ge=1)]


class CrossExamination(Model):
    """The questions of an iteration's candidates, put to the policy and to R; stage relabel does it."""

    samples_per_question: Samples | None = None
    """Number of answers that the policy gives to each question."""
    temperature: Temperature | None = None
    """Temperature at which the answers are sampled."""
    min_posterior: Posterior | None = None
    """How likely an answer has to be for its question to count as settled."""
    max_questions: Questions | None = None
    """Most questions of an iteration that are asked, those of rejected candidates first."""


class ResolvedCrossExamination(CrossExamination):
    """With everything that the presets own."""

    samples_per_question: Samples
    temperature: Temperature
    min_posterior: Posterior
    max_questions: Questions
