"""A student from its lessons to its candidates, with a real tiny model: what it learns from, what is published, and
that no interruption changes a byte."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from typing import Any

import pytest
import torch

from medgr2_api.stage_contract import ArtifactRef, ExitCode
from medgr2_jobs.distill import sampler
from medgr2_jobs.distill.task_split import in_probe
from medgr2_jobs.errors import CorruptArtifact
from medgr2_jobs.models import vlm
from medgr2_jobs.models.checkpoint import Checkpoint
from medgr2_jobs.stages import distill
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.candidates import Candidate, CandidateOutcome, Decision, Truth, is_student, student_name
from medgr2_jobs.store.rows.training import ProbeRow, TaughtRow
from tests.support import distill_fixtures, jobs_fixtures
from tests.support.distill_fixtures import StudentWorkspace, in_child


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> StudentWorkspace:
    return distill_fixtures.build(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def student(workspace: StudentWorkspace) -> ArtifactRef:
    """A student of iteration 1."""
    request = workspace.distill()
    jobs_fixtures.run(workspace.root, request)
    return workspace.ref(request)


def test_what_is_published(workspace: StudentWorkspace, student: ArtifactRef) -> None:
    found = workspace.reader(workspace.distill())
    vlm.load_model(found.folder_of("model"))
    taught = found.rows(TaughtRow)
    by_image = {row.image_sha256: row for row in workspace.images}
    assert {row.origin for row in taught} == {"seed", "generated"}
    assert {row.generator for row in taught} == {"", "teacher"}
    assert not [row for row in taught if in_probe(row.image_sha256)], "the probe's pictures are never learnt from"
    assert {by_image[row.image_sha256].split for row in taught} == {Split.TRAIN}
    open_to_all = [row for row in workspace.candidates if not in_probe(row.image_sha256)]
    assert sum(row.origin == "generated" for row in taught) == len(open_to_all)

    probe = found.rows(ProbeRow)
    assert sorted(row.triplet_id for row in probe) == sorted(
        row.triplet_id for row in workspace.candidates if in_probe(row.image_sha256)
    )
    gate, info = (json.loads(found.file(name).read_text()) for name in ("gate.json", "student.json"))
    assert found.manifest.promoted is gate["passed"] is False, "a model of six steps writes no triplet"
    assert gate["threshold"] == 0.0
    assert gate["student"]["tasks"] == len(probe) == 3 * distill_fixtures.PROBE
    assert gate["first"]["parsed"] == 1.0
    assert (info["depth"], info["mayLeave"], info["sources"]) == (1, False, ["open", "private"])
    counters = found.manifest.counters
    assert counters["rows"] == counters["rows_depth_0"] == len(taught)
    assert counters["rows_seed"] + counters["rows_generated"] == len(taught)


def test_no_interruption_changes_a_byte(workspace: StudentWorkspace) -> None:
    """`kill -9` while it trains, between training and asking, and while it asks; then SIGTERM; then to the end."""
    straight = workspace.distill(name="straight")
    assert in_child(workspace, straight) == ExitCode.OK

    def torn(attempt: int, moment: str = "", number: int = 0, sign: int = signal.SIGKILL) -> int:
        return in_child(workspace, workspace.distill(name="torn", attempt=attempt), moment, number, sign)

    assert torn(1, "step", 3) == -signal.SIGKILL
    assert torn(2, "step", 4, signal.SIGTERM) == ExitCode.CHECKPOINTED
    assert torn(3, "part", 1) == -signal.SIGKILL
    assert torn(4, "part", 2) == -signal.SIGKILL
    resumed = workspace.distill(name="torn", attempt=5)
    assert torn(5) == ExitCode.OK
    one, other = workspace.reader(straight), workspace.reader(resumed)
    assert one.digest == other.digest
    assert one.manifest.counters == other.manifest.counters


def test_the_next_round_asks_the_student_its_share(workspace: StudentWorkspace, student: ArtifactRef) -> None:
    alone = jobs_fixtures.run(workspace.root, workspace.generate(None)).rows(Candidate)
    request = workspace.generate(student)
    mixed = jobs_fixtures.run(workspace.root, request)
    rows = mixed.rows(Candidate)
    assert [row.triplet_id for row in rows] == [row.triplet_id for row in alone], "the same tasks, in their order"
    by_student = [row for row in rows if is_student(row.generator)]
    assert {row.generator for row in by_student} == {student_name(1, student.output_digest)}
    assert not [row for row in by_student if in_probe(row.image_sha256)], "the probe's are the first generator's"
    others = {row.triplet_id: row for row in rows if row not in by_student}
    assert {row.triplet_id: row for row in alone if row.triplet_id in others} == others, "what is not, is as it was"
    assert 0.25 < len(by_student) / len(rows) < 0.65
    assert mixed.manifest.counters["student_candidates"] == len(by_student)
    assert max(row.attempts or 0 for row in by_student) == 2, "asked again"
    told = {row.triplet_id for row in mixed.rows(Truth)}
    assert told == {row.triplet_id for row in rows if row.outcome is CandidateOutcome.OK}


def test_asked_alone_nobody_else_is(
    workspace: StudentWorkspace, student: ArtifactRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Share 1: no provider, no key, no address; and a killed stage goes on with the parts that it has."""
    provider = {"kind": "gemini", "model": "g", "external": True, "apiKeySecretRef": {"name": "absent", "key": "k"}}
    more = {"provider": provider, "questionTypes": ["finding", "count"], "questionsPerImage": 2}
    straight = workspace.generate(student, 1.0, name="straight", **more)
    assert in_child(workspace, straight) == ExitCode.OK
    rows = workspace.reader(straight).rows(Candidate)
    assert all(is_student(row.generator) for row in rows)
    assert any(in_probe(row.image_sha256) for row in rows)
    assert {row.image_sha256 for row in rows} >= {
        row.image_sha256 for row in workspace.images if not row.allow_external
    }, "the student is on site: it may see what the provider may not"
    torn = workspace.generate(student, 1.0, name="torn", **more)
    assert in_child(workspace, torn, "part", 3, signal.SIGKILL) == -signal.SIGKILL
    again = workspace.generate(student, 1.0, name="torn", attempt=2, **more)
    assert in_child(workspace, again) == ExitCode.OK
    assert workspace.reader(again).digest == workspace.reader(straight).digest


