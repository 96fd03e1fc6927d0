"""What a check is given, and its results."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from medgr2_api.cycle import Cycle, ResolvedSpec
from medgr2_api.stages import GENERATE, stage_parameters
from medgr2_api.stages.generate import GenerateParameters

from . import source_survey
from .source_survey import SourceSurvey


class CheckStatus(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    """The cycle would run; it may not do what is wanted."""
    FAILED = "failed"
    """The cycle would fail."""
    SKIPPED = "skipped"
    """It cannot be known from here."""


@dataclass(frozen=True)
class CheckResult:
    """One line of what `medgr2 doctor` prints."""

    status: CheckStatus
    where: str
    """Which part of the spec it is about."""
    message: str
    """What was found, and where it is not well: what to do."""


@dataclass(frozen=True)
class PreflightContext:
    """What the checks look at."""

    cycle: Cycle
    spec: ResolvedSpec
    root: Path
    """The workspace."""
    questions: int
    """How many questions may be asked, and paid, to try the generator; 0: none."""
    real_images: bool = False
    """Whether they may be about images of the sources; else they are about a drawn picture."""

    @cached_property
    def surveys(self) -> list[SourceSurvey]:
        """What the readers make of the sources and benchmarks that are on the volume."""
        return source_survey.survey(self.root, self.spec)

    @cached_property
    def parameters(self) -> GenerateParameters:
        """What the first generate stage will be told."""
        parameters = stage_parameters(self.spec, self.cycle.metadata.name, GENERATE.name, 1)
        assert isinstance(parameters, GenerateParameters)
        return parameters


def ok(where: str, message: str) -> CheckResult:
    """All is well."""
    return CheckResult(CheckStatus.OK, where, message)


def failed(where: str, message: str) -> CheckResult:
    """The cycle would fail."""
    return CheckResult(CheckStatus.FAILED, where, message)


def warning(where: str, message: str) -> CheckResult:
    """It may not do what is wanted."""
    return CheckResult(CheckStatus.WARNING, where, message)


def skipped(where: str, message: str) -> CheckResult:
    """Not known."""
    return CheckResult(CheckStatus.SKIPPED, where, message)
