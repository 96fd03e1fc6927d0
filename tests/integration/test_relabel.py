"""Stage relabel with real models: who is asked, what is published, and that a kill changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medgr2_jobs.errors import Checkpointed
from medgr2_jobs.relabel import label_model
from medgr2_jobs.review import import_review
from medgr2_jobs.review.import_review import ReviewDecision
from medgr2_jobs.runner import parts
from medgr2_jobs.stages import relabel
from medgr2_jobs.store.rows.candidates import AnswerPosterior, Decision, triplet_of
from tests.support.policy_fixtures import PolicyWorkspace, build, publish_rows


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> PolicyWorkspace:
    return build(tmp_path_factory.mktemp("relabel"))


@pytest.fixture
def workspace(tmp_path: Path) -> PolicyWorkspace:
    return build(tmp_path)


def posteriors(made: PolicyWorkspace, request: Any) -> list[AnswerPosterior]:
    reader = made.run(request)
    assert reader is not None
    return reader.rows(AnswerPosterior)


def test_every_question_gets_a_posterior_and_what_each_witness_says(shared: PolicyWorkspace) -> None:
    request = shared.relabel(minPosterior=0.51)
    reader = shared.run(request)
    assert reader is not None
    rows = reader.rows(AnswerPosterior)
    triplets = [triplet for row in shared.candidates if (triplet := triplet_of(row))]
    assert [row.triplet_id for row in rows] == [triplet.triplet_id for triplet in triplets], (
        "kept and rejected, not torn"
    )
    for row, triplet in zip(rows, triplets, strict=True):
        count = len(triplet.options)
        assert (len(row.posterior), len(row.reward_scores), len(row.policy_shares)) == (count, count, count)
        assert sum(row.posterior) == pytest.approx(1)
        assert row.claim == triplet.answer_index
        best = row.posterior.index(max(row.posterior))
        assert row.answer_index == (best if max(row.posterior) >= 0.51 else None)
        assert bool(row.rationale) == (row.answer_index is not None)
    counters = reader.manifest.counters
    rejected = sum(not row.keep and row.reasons == ("below_threshold",) for row in shared.decisions)
    settled = [row for row in rows if row.answer_index is not None]
    assert settled
    assert (counters["asked"], counters["asked_rejected"], counters["settled"]) == (len(rows), rejected, len(settled))
    assert counters["against_generator"] == sum(row.answer_index != row.claim for row in settled)
    assert counters["agreed"] == sum(row.agreed for row in settled)
    # the scale is that of R's answers to the validation questions, and of nothing else
    answers = np.array([[1.0, 0.0, 0.0, 0.0]] * 16)
    assert counters["scale"] == pytest.approx(label_model.fit_scale(answers, np.zeros(16, dtype=np.int64)), abs=1e-5)


def test_a_kill_between_parts_changes_nothing(
    shared: PolicyWorkspace, workspace: PolicyWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that are finished are not made again, and the ones after them are what they would have been."""
    for name in ("_SAMPLES", "_TEXTS"):
        monkeypatch.setattr(relabel, name, 24)
    monkeypatch.setattr(parts, "SECONDS", 0.0)
    undisturbed = shared.run(shared.relabel(name="undisturbed"))
    assert undisturbed is not None
    original, asked = relabel.option_scores, list[int]()

    def counted(*arguments: Any) -> Any:
        asked.append(len(arguments[2]))
        if len(asked) == 2:
            raise Checkpointed(1)
        return original(*arguments)

    monkeypatch.setattr(relabel, "option_scores", counted)
    workspace.run(workspace.relabel(name="torn"), expect=85)
    drawn = sorted(path.name for path in workspace.root.rglob("votes-*.json"))
    assert len(drawn) > 2
    assert len(list(workspace.root.rglob("scores-*.json"))) == 1
    monkeypatch.setattr(relabel._Policy, "answers", lambda *_: pytest.fail("the policy was asked again"))
    again = workspace.run(workspace.relabel(name="torn", attempt=2))
    assert again is not None
    assert again.digest == undisturbed.digest