def test_what_a_student_wrote_counts_as_its_own(
    workspace: StudentWorkspace,
    student: ArtifactRef,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows of a student are one deeper than what it learnt from, and make at most 0.7 of what the next one learns. That
    one begins at the base model, too, not at the student before."""
    started_from: list[Checkpoint] = []
    fine_tune = distill.fine_tune

    def observed(ctx: Any, examples: Any, source: Checkpoint, *args: Any, **more: Any) -> Any:
        started_from.append(source)
        return fine_tune(ctx, examples, source, *args, **more)

    monkeypatch.setattr(distill, "fine_tune", observed)
    name = student_name(1, student.output_digest)
    second = [
        replace(row, triplet_id=f"second-{copy}-{row.triplet_id}", iteration=2, generator=name)
        for row in workspace.candidates
        for copy in range(6)
    ]
    workspace.publish("generate-2", "generate", 2, lambda writer: writer.table(Candidate, second))
    kept = [Decision(row.triplet_id, True, (), None) for row in second]
    workspace.publish("curate-2", "curate", 2, lambda writer: writer.table(Decision, kept), counters={"threshold": 0.0})
    inputs = {role: workspace.refs[role] for role in ("generate-2", "curate-2")}
    request = workspace.distill(iteration=2, inputs={**inputs, "students-1": student}, name="second")
    found = jobs_fixtures.run(workspace.root, request)
    [source] = started_from
    assert source.base.is_relative_to(workspace.root / workspace.refs["prepare"].path)
    assert source.base.parts[-2:] == ("models", "policy")
    assert source.adapter is None
    rows = found.rows(TaughtRow)
    own = [row for row in rows if row.generator == name]
    assert {row.depth for row in own} == {1}
    assert 0.68 < len(own) / len(rows) <= 0.7
    assert json.loads(found.file("student.json").read_text())["depth"] == 2
    assert {row.triplet_id for row in found.rows(ProbeRow)} == {
        row.triplet_id for row in workspace.candidates if in_probe(row.image_sha256)
    }, "a student is measured against the first generator, never against another student's answers"

    unknown = workspace.distill(iteration=2, inputs=inputs, name="unknown")
    assert jobs_fixtures.main.execute(unknown, workspace.root) == CorruptArtifact.exit_code
    assert "not among the students of this cycle" in capfd.readouterr().err


def test_what_fails_is_asked_again_with_another_seed(
    workspace: StudentWorkspace, student: ArtifactRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same one a model that is asked the same would say the same."""
    asked: list[tuple[int, int]] = []
    generate = vlm.generate

    def observed(model: Any, encoder: Any, rows: Any, **more: Any) -> Any:
        asked.append((torch.initial_seed(), len(rows)))
        return generate(model, encoder, rows, **more)

    monkeypatch.setattr(sampler.vlm, "generate", observed)
    request = workspace.generate(student, 1.0, name="reseeded")
    rows = jobs_fixtures.run(workspace.root, request).rows(Candidate)
    assert {row.attempts for row in rows} == {2}, "a model of six steps writes no triplet"
    assert [count for _, count in asked] == [len(rows)] * 2
    assert len({seed for seed, _ in asked}) == 2


def test_parts_do_not_depend_on_each_other(
    workspace: StudentWorkspace, student: ArtifactRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part has a seed of its own: the last one comes out the same whoever asked those before it."""
    monkeypatch.setattr(sampler, "PART_TASKS", 8)
    request = workspace.generate(student, 1.0, name="parts")
    rows = jobs_fixtures.run(workspace.root, request).rows(Candidate)
    again = workspace.generate(student, 1.0, name="again")
    work = workspace.root / "artifacts" / "generate" / again.input_hash / "work" / again.cycle.uid
    work.mkdir(parents=True)
    first = [
        {"triplet_id": row.triplet_id, "outcome": "empty", "attempts": 1, "question": "", "options": [],
         "answer_index": None, "rationale": ""}
        for row in rows[:8]
    ]  # fmt: skip
    (work / "student-0-00000.json").write_text(json.dumps(first))
    other = jobs_fixtures.run(workspace.root, again).rows(Candidate)
    assert {row.outcome for row in other[:8]} == {CandidateOutcome.EMPTY}, "a part that is there is not asked again"
    assert other[8:] == rows[8:]


def test_without_kept_candidates_it_learns_from_the_seed(workspace: StudentWorkspace) -> None:
    none = [Decision(row.triplet_id, False, ("below_threshold",), None) for row in workspace.candidates]
    workspace.publish("none", "curate", 1, lambda writer: writer.table(Decision, none), counters={"threshold": 0.0})
    request = workspace.distill(inputs={"curate-1": workspace.refs["none"]}, name="seed")
    found = jobs_fixtures.run(workspace.root, request)
    assert {row.origin for row in found.rows(TaughtRow)} == {"seed"}
