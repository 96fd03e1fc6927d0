"""A cycle's tables as the report reads them: each once, by iteration, and only the columns that are in use."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from ..store.artifact import ArtifactInputs, ArtifactReader
from ..store.rows import Split, StoredRow, TableView
from ..store.rows.candidates import AnswerPosterior, Candidate, CandidateOutcome, Decision, Score, Truth
from ..store.rows.evaluation import EvalCondition, Prediction, Scoring
from ..store.rows.prepared import Image, Item, QuarantinedRecord
from ..store.rows.training import Rollout

S = TypeVar("S", bound=StoredRow)


@dataclass(frozen=True, slots=True)
class ImageColumns(TableView):
    """Where an image comes from."""

    TABLE = Image.TABLE
    VERSION = Image.VERSION

    image_sha256: str
    modality: str
    source: str
    source_path: str


@dataclass(frozen=True, slots=True)
class ItemColumns(TableView):
    """Which images the seed and the benchmarks show."""

    TABLE = Item.TABLE
    VERSION = Item.VERSION

    split: Split
    image_sha256: str


@dataclass(frozen=True, slots=True)
class CandidateColumns(TableView):
    """What candidates are counted by."""

    TABLE = Candidate.TABLE
    VERSION = Candidate.VERSION

    triplet_id: str
    image_sha256: str
    modality: str
    question_type: str
    paradigm: str
    generator: str
    outcome: CandidateOutcome


@dataclass(frozen=True, slots=True)
class PredictionColumns(TableView):
    """Who was right about which question."""

    TABLE = Prediction.TABLE
    VERSION = Prediction.VERSION

    checkpoint: str
    split: Split
    benchmark: str
    item_id: str
    image_sha256: str
    condition: EvalCondition
    scoring: Scoring
    correct: bool


@dataclass(frozen=True, slots=True)
class RolloutColumns(TableView):
    """Which prompts GRPO sampled from."""

    TABLE = Rollout.TABLE
    VERSION = Rollout.VERSION

    prompt_id: str


class CycleFrame:
    """The artifacts of a cycle up to an iteration. Tables of stages that it does not have, or not yet, are empty."""

    def __init__(self, artifacts: ArtifactInputs, last: int) -> None:
        """
        Args:
            artifacts: by role: `prepare`, and `<stage>-<iteration>` of all others. A stage's context, or
                `CycleArtifacts`.
            last: the newest iteration.
        """
        self.artifacts = artifacts
        self.last = last

    def has(self, stage: str, iteration: int) -> bool:
        """Whether there is an artifact of this stage."""
        return self.artifacts.has_input(f"{stage}-{iteration}")

    def trained(self, stage: str, iteration: int) -> bool:
        """Whether this stage trained a model: GRPO may have been skipped."""
        return self.has(stage, iteration) and self.artifact(stage, iteration).manifest.counters.get("skipped") != 1

    def iterations(self, stage: str) -> list[int]:
        """Iterations of which there is an artifact of this stage."""
        return [t for t in range(self.last + 1) if self.has(stage, t)]

    def artifact(self, stage: str, iteration: int) -> ArtifactReader:
        """The artifact of a stage; it must be there."""
        return self.artifacts.input(f"{stage}-{iteration}")

    @cached_property
    def images(self) -> dict[str, ImageColumns]:
        """The images by their sha256."""
        if not self.artifacts.has_input("prepare"):
            return {}
        return {row.image_sha256: row for row in self.artifacts.input("prepare").rows(ImageColumns)}

    @property
    def items(self) -> list[ItemColumns]:
        """The seed's questions and those of the benchmarks."""
        return self.artifacts.input("prepare").rows(ItemColumns) if self.artifacts.has_input("prepare") else []

    @property
    def quarantine(self) -> list[QuarantinedRecord]:
        """What prepare set aside."""
        if not self.artifacts.has_input("prepare"):
            return []
        prepared = self.artifacts.input("prepare")
        return prepared.rows(QuarantinedRecord) if prepared.has_table(QuarantinedRecord) else []

    def candidates(self, iteration: int) -> list[CandidateColumns]:
        """All candidates of an iteration."""
        return self._rows("generate", iteration, CandidateColumns)

    def truth(self, iteration: int) -> dict[str, bool]:
        """Whether each candidate is really right, where the generator knows (scripted); otherwise empty."""
        if not self.has("generate", iteration):
            return {}
        generated = self.artifact("generate", iteration)
        return {row.triplet_id: row.correct for row in generated.rows(Truth)} if generated.has_table(Truth) else {}

    def scores(self, iteration: int) -> dict[str, float]:
        """R's score of each candidate that has one; a score that is no number is none."""
        rows = self._rows("score", iteration, Score)
        return {row.triplet_id: row.score for row in rows if math.isfinite(row.score)}

    def decisions(self, iteration: int) -> list[Decision]:
        """What curate says of each candidate of an iteration."""
        return self._rows("curate", iteration, Decision)

    def posteriors(self, iteration: int) -> dict[str, AnswerPosterior]:
        """What relabel has found out about an iteration's questions, by triplet id; empty where nothing was asked."""
        return {row.triplet_id: row for row in self._rows("relabel", iteration, AnswerPosterior)}

    def learnt_corrected(self, stage: str, learner: int, iteration: int) -> bool:
        """Whether a model has learnt from an iteration's candidates as relabel has corrected them.

        Args:
            stage: sft or grpo.
            learner: its iteration.
            iteration: that of the candidates.
        """
        return f"relabel-{iteration}" in self.artifact(stage, learner).manifest.inputs

    def predictions(self, iteration: int) -> list[PredictionColumns]:
        """All answers of an iteration's checkpoints; iteration 0 has those of the base model."""
        return self._rows("measure", iteration, PredictionColumns)

    def prompts(self, iteration: int) -> set[str]:
        """Ids of the prompts that GRPO sampled from; empty where it published no rollouts."""
        if not self.has("grpo", iteration) or not self.artifact("grpo", iteration).has_table(Rollout):
            return set()
        return {row.prompt_id for row in self._rows("grpo", iteration, RolloutColumns)}

    def reward_curve(self, iteration: int) -> list[tuple[float, float]]:
        """(step, mean reward) of a GRPO run; empty when its log was not published."""
        reader = self.artifact("grpo", iteration)
        log = json.loads(reader.file("log.json").read_text()) if reader.has("log.json") else []
        return [(entry["step"], entry["reward"]) for entry in log if "reward" in entry and "step" in entry]

    def _rows(self, stage: str, iteration: int, kind: type[S]) -> list[S]:
        return self.artifact(stage, iteration).rows(kind) if self.has(stage, iteration) else []
