"""Stage grpo and its judge: when it trains, what goes on, and what is published; on a random tiny model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medgr2_api.stage_contract import ArtifactRef, StageResult
from medgr2_jobs.errors import Checkpointed
from medgr2_jobs.evaluate.release import Release, TrainedOn
from medgr2_jobs.policy.release_judge import ReleaseJudge
from medgr2_jobs.runner import publishing
from medgr2_jobs.stages import grpo
from medgr2_jobs.store.artifact import ArtifactReader
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.evaluation import Prediction, Scoring
from medgr2_jobs.store.rows.prepared import Item
from medgr2_jobs.store.rows.training import RewardAnswer, Rollout
from tests.support import policy_fixtures
from tests.support.policy_fixtures import PolicyWorkspace, publish_rows


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> PolicyWorkspace:
    return policy_fixtures.build(tmp_path_factory.mktemp("workspace"))


def questions(workspace: PolicyWorkspace) -> list[Item]:
    prepared = ArtifactReader(workspace.root, workspace.refs["prepare"])
    return [item for item in prepared.rows(Item) if item.split is Split.VALIDATION]


def never_right(workspace: PolicyWorkspace) -> ArtifactRef:
    """An R that prefers a wrong option, always. It has no model: whoever trains with it fails."""
    rows = [
        RewardAnswer(item.item_id, item.image_sha256, item.answer_index,
                     tuple(float(at != item.answer_index) for at in range(len(item.options))))
        for item in questions(workspace)
    ]  # fmt: skip
    return publish_rows(workspace, "reward", rows)


def judged_badly(workspace: PolicyWorkspace) -> PolicyWorkspace:
    return replace(workspace, refs={**workspace.refs, "reward": never_right(workspace)})


def decided(found: ArtifactReader) -> Release:
    return Release.from_json(found.file("release.json").read_text())


def test_a_policy_that_beats_its_judge_is_not_trained(workspace: PolicyWorkspace) -> None:
    bad = judged_badly(workspace)
    request = bad.grpo(whenPolicyBeatsReward="Skip", release="Best", name="skipped")
    found = bad.run(request)
    assert found is not None
    assert [part.name for part in found.manifest.parts] == ["release.json"]
    assert found.manifest.promoted is False
    assert found.manifest.counters["skipped"] == 1
    assert (decided(found).trained_on, decided(found).goes_on) == (TrainedOn.NOTHING, "sft")
    assert found.manifest.message == decided(found).message
    assert found.manifest.message.startswith("skipped: sft beats the reward model, ")
    again: StageResult = publishing.result(found.manifest, reused=True)
    assert (again.promoted, again.message) == (False, found.manifest.message), "also where it is reused"


def test_it_learns_from_the_trusted_answers_alone(workspace: PolicyWorkspace) -> None:
    bad = judged_badly(workspace)
    found = bad.run(bad.grpo({"max_steps": 2}, whenPolicyBeatsReward="TrustedOnly", name="trusted"))
    assert found is not None
    counters = found.manifest.counters
    assert counters["prompts"] == counters["prompts_trusted"] == len(workspace.training)
    assert counters["trusted_answers_only"] == 1
    assert "variance_share_reward_model" not in counters
    assert {row.reward for row in found.rows(Rollout)} <= {0.0, 1.0}
    assert found.manifest.promoted is True, "release: Last"


def test_a_judge_that_knows_more_trains(workspace: PolicyWorkspace) -> None:
    """R of the fixtures is right about every validation question."""
    found = workspace.run(workspace.grpo({"max_steps": 1}, whenPolicyBeatsReward="Skip", name="judged"))
    assert found is not None
    release = decided(found)
    assert (release.trained_on, release.reward) == (TrainedOn.EVERYTHING, 1.0)
    assert release.sft is not None
    assert release.sft < 1
    assert found.has("model/config.json")


@pytest.mark.parametrize(("shift", "goes_on"), [(-1, "sft"), (0, "grpo")])
def test_the_better_checkpoint_goes_on(
    workspace: PolicyWorkspace, monkeypatch: pytest.MonkeyPatch, shift: int, goes_on: str
) -> None:
    """GRPO's answers stand beside those of the checkpoint it came from; both are asked for real."""
    asked: list[tuple[str, np.ndarray]] = []
    original = ReleaseJudge._right

    def one_less(self: ReleaseJudge, folder: Any, phase: str, step: int) -> np.ndarray:
        right = original(self, folder, phase, step)
        asked.append((phase, right))
        if phase == "measure grpo":
            right = asked[0][1].copy()
            right[int(right.argmax())] += shift
        return right

    monkeypatch.setattr(ReleaseJudge, "_right", one_less)
    found = workspace.run(workspace.grpo({"max_steps": 1}, release="Best", name=f"best {shift}"))
    assert found is not None
    assert [phase for phase, _ in asked] == ["measure sft", "measure grpo"]
    assert (found.manifest.promoted, decided(found).goes_on) == (goes_on == "grpo", goes_on)
    assert f"{goes_on} goes on: grpo " in found.manifest.message
    assert found.has("model/config.json"), "one that does not go on is published too, for inspection"


