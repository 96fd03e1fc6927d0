"""`medgr2 run` from outside: killed, interrupted, raced, restarted. The stages are fakes, everything else is real."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

RUN = [sys.executable, str(Path(__file__).with_name("fake_run.py"))]

CYCLE: dict[str, Any] = {
    "apiVersion": "medgr2.io/v1alpha1",
    "kind": "MedGR2Cycle",
    "metadata": {"name": "loop"},
    "spec": {
        "preset": "Tiny",
        "iterations": 2,
        "workspace": {"persistentVolumeClaim": {"claimName": "x"}},
        "data": {
            "sources": [{"name": "seed", "format": "Phantom", "phantom": {"images": 4}}],
            "benchmarks": [{"name": "test", "format": "Phantom", "phantom": {"images": 4}}],
        },
        "generator": {"scripted": {}},
        "rewardModel": {"baseModel": "builtin://tiny-qwen2.5-vl"},
        "policy": {"baseModel": "builtin://tiny-qwen2.5-vl"},
        "failurePolicy": {"maxRetries": 50, "maxInfraRestarts": 200, "backoffSeconds": 0.01, "maxBackoffSeconds": 0.05},
        "stages": [{"name": "generate", "shards": 2}],
    },
}


class Workspace:
    """A workspace with a cycle file, and the ledger the fake stages keep."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "cycle.yaml"
        self.write(CYCLE)

    def write(self, document: dict[str, Any]) -> None:
        self.file.write_text(yaml.safe_dump(document))

    def command(self, *arguments: str) -> list[str]:
        return [*RUN, "run", str(self.file), "--workspace", str(self.root / "ws"), "--plain", *arguments]

    def start(self, *arguments: str, step: float = 0.01) -> subprocess.Popen[str]:
        environment = {**os.environ, "FAKE_STEP_SECONDS": str(step)}
        return subprocess.Popen(
            self.command(*arguments), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )

    def run(self, *arguments: str, step: float = 0.002) -> tuple[int, str]:
        process = self.start(*arguments, step=step)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def ledger(self, what: str = "end") -> list[dict[str, Any]]:
        path = self.root / "ws" / "test" / "ledger.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [entry for entry in map(json.loads, lines) if entry["what"] == what]

    def state(self, name: str = "loop") -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.root / "ws" / "cycles" / name / "state.json").read_text())
        return document

    def digests(self, name: str = "loop") -> dict[str, str]:
        return {f"{s['name']}@{s['iteration']}": s["outputDigest"] for s in self.state(name)["status"]["stages"]}


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("undisturbed"))
    code, output = made.run()
    assert code == 0, output
    return made


EXPECTED = {"prepare@0", "reward@0", "evaluate@0"} | {
    f"{name}@{t}"
    for t in (1, 2)
    for name in ("generate", "score", "curate", "sft", "grpo", "preferences", "reward", "evaluate", "report")
}


def test_whole_graph_runs_once(undisturbed: Workspace) -> None:
    counts = Counter(entry["stage"] for entry in undisturbed.ledger())
    assert set(counts) == EXPECTED
    assert counts.pop("generate@1") == counts.pop("generate@2") == 2  # two shards
    assert set(counts.values()) == {1}
    status = undisturbed.state()["status"]
    assert status["phase"] == "Complete"
    assert status["best"]["macroAccuracy"] == pytest.approx(0.65)


def test_same_command_again_does_nothing(undisturbed: Workspace) -> None:
    before = len(undisturbed.ledger("start"))
    code, _ = undisturbed.run()
    assert code == 0
    assert len(undisturbed.ledger("start")) == before


def test_kill_9_of_the_run_at_random_moments(space: Workspace, undisturbed: Workspace) -> None:
    rng = random.Random(5)
    kills = 0
    for _ in range(60):
        process = space.start(step=0.03)  # long enough for several kills on any machine
        try:
            process.wait(timeout=0.35 + rng.random() * 0.9)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    code, output = space.run()
    assert code == 0, output
    assert kills >= 3
    assert space.digests() == undisturbed.digests()
    counts = Counter((entry["stage"], entry["pid"]) for entry in space.ledger())
    assert set(counts.values()) == {1}
    assert "Resource temporarily unavailable" not in _logs(space), "two writers of one stage at the same time"


