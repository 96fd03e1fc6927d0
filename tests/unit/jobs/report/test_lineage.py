"""Lineage: as far as it has come, and only what is true of the present data."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.fake_artifacts import publish
from tests.support.rows import row_of

from medgr2_api import paths
from medgr2_api.stage_contract import ArtifactRef
from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.errors import ConfigError, CorruptArtifact
from medgr2_jobs.prompts import answers
from medgr2_jobs.report.cycle_artifacts import CycleArtifacts, CycleNotFound
from medgr2_jobs.report.lineage import lineage_json
from medgr2_jobs.store import manifest
from medgr2_jobs.store.rows.candidates import (
    AnswerPosterior,
    Candidate,
    CandidateOutcome,
    Decision,
    Score,
    student_name,
    triplet_of,
)
from medgr2_jobs.store.rows.prepared import Image
from medgr2_jobs.store.rows.training import Rollout, TaughtRow

from .conftest import CURATION, grpo_parameters

OPTIONS = ("cyst", "mass")
KEPT, REJECTED, BROKEN, PROMPTED = "t001-000000-00", "t001-000001-00", "t001-000002-00", "t001-000003-00"
SCORES = {KEPT: 6.5, REJECTED: -2.25, PROMPTED: 1.0}


def candidate(name: str, outcome: CandidateOutcome = CandidateOutcome.OK) -> Candidate:
    return Candidate(
        triplet_id=name, iteration=1, image_sha256=f"{name[-4]}f" * 32, modality="CT", question_type="finding",
        question=f"What of {name}?", options=OPTIONS, answer_index=1, rationale="It is solid.", response="",
        paradigm="MetaCognitive", template_sha256="feed" * 16, generator="gemini-3-flash", outcome=outcome, error="",
        attempts=1, input_tokens=0, output_tokens=0, thinking_tokens=None, usd=0.0,
    )  # fmt: skip


CANDIDATES = [
    candidate(KEPT),
    candidate(REJECTED),
    candidate(BROKEN, CandidateOutcome.INVALID_JSON),
    candidate(PROMPTED),
]
DECISIONS = [
    Decision(KEPT, True, (), None),
    Decision(REJECTED, False, ("below_threshold",), None),
    Decision(BROKEN, False, ("outcome:invalid_json",), None),
    Decision(PROMPTED, False, ("below_threshold",), None),
]


class Loop:
    """A cycle that gets on stage by stage."""

    def __init__(self, root: Path) -> None:
        self.root = root
        image = row_of(Image, image_sha256="0f" * 32, modality="CT", source="ward", source_path="scans/7.png")
        publish(root, "prepare", 0, tables={Image: [image]}, cycle="loop")
        self.reward = publish(root, "reward", 0, files={"x.json": 1}, cycle="loop").output_digest

    def generated(self) -> None:
        publish(self.root, "generate", 1, tables={Candidate: CANDIDATES}, cycle="loop")

    def scored(self) -> None:
        rows = [Score(name, score) for name, score in SCORES.items()]
        publish(self.root, "score", 1, tables={Score: rows}, inputs={"reward": self.reward}, cycle="loop")

    def curated(self) -> ArtifactRef:
        return publish(self.root, "curate", 1, tables={Decision: DECISIONS}, cycle="loop", parameters=CURATION)

    def trained(self) -> None:
        publish(self.root, "sft", 1, files={"log.json": []}, cycle="loop")
        prompt = answers.prompt_of(triplet_of(CANDIDATES[3]), AnswerFormat.LETTER)
        rollout = Rollout(1, prompt.prompt_id, completion="", reward=0.5, reward_model=0.5, match=None, parsed=True)
        publish(self.root, "grpo", 1, tables={Rollout: [rollout]}, cycle="loop",
                parameters=grpo_parameters(AnswerFormat.LETTER))  # fmt: skip

    def whole(self) -> Loop:
        self.generated()
        self.scored()
        self.curated()
        self.trained()
        return self

    def lineage(self, triplet: str) -> dict[str, Any]:
        [document] = lineage_json(self.root, "loop", triplet)
        return document


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


def test_a_kept_candidate(loop: Loop) -> None:
    assert loop.whole().lineage(KEPT) == {
        "cycle": "loop",
        "triplet": KEPT,
        "iteration": 1,
        "image": {
            "sha256": "0f" * 32,
            "path": f"images/0f/{'0f' * 32}.png",
            "modality": "CT",
            "source": "ward",
            "sourcePath": "scans/7.png",
        },
        "generator": "gemini-3-flash",
        "prompt": {"paradigm": "MetaCognitive", "templateSha256": "feed" * 16},
        "questionType": "finding",
        "question": f"What of {KEPT}?",
        "options": list(OPTIONS),
        "answer": "mass",
        "rationale": "It is solid.",
        "outcome": "ok",
        "error": None,
        "cost": {"attempts": 1, "inputTokens": 0, "outputTokens": 0, "thinkingTokens": None, "usd": 0.0},
        "score": 6.5,
        "scoredBy": {"stage": "reward@0", "digest": loop.reward},
        "keep": True,
        "reasons": [],
        "settled": None,
        "seenBy": ["sft@1", "grpo@1"],
    }


def test_a_students_candidate_says_whose_pictures_it_has_seen(loop: Loop) -> None:
    """And who has learnt from what: a student's table says it row by row."""
    loop.whole()
    told = {"sources": ["ward"], "mayLeave": False}
    taught = [TaughtRow(KEPT, "generated", 1, "0f" * 32, "gemini-3-flash", 0)]
    student = publish(
        loop.root, "distill", 1, tables={TaughtRow: taught}, files={"student.json": told}, cycle="loop"
    ).output_digest
    second = replace(candidate("t002-000000-00"), iteration=2, generator=student_name(1, student))
    publish(loop.root, "generate", 2, tables={Candidate: [second]}, cycle="loop")
    found = loop.lineage("t002-000000-00")
    assert found["generator"] == f"distill@1:{student[:12]}"
    assert found["student"] == {"stage": "distill@1", **told}
    assert loop.lineage(KEPT)["seenBy"] == ["sft@1", "grpo@1", "distill@1"]
    assert "distill@1" not in loop.lineage(REJECTED)["seenBy"]


