"""A prepared workspace, and curate on whatever candidates a test makes up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medgr2_api.stage_contract import ArtifactRef
from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.curate.training_set import TrainingRow, training_set
from medgr2_jobs.runner import main
from medgr2_jobs.store.artifact import ArtifactReader
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.candidates import Candidate, CandidateOutcome, Decision, Score, Triplet, triplet_of
from medgr2_jobs.store.rows.prepared import Item
from medgr2_jobs.store.rows.training import CalibrationRow
from tests.support import jobs_fixtures

#: A perceptual hash.
BITS = 0x00F1_2233_4455_6677


def phash(*flipped: int) -> str:
    """The hash with these bits turned over."""
    value = BITS
    for bit in flipped:
        value ^= 1 << bit
    return f"{value:016x}"


FAR = f"{BITS ^ 0xFFFF_0000_FFFF_0000:016x}"

OPTIONS = ("CT", "MRI", "OCT", "Fundus")


def candidate(
    name: str, image: str, question: str = "What is it?", outcome: str = CandidateOutcome.OK, **changes: Any
) -> Candidate:
    """A candidate; what is not `ok` says nothing but its image."""
    usable = Candidate(
        triplet_id=name,
        iteration=1,
        image_sha256=image,
        modality="CT",
        question_type="modality",
        question=question,
        options=OPTIONS,
        answer_index=0,
        rationale="It looks like it.",
        response="<think>It looks like it.</think><answer>A</answer>",
        paradigm="Direct",
        template_sha256="feed",
        generator="test",
        outcome=CandidateOutcome(outcome),
        error="",
        attempts=1,
        input_tokens=None,
        output_tokens=None,
        thinking_tokens=None,
        usd=None,
    )
    if usable.outcome is not CandidateOutcome.OK:
        usable = replace(usable, question="", options=(), answer_index=None, rationale="", response="")
    return replace(usable, **changes)


def triplet(name: str, image: str, question: str = "What is it?", **changes: Any) -> Triplet:
    """What a usable candidate says."""
    usable = triplet_of(candidate(name, image, question, **changes))
    assert usable is not None
    return usable


class CurateWorkspace:
    """A prepared workspace, and curate on whatever candidates a test makes up."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.prepared = jobs_fixtures.phantoms(root, {"train": 6, "validation": 2, "test": 2}, real=10)
        self.prepare = jobs_fixtures.publish(root, "prepare", self.prepared.tables)
        self.seed = [row for row in self.prepared.items if row.split is Split.TRAIN]
        self.free = [row.image_sha256 for row in self.prepared.images[10:]]

    def prepare_again(self, phashes: Mapping[str, str] | None = None, items: Sequence[Item] = ()) -> None:
        """Publishes prepare with perceptual hashes for some images, and with more items."""
        known = phashes or {}
        self.prepared.images = [
            replace(row, phash=known.get(row.image_sha256, row.phash)) for row in self.prepared.images
        ]
        self.prepared.items += items
        self.prepare = jobs_fixtures.publish(self.root, "prepare", self.prepared.tables)

    def image(self, split: str) -> str:
        return next(row.image_sha256 for row in self.prepared.images if row.split == split)

    def curate(
        self,
        candidates: Sequence[Candidate] | None,
        scores: Mapping[str, float] | None = None,
        *,
        iteration: int = 1,
        history: Mapping[str, ArtifactRef] | None = None,
        calibration: Sequence[CalibrationRow] | None = None,
        review: str = "",
        seed: int = 3,
        answer_format: AnswerFormat = AnswerFormat.LETTER,
        **curation: Any,
    ) -> tuple[int, Any]:
        """Runs the stage: exit code, and what it published.

        Args:
            candidates: None: there is no stage generate.
            scores: None: there is no stage score.
            iteration: which.
            history: artifacts of the iterations before, by role; see `history`.
            calibration: None: the reward model is not read.
            review: sha256 of a review.
            seed: the stage's.
            answer_format: of the responses.
            curation: of the spec.
        """
        inputs = {"prepare": self.prepare, **(history or {})}
        if candidates is not None:
            inputs[f"generate-{iteration}"] = jobs_fixtures.publish(
                self.root, "generate", {Candidate: candidates}, iteration=iteration
            )
        if scores is not None:
            rows = [Score(name, score) for name, score in scores.items()]
            inputs["scores"] = jobs_fixtures.publish(
                self.root, "score", {Score: rows}, iteration=iteration, inputs={"reward": "r0"}
            )
        if calibration is not None:
            inputs["reward"] = jobs_fixtures.publish(self.root, "reward", {CalibrationRow: calibration})
        parameters = {
            "seed": seed,
            "curation": {"correct": False, **curation},
            "review": review,
            "answerFormat": answer_format,
        }
        asked = jobs_fixtures.request("curate", iteration, parameters, inputs)
        code = main.execute(asked, self.root)
        self.asked = asked
        return code, jobs_fixtures.reader(self.root, asked) if code == 0 else None

    @property
    def history(self) -> dict[str, ArtifactRef]:
        """What the iteration after the last `curate` reads of it and of those before."""
        inputs = {role: ref for role, ref in self.asked.inputs.items() if role.startswith(("generate-", "curate-"))}
        return {**inputs, f"curate-{self.asked.iteration}": jobs_fixtures.ref(self.root, self.asked)}

    def training(self, answer_format: AnswerFormat = AnswerFormat.LETTER) -> list[TrainingRow]:
        """D_gen after the last `curate`."""
        artifacts = jobs_fixtures.Artifacts(self.root, {"prepare": self.asked.inputs["prepare"], **self.history})
        return training_set(artifacts, self.asked.iteration, answer_format)

    def reasons(self, *arguments: Any, **options: Any) -> dict[str, list[str]]:
        code, artifact = self.curate(*arguments, **options)
        assert code == 0
        return reasons_of(artifact)


def reasons_of(curated: ArtifactReader) -> dict[str, list[str]]:
    """Why each candidate was dropped; empty: kept."""
    return {row.triplet_id: list(row.reasons) for row in curated.rows(Decision)}
