"""What a check is given, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from medgr2_api.cycle import Cycle, ResolvedSpec
from medgr2_api.stages import GENERATE, stage_parameters
from medgr2_api.stages.generate import GenerateParameters


class Verdict(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    """The cycle would run; it may not do what is wanted."""
    FAILED = "failed"
    """The cycle would fail."""
    SKIPPED = "skipped"
    """It cannot be known from here."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's answer."""

    verdict: Verdict
    where: str
    """Which part of the spec it is about."""
    message: str
    """What was found, and where it is not well: what to do."""


@dataclass(frozen=True)
class Case:
    """What the checks look at."""

    cycle: Cycle
    spec: ResolvedSpec
    root: Path
    """The workspace."""
    questions: int
    """How many questions may be asked, and paid, to try the generator; 0: none."""

    @cached_property
    def parameters(self) -> GenerateParameters:
        """What the first generate stage will be told."""
        found = stage_parameters(self.spec, self.cycle.metadata.name, GENERATE.name, 1)
        assert isinstance(found, GenerateParameters)
        return found


def ok(where: str, message: str) -> Finding:
    """All is well."""
    return Finding(Verdict.OK, where, message)


def failed(where: str, message: str) -> Finding:
    """The cycle would fail."""
    return Finding(Verdict.FAILED, where, message)


def warning(where: str, message: str) -> Finding:
    """It may not do what is wanted."""
    return Finding(Verdict.WARNING, where, message)


def skipped(where: str, message: str) -> Finding:
    """Not known."""
    return Finding(Verdict.SKIPPED, where, message)
