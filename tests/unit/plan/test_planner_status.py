"""The status stays small, and planning imports nothing that does something."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from tests.support.simulator_helpers import finish, make_simulator, reconcile, record, restart, run, until

from medgr2_api.stage_contract import Progress
from medgr2_api.status import CycleStatus
from medgr2_operator.plan.planner import plan
from medgr2_operator.plan.status_compaction import LIMIT_BYTES, size
from medgr2_operator.plan.types import Observed


def test_twenty_iterations_stay_small() -> None:
    w = make_simulator(iterations=20)
    sizes = []
    for t in range(1, 21):
        until(w, "report", t)
        sizes.append(size(w.status))
    finish(w)
    assert max(*sizes, size(w.status)) < LIMIT_BYTES
    old = record(w, "sft", 3)
    assert old.output_digest
    assert (old.job_name, old.completion_time) == ("", None)
    assert record(w, "sft", 20).job_name


def test_the_worst_status_still_fits() -> None:
    w = make_simulator(iterations=20)
    finish(w)
    long = [
        r.model_copy(update={"message": "ä" * 512, "reason": "R" * 64, "job_name": "j" * 52, "token": "t" * 32})
        for r in w.status.stages
    ]
    full = w.status.model_copy(update={"stages": long, "restart_tokens": [f"{i:032d}" for i in range(200)]})
    made = plan(w.cycle().model_copy(update={"status": full}), w.observe(), w.now)
    assert size(made.status) < LIMIT_BYTES
    assert all(r.output_digest for r in made.status.stages)
    assert CycleStatus.model_validate(made.status.dump()) == made.status


def test_progress_is_cut_to_what_people_look_at() -> None:
    w = make_simulator()
    found = run(w, until(w, "generate"))
    (seen,) = [j for j in w.observe().jobs if j.uid == found.uid]
    figures = {f"m{i:02d}": 1.0 for i in range(50)} | {"generatorUSD": 0.25}
    told = Progress(phase="p" * 500, step=1, total=2, metrics=figures)
    jobs = (*(j for j in w.observe().jobs if j is not seen), replace(seen, progress=told))
    made = plan(w.cycle(), Observed(jobs, w.observe().pods), w.now)
    kept = next(r for r in made.status.stages if r.name == "generate").progress
    assert kept is not None
    assert (kept.step, len(kept.phase), len(kept.metrics)) == (1, 64, 9)
    after = plan(w.cycle().model_copy(update={"status": made.status}), Observed(), w.now)
    assert after.status.usage.generator_usd == 0.25, "its own account is lost; what it last said of itself counts"


def test_tokens_are_bounded() -> None:
    w = make_simulator()
    w.status = w.status.model_copy(update={"restart_tokens": [f"t{i}" for i in range(200)]})
    restart(w, "prepare", 0, "one-more")
    assert "RestartIgnored" in [event.reason for event in reconcile(w).events]
    assert len(w.status.restart_tokens) == 200


def test_imports_nothing_that_does_something() -> None:
    code = (
        "import sys; import medgr2_operator.plan.planner; "
        "print([m for m in ('torch', 'kubernetes', 'kopf', 'medgr2_jobs', 'random', 'time', 'socket') "
        "if m in sys.modules and m not in before])"
    )
    preload = "import sys, pydantic, json, random, time, socket, medgr2_api.cycle; before = set(sys.modules); "
    found = subprocess.run([sys.executable, "-c", preload + code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