def test_an_expert_counts_as_gold_and_a_vetoed_question_is_not_asked(shared: PolicyWorkspace) -> None:
    before = posteriors(shared, shared.relabel())
    doubted = min(before, key=lambda row: row.posterior[row.claim])
    assert doubted.posterior[doubted.claim] < 0.5
    vetoed = next(row.triplet_id for row in before if row is not doubted)
    answered = next(row for row in before if row.triplet_id not in (doubted.triplet_id, vetoed))
    unlikeliest = min(range(4), key=lambda at: (at == answered.claim, answered.posterior[at]))
    says = {row.triplet_id: row for row in shared.candidates}[answered.triplet_id].options
    assert says is not None
    reviews = [
        ReviewDecision(doubted.triplet_id, False), ReviewDecision(vetoed, True),
        ReviewDecision(answered.triplet_id, False, says[unlikeliest]),
    ]  # fmt: skip
    request = shared.relabel(name="reviewed")
    parameters = {**request.parameters, "review": import_review.save(shared.root, reviews)}
    curated = [
        replace(row, keep=False, reasons=(*row.reasons, "wrong_answer"))
        if row.triplet_id == answered.triplet_id
        else row
        for row in shared.decisions
    ]
    inputs = {**request.inputs, "decisions": publish_rows(shared, "curate", curated)}
    request = request.model_copy(update={"parameters": parameters, "inputs": inputs})
    after = {row.triplet_id: row for row in posteriors(shared, request)}
    assert vetoed not in after
    found = after[doubted.triplet_id]
    assert (found.review, found.answer_index, found.agreed) == (doubted.claim, doubted.claim, True)
    assert found.posterior[doubted.claim] == 1
    found = after[answered.triplet_id]
    assert (found.review, found.answer_index, found.agreed) == (unlikeliest, unlikeliest, True)
    assert found.claim != unlikeliest
    assert found.posterior[unlikeliest] == 1
    assert found.rationale


def test_only_what_is_kept_or_rejected_by_its_score_is_asked(shared: PolicyWorkspace) -> None:
    reasons = [
        ("duplicate",),
        ("below_threshold", "overlap"),
        ("below_threshold",),
        ("vetoed",),
        ("guessable",),
        ("balance",),
    ]
    some = [row for row in shared.decisions if row.reasons == ("below_threshold",)][: len(reasons)]
    changed = {row.triplet_id: replace(row, reasons=why) for row, why in zip(some, reasons, strict=True)}
    decisions = [changed.get(row.triplet_id, row) for row in shared.decisions]
    request = shared.relabel(name="reasons")
    curated = publish_rows(shared, "curate", decisions)
    request = request.model_copy(update={"inputs": {**request.inputs, "decisions": curated}})
    asked = {row.triplet_id for row in posteriors(shared, request)}
    assert {reason for name, row in changed.items() if name in asked for reason in row.reasons} == {"below_threshold"}
    assert asked.isdisjoint(name for name, row in changed.items() if row.reasons != ("below_threshold",))
    assert {row.triplet_id for row in decisions if row.keep} <= asked


def test_of_many_questions_those_of_rejected_candidates_come_first(shared: PolicyWorkspace) -> None:
    rejected = {row.triplet_id for row in shared.decisions if row.reasons == ("below_threshold",)}
    few = {row.triplet_id for row in posteriors(shared, shared.relabel(maxQuestions=5))}
    assert len(few) == 5
    assert few < rejected
    most = {row.triplet_id for row in posteriors(shared, shared.relabel(maxQuestions=len(rejected) + 2))}
    assert rejected < most
    kept: list[Decision] = [row for row in shared.decisions if row.triplet_id in most and row.keep]
    assert len(kept) == 2
