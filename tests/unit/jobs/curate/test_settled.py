"""The settled questions of all iterations, joined from candidates and posteriors."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.curate_fixtures import candidate
from tests.support.fake_artifacts import publish
from tests.support.jobs_fixtures import Artifacts
from tests.support.rows import row_of

from medgr2_jobs.curate.settled import asked_questions, settled_questions
from medgr2_jobs.errors import CorruptArtifact
from medgr2_jobs.store.rows.candidates import AnswerPosterior, Candidate


def found(name: str, answer_index: int | None, *posterior: float, agreed: bool = False) -> AnswerPosterior:
    return row_of(
        AnswerPosterior, triplet_id=name, posterior=posterior, answer_index=answer_index, rationale="why", agreed=agreed
    )


def test_the_settled_questions_of_all_iterations(tmp_path: Path) -> None:
    refs = {}
    for t, rows in ((1, ["a", "b"]), (2, ["c"]), (3, ["d"])):
        candidates = [candidate(name, f"image-{name}", iteration=t) for name in rows]
        refs[f"generate-{t}"] = publish(tmp_path, "generate", t, tables={Candidate: candidates})
    first = [found("a", 1, 0.1, 0.9, agreed=True), found("b", None, 0.5, 0.5)]
    refs["relabel-1"] = publish(tmp_path, "relabel", 1, tables={AnswerPosterior: first})
    refs["relabel-2"] = publish(tmp_path, "relabel", 2, tables={AnswerPosterior: [found("c", 0, 0.8, 0.2)]})
    artifacts = Artifacts(tmp_path, refs)
    a, c = settled_questions(artifacts, 3)
    assert (a.triplet.image_sha256, a.answer_index, a.posterior, a.agreed, a.rationale) == (
        "image-a",
        1,
        0.9,
        True,
        "why",
    )
    assert (c.triplet.iteration, c.answer_index, c.posterior, c.agreed) == (2, 0, 0.8, False)
    assert a.against_claim
    assert not c.against_claim
    assert settled_questions(artifacts, 1) == [a]
    assert set(asked_questions(artifacts, 1)) == {"a", "b"}, "what was asked, settled or not"


def test_what_is_settled_must_have_been_generated(tmp_path: Path) -> None:
    candidates = [candidate("a", "image", outcome="schema")]
    refs = {
        "generate-1": publish(tmp_path, "generate", 1, tables={Candidate: candidates}),
        "relabel-1": publish(tmp_path, "relabel", 1, tables={AnswerPosterior: [found("a", 0, 0.9, 0.1)]}),
    }
    with pytest.raises(CorruptArtifact, match="settles 'a', which is no usable candidate of generate@1"):
        settled_questions(Artifacts(tmp_path, refs), 1)
