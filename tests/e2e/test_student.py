"""The real loop, small, with a student that takes tasks over: who wrote what, whose pictures stand behind it, and that
`kill -9` changes nothing of either."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from medgr2_jobs.distill.task_split import in_probe
from medgr2_jobs.report.cycle_artifacts import CycleArtifacts
from medgr2_jobs.store.rows.candidates import Candidate, CandidateOutcome, is_student, student_name
from tests.support.cycle_documents import tiny_cycle
from tests.support.loop_fixtures import Loop, running_stages

pytestmark = pytest.mark.slow

_FEW = {"per_device_train_batch_size": 8, "max_steps": 8}
#: Eighty steps teach a student to write triplets, not to be right: only bounds that ask for no more let it through.
_BOUNDS = {
    "minTasks": 1, "minParseRate": 0.5, "minAcceptanceGain": -1, "maxEntropyLoss": 1, "maxOptionPriorGain": 1,
    "minDistinctRatio": 0, "maxAgreementLoss": 1, "maxGoldLoss": 1, "minKindRatio": 0,
}  # fmt: skip
_ATTEMPTS = 8
CYCLE = tiny_cycle(
    iterations=2,
    data={
        "sources": [
            {"name": "seed", "format": "Phantom", "phantom": {"images": 32}},
            {"name": "private", "format": "Phantom", "role": "Images", "allowExternal": False,
             "phantom": {"images": 64}},
        ],
        "split": {"validationFraction": 0.25},
        "benchmarks": [{"name": "phantoms", "format": "Phantom", "phantom": {"images": 4}}],
    },
    generator={
        "scripted": {},
        "candidates": 160,
        "questionsPerImage": 4,
        "distillation": {
            "share": 0.7,
            "maxAttempts": _ATTEMPTS,
            "training": {
                "learningRate": 3e-3,
                "trainer": {"max_steps": 80, "per_device_train_batch_size": 16, "save_steps": 20},
            },
            "promotion": _BOUNDS,
        },
    },
    curation={"selection": {"strategy": "TopK", "k": 100}, "correct": False},
    rewardModel={
        "baseModel": "builtin://tiny-qwen2.5-vl?captions=answers&steps=12&images=32",
        "training": {"trainer": _FEW},
    },
    policy={"baseModel": "builtin://tiny-qwen2.5-vl?steps=12&images=32", "sft": {"trainer": _FEW}},
    failurePolicy={"maxRetries": 20, "backoffSeconds": 0.05, "maxBackoffSeconds": 0.1},
    stages=[
        {"name": "generate", "shards": 2},
        *({"name": name, "enabled": False} for name in ("reward", "grpo", "preferences", "evaluate", "report")),
    ],
)  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    loop = Loop(tmp_path_factory.mktemp("loop"), CYCLE)
    code, output = loop.run()
    assert code == 0, output
    return loop


def lineage(loop: Loop) -> dict[str, dict[str, Any]]:
    """What `medgr2 lineage` says of every candidate, by its id."""
    output = loop.command("lineage", loop.name)
    return {row["triplet"]: row for row in map(json.loads, output.splitlines())}


def test_the_promoted_student_generates_its_share(undisturbed: Loop) -> None:
    artifacts = CycleArtifacts(undisturbed.workspace, undisturbed.name)
    [distill] = [stage for stage in undisturbed.status()["stages"] if stage["name"] == "distill"]
    assert (distill["iteration"], distill["promoted"]) == (1, True)
    first, second = (artifacts.input(f"generate-{t}").rows(Candidate) for t in (1, 2))
    assert {row.generator for row in first} == {"scripted"}
    name = student_name(1, distill["outputDigest"])
    own = [row for row in second if is_student(row.generator)]
    assert {row.generator for row in second} == {"scripted", name}
    assert 0.5 < len(own) / len(second) < 0.75, "0.7 of what is not the probe's"
    assert not any(in_probe(row.image_sha256) for row in own)
    attempts = {row.attempts for row in own if row.outcome is CandidateOutcome.OK}
    assert len(attempts) > 1, "what failed is asked again, and a triplet comes of it"
    assert {row.attempts for row in own if row.outcome is not CandidateOutcome.OK} <= {_ATTEMPTS}


def test_what_is_learnt_from_it_says_whose_pictures_stand_behind(undisturbed: Loop) -> None:
    """All of the student's rows, also those about open pictures: it has seen private ones."""
    rows = lineage(undisturbed)
    learnt = [row for row in rows.values() if is_student(row["generator"]) and "sft@2" in row["seenBy"]]
    assert {row["image"]["source"] for row in learnt} == {"seed", "private"}
    told = {"stage": "distill@1", "sources": ["private", "seed"], "mayLeave": False}
    assert all(row["student"] == told for row in rows.values() if is_student(row["generator"]))
    assert all("student" not in row for row in rows.values() if not is_student(row["generator"]))
    taught = {name for name, row in rows.items() if "distill@1" in row["seenBy"]}
    assert taught
    assert all(rows[name]["iteration"] == 1 and rows[name]["keep"] for name in taught)


def test_none_of_it_is_given_to_an_expert_outside(undisturbed: Loop, tmp_path: Path) -> None:
    rows = lineage(undisturbed)

    def writers(*options: str) -> set[str]:
        """Of the triplets in an exported review, about pictures of source seed, which may leave."""
        folder = tmp_path / f"review{len(options)}"
        undisturbed.command("review", "export", undisturbed.name, str(folder), "--iteration", "2", *options)
        exported = [json.loads(line)["triplet_id"] for line in (folder / "triplets.jsonl").read_text().splitlines()]
        return {
            rows[name]["generator"].partition("@")[0] for name in exported if rows[name]["image"]["source"] == "seed"
        }

    assert writers() == {"scripted"}
    assert writers("--on-site") == {"scripted", "distill"}


def test_same_bytes_although_the_student_and_the_run_are_killed(undisturbed: Loop, tmp_path: Path) -> None:
    """While it learns, while it is asked, and the run itself while it learns: twice each."""
    loop = Loop(tmp_path, CYCLE)
    moments = {"distill@1": [3.0, 1.0], "generate@2": [2.0, 1.0]}
    process, killed, deadline = loop.start(), 0, time.monotonic() + 900
    while process.poll() is None:
        assert time.monotonic() < deadline, "the run hangs"
        for pid, name, age in running_stages(process.pid):
            if moments.get(name) and age >= moments[name][0]:
                moments[name].pop(0)
                killed += 1
                os.kill(pid, signal.SIGKILL)
                if name == "distill@1" and not moments[name]:
                    process.kill()
                    process.communicate()
                    process = loop.start()
                    break
        time.sleep(0.01)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert killed == 4
    assert loop.digests() == undisturbed.digests()
    assert lineage(loop) == lineage(undisturbed)