def test_what_is_measured_is_what_evaluate_measures(workspace: PolicyWorkspace) -> None:
    found = workspace.run(workspace.grpo({"max_steps": 1}, release="Best", name="measured"))
    assert found is not None
    refs = {**workspace.refs, "grpo": replace_ref(workspace, found)}
    measured = replace(workspace, refs=refs)
    rows: list[Prediction] = []
    for stage, role in (("evaluate", "sft"), ("evaluategrpo", "grpo")):
        asked = measured.run(measured.request(stage, {"iteration": 1, "controls": []}, ["prepare", role]))
        assert asked is not None
        rows += asked.rows(Prediction)
    right = accuracies(rows)
    release = decided(found)
    assert {"sft": release.sft, "grpo": release.grpo} == pytest.approx(right)


def replace_ref(workspace: PolicyWorkspace, found: ArtifactReader) -> ArtifactRef:
    return ArtifactRef(stage="grpo", iteration=1, path=found.ref.path, output_digest=found.digest)


def accuracies(rows: Sequence[Prediction]) -> dict[str, float]:
    """Macro accuracy of each checkpoint, by hand."""
    found: dict[str, dict[str, list[bool]]] = {}
    for row in rows:
        if row.scoring is Scoring.OPTION_LOGPROB:
            found.setdefault(row.checkpoint, {}).setdefault(row.modality, []).append(row.correct)
    return {name: float(np.mean([np.mean(part) for part in by.values()])) for name, by in found.items()}


def test_evaluate_measures_what_was_published(workspace: PolicyWorkspace) -> None:
    bad = judged_badly(workspace)
    skipped = bad.run(bad.grpo(whenPolicyBeatsReward="Skip", name="skipped for evaluate"))
    assert skipped is not None
    measured, refs = replace(bad, refs={**bad.refs, "grpo": replace_ref(bad, skipped)}), dict[str, ArtifactRef]()
    for stage, role, checkpoints in (("evaluate", "sft", {"sft"}), ("evaluategrpo", "grpo", set())):
        request = measured.request(stage, {"iteration": 1, "controls": []}, ["prepare", role], name="skipped")
        asked = measured.run(request)
        assert asked is not None
        assert {row.checkpoint for row in asked.rows(Prediction)} == checkpoints
        refs[stage] = asked.ref.model_copy(update={"output_digest": asked.digest})
    counted = replace(measured, refs={**measured.refs, **refs})
    found = counted.run(counted.request("measure", {"iteration": 1}, ["prepare", "evaluate", "evaluategrpo"]))
    assert found is not None
    assert {row["checkpoint"] for row in json.loads(found.file("results.json").read_text())} == {"sft"}


def test_nothing_is_measured_that_decides_nothing(workspace: PolicyWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReleaseJudge, "_right", lambda *_: pytest.fail("nobody asked"))
    found = workspace.run(workspace.grpo({"max_steps": 1}, name="literal"))
    assert found is not None
    assert json.loads(found.file("release.json").read_text())["sft"] is None
    assert (found.manifest.promoted, found.manifest.message) == (True, "")


def test_a_stop_while_it_measures_loses_nothing(workspace: PolicyWorkspace) -> None:
    bad = judged_badly(workspace)
    request = bad.grpo(whenPolicyBeatsReward="Skip", name="stopped")
    context = bad.context(request)
    context.stop.set()
    with pytest.raises(Checkpointed):
        grpo.run(context)
    assert not list(context.writer.folder.rglob("release.json"))
    found, straight = bad.run(request), bad.run(bad.grpo(whenPolicyBeatsReward="Skip", name="straight"))
    assert found is not None
    assert straight is not None
    assert found.digest == straight.digest
