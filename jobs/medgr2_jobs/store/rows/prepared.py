"""What stage prepare makes of the users' data: pictures, questions with gold answers, D_grade, what was set aside."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from . import Split, TableRow

#: In the reason why a record was set aside: a path before it, what is quoted, and numbers.
_OWN = re.compile(r"^\S*/.*?(?=: )|\b(?:file|group)-[0-9a-f]{16}|'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class SetAside(StrEnum):
    """Why a record was set aside."""

    UNUSABLE = "unusable"
    """Something is wrong with it: what `data.maxBadFraction` counts."""
    NO_PICTURE = "no picture"
    """Nothing is wrong with it, but it shows nobody: reports, segmentations, presentation states."""
    WITHHELD = "withheld"
    """It has, or seems to have, text in its pixels that may name the patient."""


class Grade(StrEnum):
    """How good a response is: the paper's four grades, and the right text beside a wrong image."""

    ORIGINAL = "original"
    PERTURBED = "perturbed"
    INCOHERENT = "incoherent"
    IRRELEVANT = "irrelevant"
    IMAGE_MISMATCH = "imageMismatch"


@dataclass(frozen=True, slots=True)
class Image(TableRow):
    """A picture of the image store."""

    TABLE = "images"
    VERSION = 2

    image_sha256: str
    width: int
    height: int
    modality: str
    source: str
    source_path: str
    split: Split
    allow_external: bool
    """Whether it may be sent to an external provider."""
    dataset: str
    patient: str
    phash: str
    """Perceptual hash, 16 hex digits; empty where it says nothing."""


@dataclass(frozen=True, slots=True)
class ImageOrigin(TableRow):
    """That a source or benchmark has an image; also one of which its record could not be used."""

    TABLE = "image_origins"
    VERSION = 1

    image_sha256: str
    source: str
    """Name of the source or benchmark."""


@dataclass(frozen=True, slots=True)
class Item(TableRow):
    """A question with its gold answer."""

    TABLE = "items"
    VERSION = 1

    item_id: str
    source: str
    split: Split
    benchmark: str
    """Name of the test set; empty outside split test."""
    image_sha256: str
    modality: str
    question_type: str
    question: str
    options: tuple[str, ...]
    answer_index: int
    rationale: str


@dataclass(frozen=True, slots=True)
class GradedRow(TableRow):
    """A row of D_grade: a seed item's text, as it is or made worse in a known way."""

    TABLE = "grades"
    VERSION = 2

    sample_id: str
    item_id: str
    source: str
    split: Split
    image_sha256: str
    modality: str
    question_type: str
    question: str
    options: tuple[str, ...]
    response: str
    grade: Grade
    target: float
    """Score that R shall give, in [-6, 10]."""
    perturbation: str
    seed: int


@dataclass(frozen=True, slots=True)
class PhantomRow(TableRow):
    """What a synthetic image shows."""

    TABLE = "phantoms"
    VERSION = 1

    image_sha256: str
    modality: str
    finding: str
    location: str
    count: str


@dataclass(frozen=True, slots=True)
class QuarantinedRecord(TableRow):
    """A record of a source that could not be used, and why."""

    TABLE = "quarantine"
    VERSION = 2

    source: str
    record: str
    field: str
    reason: str
    kind: SetAside

    @property
    def sort(self) -> str:
        """Field and reason without what is this record's alone: names, quoted values, numbers."""
        field = _NUMBER.sub("N", self.field)
        return f"{field}: {_NUMBER.sub('N', _OWN.sub('…', self.reason))}"
