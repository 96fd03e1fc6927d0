"""The real loop, small: complete, reproducible, and unimpressed by `kill -9`."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.support.loop_fixtures import Loop, running_stages

pytestmark = pytest.mark.slow

STAGES = {"prepare@0", "reward@0", "evaluate@0", "measure@0"} | {
    f"{name}@{t}"
    for t in (1, 2)
    for name in (
        *("generate", "score", "curate", "sft", "grpo", "relabel", "reward"),
        *("evaluate", "evaluategrpo", "measure", "report"),
    )
} - {"relabel@2", "reward@2"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    loop = Loop(tmp_path_factory.mktemp("loop"))
    code, output = loop.run()
    assert code == 0, output
    assert "accuracy on test phantoms" in output
    assert "report.md" in output
    return loop


def test_every_stage_publishes_and_the_report_can_be_read(undisturbed: Loop) -> None:
    assert set(undisturbed.digests()) == STAGES
    assert all(undisturbed.digests().values())
    report = undisturbed.workspace / "cycles" / "loop" / "report"
    rows = json.loads((report / "results.json").read_text())
    keys = {
        "cycle", "iteration", "checkpoint", "split", "benchmark", "condition", "scoring", "slice", "metric",
        "value", "low", "high", "n",
    }  # fmt: skip
    assert all(set(row) == keys for row in rows)
    assert {row["checkpoint"] for row in rows} == {"base", "sft", "grpo"}
    conditions = {"real", "blank", "shuffled", "options_only", "option_prior", "chance"}
    assert {row["condition"] for row in rows} == conditions
    assert {row["scoring"] for row in rows} >= {"option_logprob", "greedy"}
    assert {row["split"] for row in rows} == {"validation", "test"}
    text = (report / "report.md").read_text()
    assert "right after, %" in text, "the scripted generator knows the truth, so the filter's precision is known"
    for figure in (report / "figures").glob("*.png"):
        assert figure.read_bytes().startswith(b"\x89PNG")


def test_same_seed_same_bytes_although_everything_is_killed(undisturbed: Loop, tmp_path: Path) -> None:
    """Every stage is killed once, young but at a random moment; the run itself during three of them."""
    loop = Loop(tmp_path)
    rng = random.Random(11)
    stage_kills = {name: rng.uniform(0.02, 0.5) for name in STAGES}
    run_kills = {name: rng.uniform(0.02, 0.5) for name in ("reward@0", "sft@1", "grpo@1")}
    process, killed, killed_runs = loop.start(), set(), 0
    deadline = time.monotonic() + 900
    while process.poll() is None:
        assert time.monotonic() < deadline, "the run hangs"
        for pid, name, age in running_stages(process.pid):
            if name in run_kills:
                if age >= run_kills[name]:
                    del run_kills[name]
                    process.kill()
                    process.communicate()
                    killed_runs += 1
                    process = loop.start()
                    break
            elif name in stage_kills and age >= stage_kills[name]:
                del stage_kills[name]
                os.kill(pid, signal.SIGKILL)
                killed.add(name)
        time.sleep(0.01)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert killed_runs == 3
    assert {"prepare@0", "reward@0", "sft@1", "grpo@1"} <= killed, "long enough to be caught every time"
    assert loop.digests() == undisturbed.digests()