@pytest.mark.parametrize(
    ("triplet", "score", "reasons", "seen"),
    [
        (REJECTED, -2.25, ["below_threshold"], []),
        (BROKEN, None, ["outcome:invalid_json"], []),
        (PROMPTED, 1.0, ["below_threshold"], ["grpo@1"]),
    ],
)
def test_rejected_candidates(
    loop: Loop, triplet: str, score: float | None, reasons: list[str], seen: list[str]
) -> None:
    row = loop.whole().lineage(triplet)
    assert (row["score"], row["keep"], row["reasons"], row["seenBy"]) == (score, False, reasons, seen)


def test_it_goes_as_far_as_the_loop_has_come(loop: Loop) -> None:
    loop.generated()
    row = loop.lineage(KEPT)
    assert (row["answer"], row["score"], row["keep"], row["seenBy"]) == ("mass", None, None, [])
    loop.scored()
    assert loop.lineage(KEPT)["score"] == 6.5
    loop.curated()
    row = loop.lineage(KEPT)
    assert (row["keep"], row["seenBy"]) == (True, [])


def test_without_the_candidates_the_decisions_are_told(loop: Loop) -> None:
    loop.whole()
    (loop.root / paths.iteration_link("loop", 1, "generate")).resolve().joinpath("manifest.json").unlink()
    row = loop.lineage(KEPT)
    assert (row["question"], row["image"], row["score"], row["keep"]) == (None, None, 6.5, True)
    assert row["seenBy"] == ["sft@1", "grpo@1"]
    assert [row["triplet"] for row in lineage_json(loop.root, "loop")] == [KEPT, REJECTED, BROKEN, PROMPTED]


def test_a_model_that_learnt_from_older_data_of_any_iteration_is_left_out(loop: Loop) -> None:
    curate = {t: publish(loop.root, "curate", t, tables={Decision: []}, cycle="loop").output_digest
              for t in (1, 2)}  # fmt: skip
    for stage, older in (("sft", {}), ("grpo", {"curate-1": "an older one"})):
        inputs = {f"curate-{t}": digest for t, digest in curate.items()} | older
        publish(loop.root, stage, 2, files={"log.json": []}, inputs=inputs, cycle="loop")
    artifacts = CycleArtifacts(loop.root, "loop")
    assert artifacts.has_input("sft-2")
    assert not artifacts.has_input("grpo-2")
    with pytest.raises(CorruptArtifact, match="grpo-2 is not there any more, or of older data; run stage grpo again"):
        artifacts.input("grpo-2")
    with pytest.raises(ConfigError, match="no artifact grpo-3"):
        artifacts.input("grpo-3")


