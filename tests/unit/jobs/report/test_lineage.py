"""The story of one candidate: as far as it has come, and only what is true of the present data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.fake_artifacts import publish

from medgr2_api import paths
from medgr2_api.stage_contract import ArtifactRef
from medgr2_jobs.prompts import answers
from medgr2_jobs.report.cycle_artifacts import NotThere
from medgr2_jobs.report.lineage import story
from medgr2_jobs.store import manifest

OPTIONS = ["cyst", "mass"]
KEPT, REJECTED, BROKEN, PROMPTED = "t001-000000-00", "t001-000001-00", "t001-000002-00", "t001-000003-00"
SCORES = {KEPT: 6.5, REJECTED: -2.25, PROMPTED: 1.0}


def candidate(name: str, **changes: Any) -> dict[str, Any]:
    return {"triplet_id": name, "iteration": 1, "image_sha256": f"{name[-5]}f" * 32, "modality": "CT",
            "question_type": "finding", "question": f"What of {name}?", "options": OPTIONS, "answer_index": 1,
            "rationale": "It is solid.", "response": "", "paradigm": "MetaCognitive", "template_sha256": "feed" * 16,
            "generator": "gemini-3-flash", "outcome": "ok", "attempts": 1, "input_tokens": 0, "output_tokens": 0,
            "usd": 0.0, **changes}  # fmt: skip


CANDIDATES = [candidate(KEPT), candidate(REJECTED), candidate(BROKEN, outcome="unparsable"), candidate(PROMPTED)]


def lineage_row(row: dict[str, Any], reward: str) -> dict[str, Any]:
    copied = ("triplet_id", "iteration", "image_sha256", "question", "paradigm", "template_sha256", "generator")
    reasons = {REJECTED: ["below_threshold"], PROMPTED: ["below_threshold"], BROKEN: ["outcome:unparsable"]}
    name = row["triplet_id"]
    return {**{key: row[key] for key in copied}, "score": SCORES.get(name), "reward_digest": reward,
            "keep": name == KEPT, "reasons": reasons.get(name, [])}  # fmt: skip


def training_row(name: str) -> dict[str, Any]:
    return {"row_id": name, "origin": "generated", "iteration": 1, "image_sha256": "", "modality": "CT",
            "question_type": "", "question": "", "options": OPTIONS, "answer_index": 0, "response": "",
            "score": None}  # fmt: skip


class Loop:
    """A cycle that gets on stage by stage."""

    def __init__(self, root: Path) -> None:
        self.root = root
        image = {"image_sha256": "0f" * 32, "width": 1, "height": 1, "modality": "CT", "source": "ward",
                 "source_path": "scans/7.png", "split": "train", "allow_external": False}  # fmt: skip
        publish(root, "prepare", 0, tables={"images": [image]}, cycle="loop")
        self.reward = publish(root, "reward", 0, files={"x.json": 1}, cycle="loop").output_digest

    def generated(self) -> None:
        publish(self.root, "generate", 1, tables={"candidates": CANDIDATES}, cycle="loop")

    def scored(self) -> None:
        rows = [{"triplet_id": name, "score": score} for name, score in SCORES.items()]
        publish(self.root, "score", 1, tables={"scores": rows}, cycle="loop")

    def curated(self) -> ArtifactRef:
        rows = [lineage_row(row, self.reward) for row in CANDIDATES]
        tables = {"lineage": rows, "training": [training_row(KEPT)]}
        return publish(self.root, "curate", 1, tables=tables, cycle="loop")

    def trained(self) -> None:
        publish(self.root, "sft", 1, files={"log.json": []}, cycle="loop")
        row = CANDIDATES[3]
        text = answers.prompt_text(row["question"], OPTIONS, answers.AnswerFormat.LETTER)
        rollout = {"step": 1, "prompt_id": answers.Prompt(row["image_sha256"], text).prompt_id, "completion": "",
                   "reward": 0.5, "reward_model": 0.5, "match": None, "parsed": True}  # fmt: skip
        publish(self.root, "grpo", 1, tables={"rollouts": [rollout]}, parameters={"answerFormat": "Letter"},
                cycle="loop")  # fmt: skip

    def whole(self) -> Loop:
        self.generated()
        self.scored()
        self.curated()
        self.trained()
        return self

    def story(self, triplet: str) -> dict[str, Any]:
        return story(self.root, "loop", triplet)


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


def test_a_kept_candidate(loop: Loop) -> None:
    assert loop.whole().story(KEPT) == {
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
        "options": OPTIONS,
        "answer": "mass",
        "rationale": "It is solid.",
        "outcome": "ok",
        "error": None,
        "cost": {"attempts": 1, "inputTokens": 0, "outputTokens": 0, "thinkingTokens": None, "usd": 0.0},
        "score": 6.5,
        "scoredBy": {"stage": "reward@0", "digest": loop.reward},
        "keep": True,
        "reasons": [],
        "seenBy": ["sft@1", "grpo@1"],
    }


@pytest.mark.parametrize(
    ("triplet", "score", "reasons", "seen"),
    [
        (REJECTED, -2.25, ["below_threshold"], []),
        (BROKEN, None, ["outcome:unparsable"], []),
        (PROMPTED, 1.0, ["below_threshold"], ["grpo@1"]),
    ],
)
def test_rejected_candidates(
    loop: Loop, triplet: str, score: float | None, reasons: list[str], seen: list[str]
) -> None:
    told = loop.whole().story(triplet)
    assert (told["score"], told["keep"], told["reasons"], told["seenBy"]) == (score, False, reasons, seen)


def test_a_story_is_told_as_far_as_it_has_come(loop: Loop) -> None:
    loop.generated()
    told = loop.story(KEPT)
    assert (told["answer"], told["score"], told["keep"], told["seenBy"]) == ("mass", None, None, [])
    loop.scored()
    assert loop.story(KEPT)["score"] == 6.5
    loop.curated()
    told = loop.story(KEPT)
    assert (told["keep"], told["seenBy"]) == (True, [])


def test_what_was_pruned_is_not_needed(loop: Loop) -> None:
    loop.whole()
    (loop.root / paths.iteration_link("loop", 1, "generate")).resolve().joinpath("manifest.json").unlink()
    told = loop.story(KEPT)
    assert (told["question"], told["options"], told["score"]) == (f"What of {KEPT}?", None, 6.5)


def test_a_model_of_older_data_has_not_seen_it(loop: Loop) -> None:
    """After `restart curate@1`, sft@1 stays linked until it has run again."""
    loop.whole()
    link = loop.root / paths.iteration_link("loop", 1, "sft")
    path = link.resolve() / "manifest.json"
    document = json.loads(path.read_text())
    document["inputs"] = {"curate-1": "an older one"}
    path.write_text(json.dumps(document))
    assert manifest.load(link.resolve()) is not None
    assert loop.story(KEPT)["seenBy"] == ["grpo@1"]


def test_links_out_of_the_workspace_are_not_followed(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> None:
    loop.whole()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    link = loop.root / paths.iteration_link("loop", 1, "sft")
    link.resolve().rename(elsewhere / "sft")
    link.unlink()
    link.symlink_to(elsewhere / "sft")
    assert loop.story(KEPT)["seenBy"] == ["grpo@1"]


def test_what_is_not_there_is_told_with_what_is(loop: Loop) -> None:
    loop.generated()
    with pytest.raises(NotThere, match=f"it has 4, from {KEPT} to {PROMPTED}"):
        loop.story("t009-000000-00")
    with pytest.raises(NotThere, match="cycles there: loop"):
        story(loop.root, "loup", KEPT)


def test_the_command_prints_json_or_one_line(loop: Loop) -> None:
    loop.whole()
    command = [sys.executable, "-m", "medgr2_jobs.report.lineage", "--workspace", str(loop.root)]
    done = subprocess.run([*command, "loop", KEPT], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == loop.story(KEPT)
    assert done.stderr == ""
    for arguments, code in ((["loop", "nothing"], 2), (["nothing", KEPT], 2), (["../loop", KEPT], 78)):
        failed = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (code, "", 1)
