"""The report on students: the probe, who generated what, and what was learnt from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.fake_artifacts import publish
from tests.support.rows import row_of

from medgr2_jobs.report import students
from medgr2_jobs.report.cycle_artifacts import CycleArtifacts
from medgr2_jobs.report.cycle_frame import CycleFrame
from medgr2_jobs.store.rows.candidates import Candidate, CandidateOutcome, Decision, Score, Truth
from medgr2_jobs.store.rows.training import TaughtRow

FIGURES = {"tasks": 280, "parsed": 1.0, "accepted": 0.43, "entropy": 0.89, "option_prior": 0.415, "distinct": 0.9}
GATE: dict[str, Any] = {
    "passed": False,
    "reason": "entropy of its answers: 0.650, bound 0.840",
    "first": {**FIGURES, "agreement": 0.43},
    "student": {**FIGURES, "accepted": 0.53, "entropy": 0.65, "agreement": None},
    "gain": {"value": 0.1, "low": 0.02, "high": 0.18},
    "gold": {"student": 0.7, "policy": 0.8},
}


@pytest.fixture
def frame(tmp_path: Path) -> CycleFrame:
    by_student = "distill@1:0123456789ab"
    rows = [
        row_of(Candidate, triplet_id=f"t{n}", generator=by_student if n < 4 else "teacher",
               outcome=CandidateOutcome.SCHEMA if n == 0 else CandidateOutcome.OK)
        for n in range(8)
    ]  # fmt: skip
    publish(tmp_path, "generate", 2, tables={Candidate: rows, Truth: [Truth(f"t{n}", "x", n % 2 == 0) for n in (1, 2)]})
    publish(tmp_path, "score", 2, tables={Score: [Score(f"t{n}", float(n)) for n in range(1, 8)]})
    publish(tmp_path, "curate", 2, tables={Decision: [Decision(f"t{n}", n % 2 == 1, (), None) for n in range(8)]})
    taught = [TaughtRow(f"s{n}", "seed", 0, "", "", 0) for n in range(3)]
    taught.append(TaughtRow("t1", "generated", 1, "", by_student, 1))
    publish(tmp_path, "distill", 1, tables={TaughtRow: taught}, files={"gate.json": GATE})
    return CycleFrame(CycleArtifacts(tmp_path, "test"), 2)


def test_the_tables(frame: CycleFrame) -> None:
    found = students.tables(frame)
    first, student = found.probe
    assert (first.generator, first.accepted, first.gain, first.decision) == ("first generator", 0.43, None, "")
    assert (student.generator, student.gain_low, student.gold, student.agreement) == ("distill@1", 0.02, 0.7, None)
    assert student.decision == f"refused: {GATE['reason']}"
    assert found.generators == [
        students.GeneratorRow(2, "distill@1", 4, 0.75, 2.0, 0.5, 0.5),
        students.GeneratorRow(2, "teacher", 4, 1.0, 5.5, 0.5, None),
    ]
    assert found.taught == [
        students.TaughtShare(1, "seed", 0, 3, 0.75),
        students.TaughtShare(1, "generated", 1, 1, 0.25),
    ]


def test_the_page(frame: CycleFrame) -> None:
    page = "\n".join(students.markdown(students.tables(frame)))
    assert "| 1 | distill@1 | 280 | 100.0 | 53.0 |" in page
    assert "entropy of its answers: 0.650, bound 0.840" in page
    assert "| 2 | distill@1 | 4 | 75.0 | 2.00 | 50.0 | 50.0 |" in page
    assert "| 1 | seed | 0 | 3 | 75.0 |" in page


def test_without_students_nothing_is_said(tmp_path: Path) -> None:
    publish(tmp_path, "generate", 1, tables={Candidate: [row_of(Candidate, triplet_id="t1")]})
    found = students.tables(CycleFrame(CycleArtifacts(tmp_path, "test"), 1))
    assert found == students.StudentTables()
    assert students.markdown(found) == []