def test_kill_9_of_stages_at_random_moments(space: Workspace, undisturbed: Workspace) -> None:
    rng = random.Random(6)
    process = space.start(step=0.03)
    killed = 0
    while process.poll() is None and killed < 12:
        time.sleep(0.1 + rng.random() * 0.2)
        started, ended = space.ledger("start"), {entry["pid"] for entry in space.ledger()}
        running = [entry["pid"] for entry in started if entry["pid"] not in ended]
        for pid in running[-1:]:
            try:
                os.kill(pid, signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                pass
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert killed >= 3
    assert space.digests() == undisturbed.digests()


def test_kill_9_of_the_zygote(space: Workspace, undisturbed: Workspace) -> None:
    process = space.start(step=0.03)
    while not space.ledger("start"):
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "stage server ended (signal SIGKILL)" in output.replace("\n", " ") or "SIGKILL" in output
    assert space.digests() == undisturbed.digests()


def test_interrupt_checkpoints_and_the_same_command_goes_on(space: Workspace, undisturbed: Workspace) -> None:
    process = space.start(step=0.05)
    while not space.ledger():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "the same command goes on" in output
    assert space.state()["status"]["phase"] == "Suspended"
    assert "suspend" not in space.state()["spec"] or space.state()["spec"]["suspend"] is False
    code, output = space.run()
    assert code == 0, output
    assert space.digests() == undisturbed.digests()


def test_second_run_is_refused_with_the_pid_of_the_first(space: Workspace) -> None:
    first = space.start(step=0.1)
    while not space.ledger("start"):
        time.sleep(0.05)
    code, output = space.run()
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert code == 2
    assert str(first.pid) in output


def test_a_permanent_failure_ends_the_run_with_its_message(space: Workspace) -> None:
    folder = space.root / "ws" / "test"
    folder.mkdir(parents=True)
    (folder / "fail-curate@1").write_text("row 7, field question: is empty")
    code, output = space.run()
    assert code == 65, output
    assert "row 7, field question: is empty" in output.replace("\n", "")
    assert space.state()["status"]["phase"] == "Failed"
    assert not [entry for entry in space.ledger("start") if entry["stage"] == "sft@1"]


def test_a_cycle_that_differs_in_one_parameter_reuses_the_rest(space: Workspace) -> None:
    assert space.run()[0] == 0
    before = len(space.ledger())
    other = json.loads(json.dumps(CYCLE))
    other["metadata"]["name"] = "other"
    other["spec"]["policy"]["grpo"] = {"klCoefficient": 0.5}
    space.write(other)
    code, output = space.run()
    assert code == 0, output
    ran = {entry["stage"] for entry in space.ledger()[before:]}
    dependent = {f"{name}@{t}" for t in (1, 2) for name in ("grpo", "preferences", "reward", "evaluate", "report")}
    # R⁽¹⁾ differs, so what it scores in the second iteration differs
    assert ran == dependent | {"score@2", "curate@2", "sft@2"}
    assert space.state("other")["status"]["usage"]["reusedStages"] == len(EXPECTED) - len(ran)


def test_restart_from_reruns_exactly_that_and_what_depends_on_it(space: Workspace) -> None:
    assert space.run()[0] == 0
    before = len(space.ledger())
    code, output = space.run("--restart-from", "sft@2")
    assert code == 0, output
    ran = sorted(entry["stage"] for entry in space.ledger()[before:])
    assert ran == ["evaluate@2", "grpo@2", "preferences@2", "report@2", "reward@2", "sft@2"]


def test_iterations_may_be_raised_after_the_end_but_not_lowered(space: Workspace) -> None:
    shorter = json.loads(json.dumps(CYCLE))
    shorter["spec"]["iterations"] = 1
    space.write(shorter)
    assert space.run()[0] == 0
    space.write(CYCLE)
    code, output = space.run()
    assert code == 0, output
    assert {entry["stage"] for entry in space.ledger()} == EXPECTED
    space.write(shorter)
    code, output = space.run()
    assert code == 2
    assert "iterations may only grow" in output


def _logs(space: Workspace) -> str:
    return "\n".join(path.read_text() for path in (space.root / "ws").glob("cycles/*/logs/*.log"))


def test_a_pause_waits_for_approval(space: Workspace) -> None:
    paused = json.loads(json.dumps(CYCLE))
    paused["spec"] |= {"iterations": 1, "pauseBefore": ["sft"]}
    space.write(paused)
    code, output = space.run()
    assert code == 0
    assert "sft@1" in output
    assert "spec.approved" in output
    assert not [entry for entry in space.ledger("start") if entry["stage"] == "sft@1"]
    paused["spec"]["approved"] = [{"iteration": 1, "stage": "sft"}]
    space.write(paused)
    code, output = space.run()
    assert code == 0, output
    assert space.state()["status"]["phase"] == "Complete"
