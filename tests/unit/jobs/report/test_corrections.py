"""What the report says of questions that were asked again, and of the training set since; every count is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.fake_artifacts import publish
from tests.support.jobs_fixtures import Artifacts
from tests.support.rows import row_of

from medgr2_api.stage_contract import ArtifactRef
from medgr2_jobs.report import corrections
from medgr2_jobs.report.corrections import CorrectionRow
from medgr2_jobs.report.cycle_frame import CycleFrame
from medgr2_jobs.store.rows.candidates import AnswerPosterior, Candidate, CandidateOutcome, Decision
from medgr2_jobs.store.rows.prepared import PhantomRow

from .conftest import CURATION, OPTIONS

BELOW = ("below_threshold",)
#: (reasons, settled answer, R's answer, an expert's) of questions whose generator says 0 and of which 2 is right.
QUESTIONS: dict[str, tuple[tuple[str, ...], int | None, int, int | None]] = {
    "as-kept": ((), 0, 0, None),
    "changed": ((), 2, 2, None),
    "doubted": ((), None, 0, None),
    "rescued": (BELOW, 2, 2, None),
    "against-r": (BELOW, 2, 1, None),
    "wrongly": (BELOW, 3, 3, None),
    "lost": (BELOW, None, 1, None),
    "expert": (("wrong_answer",), 2, 0, 2),
}


class Made:
    """The questions, and one more that curation kept and nobody asked again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        names = [*QUESTIONS, "not-asked"]
        drawn = [row_of(PhantomRow, image_sha256=name, finding=OPTIONS[2]) for name in names if name != "wrongly"]
        candidates = [
            row_of(Candidate, triplet_id=name, iteration=1, image_sha256=name, question_type="finding", options=OPTIONS,
                   answer_index=0, outcome=CandidateOutcome.OK)
            for name in names
        ]  # fmt: skip
        decisions = [Decision(name, not why, why, None) for name, (why, *_) in QUESTIONS.items()]
        posteriors = [
            row_of(
                AnswerPosterior, triplet_id=name, answer_index=settled, claim=0, review=expert,
                agreed=name != "against-r",
                reward_scores=[float(place == by_reward) for place in range(4)],
                posterior=[0.97 if place == settled else 0.01 for place in range(4)],
            )
            for name, (_, settled, by_reward, expert) in QUESTIONS.items()
        ]  # fmt: skip
        self.decisions = [*decisions, Decision("not-asked", True, (), None)]
        self.refs = {
            "prepare": publish(root, "prepare", 0, tables={PhantomRow: drawn}),
            "generate-1": publish(root, "generate", 1, tables={Candidate: candidates}),
            "relabel-1": publish(root, "relabel", 1, tables={AnswerPosterior: posteriors}),
        }
        self.curated()

    def curated(self, **curation: Any) -> ArtifactRef:
        parameters = {**CURATION, "curation": {**CURATION["curation"], **curation}}
        made = publish(self.root, "curate", 1, tables={Decision: self.decisions}, parameters=parameters)
        self.refs["curate-1"] = made
        return made

    def rows(self) -> list[CorrectionRow]:
        return corrections.rows(CycleFrame(Artifacts(self.root, self.refs), 2))

    def learnt(self) -> None:
        """The second iteration learns from what was settled."""
        inputs = {"relabel-1": self.refs["relabel-1"].output_digest}
        self.refs["sft-2"] = publish(self.root, "sft", 2, files={"log.json": []}, inputs=inputs)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def test_every_count_is_right(made: Made) -> None:
    made.learnt()
    [row] = made.rows()
    assert (row.asked, row.settled, row.agreed, row.reviewed) == (8, 6, 5, 1)
    assert (row.against_generator, row.against_reward) == (5, 2), "against R: against-r and expert"
    assert (row.kept, row.confirmed, row.corrected, row.withdrawn, row.rescued) == (4, 2, 2, 1, 3)
    assert row.settled_precision == pytest.approx(4 / 5), "of one nobody knows the truth"
    assert row.kept_precision == 0.0
    assert row.corrected_precision == pytest.approx(4 / 5)
    text = "\n".join(corrections.markdown([row]))
    assert "| 1 | 8 | 6 | 2 | 5 | 5 | 80.0 |" in text
    assert "| 1 | 4 | 2 | 2 | 1 | 3 | 7 | 0.0 | 80.0 |" in text


def test_where_nothing_learns_from_it_no_training_set_is_told(made: Made) -> None:
    [row] = made.rows()
    assert not row.in_use
    text = "\n".join(corrections.markdown([row]))
    assert "asked again" in text
    assert "The training set since" not in text
    assert "rightly" not in "\n".join(corrections.markdown([replace(row, settled_precision=None)]))
    assert corrections.markdown([]) == []