def test_it_says_who_learnt_from_what(trial: tuple[Path, Any]) -> None:
    root, _ = trial
    rows = list(lineage_json(root, "trial"))
    assert len(rows) == 1000
    by_name = {row["triplet"]: row for row in rows}
    for row in rows:
        if row["keep"]:
            expected = ["sft@1", "grpo@1", "sft@2", "grpo@2"] if row["iteration"] == 1 else ["sft@2", "grpo@2"]
            assert row["seenBy"] == expected
        elif row["triplet"] not in ("t1-0", "t2-0"):
            assert row["seenBy"] == []
    assert "grpo@2" in by_name["t2-0"]["seenBy"]  # a prompt of the rollouts, kept or not
    for name in ("t1-0", "t1-3", "t2-7"):
        assert list(lineage_json(root, "trial", name)) == [by_name[name]]


def test_what_is_settled_since_and_who_learnt_it(loop: Loop) -> None:
    """The first iteration learnt what was kept; the second what is settled since: a rejected one in, a kept one out."""
    curate = loop.whole().curated()
    settled = row_of(AnswerPosterior, triplet_id=REJECTED, posterior=[0.9, 0.1], answer_index=0, claim=1,
                     rationale="No.", reward_scores=[2, 1], policy_shares=[1, 0], agreed=True)  # fmt: skip
    doubted = row_of(AnswerPosterior, triplet_id=KEPT, posterior=[0.5, 0.5], claim=1)
    relabel = publish(loop.root, "relabel", 1, tables={AnswerPosterior: [doubted, settled]}, cycle="loop")
    inputs = {"curate-1": curate.output_digest, "relabel-1": relabel.output_digest}
    publish(loop.root, "curate", 2, tables={Decision: []}, cycle="loop")
    publish(loop.root, "sft", 2, files={"log.json": []}, inputs=inputs, cycle="loop")
    row = loop.lineage(REJECTED)
    assert row["seenBy"] == ["sft@2"]
    assert row["settled"] == {
        "answer": "cyst", "posterior": [0.9, 0.1], "agreed": True, "trainingSet": "rescued", "generator": "mass",
        "policy": [1, 0], "reward": [2, 1], "expert": None,
    }  # fmt: skip
    row = loop.lineage(KEPT)
    assert row["seenBy"] == ["sft@1", "grpo@1"], "what nobody is sure of is not learnt again"
    assert (row["settled"]["answer"], row["settled"]["trainingSet"]) == (None, None)
    row = loop.lineage(PROMPTED)
    assert (row["seenBy"], row["settled"]) == (["grpo@1"], None)


def test_parameters_of_another_version_are_named(loop: Loop) -> None:
    loop.generated()
    loop.curated()
    publish(loop.root, "grpo", 1, tables={Rollout: [row_of(Rollout)]}, cycle="loop", parameters={"beta": 1})
    with pytest.raises(CorruptArtifact, match="another version: seed: Field required; run stage grpo again"):
        loop.lineage(PROMPTED)


def test_a_model_of_older_data_has_not_seen_it(loop: Loop) -> None:
    """After `restart curate@1`, sft@1 stays linked until it has run again."""
    loop.whole()
    link = loop.root / paths.iteration_link("loop", 1, "sft")
    path = link.resolve() / "manifest.json"
    document = json.loads(path.read_text())
    document["inputs"] = {"curate-1": "an older one"}
    path.write_text(json.dumps(document))
    assert manifest.load(link.resolve()) is not None
    assert loop.lineage(KEPT)["seenBy"] == ["grpo@1"]


def test_links_out_of_the_workspace_are_not_followed(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> None:
    loop.whole()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    link = loop.root / paths.iteration_link("loop", 1, "sft")
    link.resolve().rename(elsewhere / "sft")
    link.unlink()
    link.symlink_to(elsewhere / "sft")
    assert loop.lineage(KEPT)["seenBy"] == ["grpo@1"]


def test_what_is_not_there_is_told_with_what_is(loop: Loop) -> None:
    loop.generated()
    with pytest.raises(CycleNotFound, match=f"it has 4, from {KEPT} to {PROMPTED}"):
        loop.lineage("t009-000000-00")
    with pytest.raises(CycleNotFound, match="cycles there: loop"):
        list(lineage_json(loop.root, "loup", KEPT))


def test_the_command_prints_json_or_one_line(loop: Loop) -> None:
    loop.whole()
    command = [sys.executable, "-m", "medgr2_jobs.report.lineage", "--workspace", str(loop.root)]
    done = subprocess.run([*command, "loop", KEPT], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == loop.lineage(KEPT)
    assert done.stderr == ""
    everything = subprocess.run([*command, "loop"], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in everything.stdout.splitlines()] == list(lineage_json(loop.root, "loop"))
    for arguments, code in ((["loop", "nothing"], 2), (["nothing", KEPT], 2), (["../loop", KEPT], 78)):
        failed = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (code, "", 1)
