"""What the report says of the reward models: their answers, what they were retrained on, why they were taken over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.fake_artifacts import publish
from tests.support.jobs_fixtures import Artifacts
from tests.support.rows import row_of

from medgr2_jobs.report.cycle_frame import CycleFrame
from medgr2_jobs.report.known_truth import settled_precision
from medgr2_jobs.report.markdown import _reward
from medgr2_jobs.report.tables import reward_row
from medgr2_jobs.store.rows.candidates import AnswerPosterior, Candidate, CandidateOutcome
from medgr2_jobs.store.rows.prepared import PhantomRow

OPTIONS = ("cyst", "Nodule", "mass", "plaque")


def asked(number: int, t: int, question_type: str = "finding") -> Candidate:
    return row_of(
        Candidate, triplet_id=f"{t}/{number}", iteration=t, image_sha256=f"i{number}", question_type=question_type,
        options=OPTIONS, outcome=CandidateOutcome.OK,
    )  # fmt: skip


@pytest.fixture
def frame(tmp_path: Path) -> CycleFrame:
    """Two rounds: each image shows a nodule; of five settled answers three are right."""
    phantoms = [row_of(PhantomRow, image_sha256=f"i{number}", modality="CT", finding="nodule") for number in range(3)]
    refs = {"prepare": publish(tmp_path, "prepare", 0, tables={PhantomRow: phantoms})}
    for t, settled in ((1, [1, 1, 0]), (2, [1, None, 3])):
        rows = [
            row_of(AnswerPosterior, triplet_id=f"{t}/{number}", answer_index=answer)
            for number, answer in enumerate(settled)
        ]
        # nobody knows the truth of other questions, and of images that were not drawn
        other = row_of(AnswerPosterior, triplet_id=f"{t}/9", answer_index=0)
        more = row_of(AnswerPosterior, triplet_id=f"{t}/8", answer_index=0)
        candidates = [*(asked(number, t) for number in range(3)), asked(9, t), asked(8, t, "other")]
        refs[f"relabel-{t}"] = publish(tmp_path, "relabel", t, tables={AnswerPosterior: [*rows, other, more]})
        refs[f"generate-{t}"] = publish(tmp_path, "generate", t, tables={Candidate: candidates})
    first: dict[str, Any] = {"answer_accuracy": 0.89, "answer_auroc": 0.97, "spearman": 0.72, "auroc": 0.97}
    gains = {"answer_auroc": {"value": 0.012, "low": -0.004, "high": 0.028}}
    gate = {"passed": True, "reason": "all checks passed", "gains": gains}
    files = {"gate.json": {**gate, "gains": {}}}
    refs["reward-0"] = publish(tmp_path, "reward", 0, files=files, counters=first)
    refs["reward-1"] = publish(
        tmp_path, "reward", 1, files={"gate.json": gate}, promoted=True,
        counters={**first, "answer_auroc": 0.982, "settled": 5.0, "settled_against_reward": 2.0},
    )  # fmt: skip
    return CycleFrame(Artifacts(tmp_path, refs), 2)


def test_a_row_says_how_it_answers_and_why_it_was_taken_over(frame: CycleFrame) -> None:
    first, second = reward_row(frame, 0), reward_row(frame, 1)
    assert (first.promoted, first.gain, first.settled, first.settled_precision) == ("first", None, None, None)
    assert (second.promoted, second.reason) == ("yes", "all checks passed")
    assert second.gain == (0.012, -0.004, 0.028)
    assert (second.settled, second.settled_against_reward) == (5, 2)
    assert second.settled_precision == pytest.approx(2 / 3), "of round 1 alone"
    text = _reward([first, second])[-1]
    assert "+1.2 [-0.4, +2.8]" in text
    assert "66.7" in text
    assert "settled" not in _reward([first])[-1]


def test_precision_of_all_rounds(frame: CycleFrame) -> None:
    assert settled_precision(frame, 2) == pytest.approx(3 / 5)
    assert settled_precision(frame, 0) is None
    assert settled_precision(CycleFrame(Artifacts(Path(), {}), 2), 2) is None
