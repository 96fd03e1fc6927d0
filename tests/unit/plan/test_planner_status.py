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
    sim = make_simulator(iterations=20)
    sizes = []
    for t in range(1, 21):
        until(sim, "report", t)
        sizes.append(size(sim.status))
    finish(sim)
    assert max(*sizes, size(sim.status)) < LIMIT_BYTES
    old = record(sim, "sft", 3)
    assert old.output_digest
    assert (old.job_name, old.completion_time) == ("", None)
    assert record(sim, "sft", 20).job_name


def test_the_worst_status_still_fits() -> None:
    sim = make_simulator(iterations=20)
    finish(sim)
    long = [
        r.model_copy(update={"message": "ä" * 512, "reason": "R" * 64, "job_name": "j" * 52, "token": "t" * 32})
        for r in sim.status.stages
    ]
    full = sim.status.model_copy(update={"stages": long, "restart_tokens": [f"{i:032d}" for i in range(200)]})
    planned = plan(sim.cycle().model_copy(update={"status": full}), sim.observe(), sim.now)
    assert size(planned.status) < LIMIT_BYTES
    assert all(r.output_digest for r in planned.status.stages)
    assert CycleStatus.model_validate(planned.status.dump()) == planned.status


def test_progress_is_cut_to_what_people_look_at() -> None:
    sim = make_simulator()
    sim_job = run(sim, until(sim, "generate"))
    (seen,) = [j for j in sim.observe().jobs if j.uid == sim_job.uid]
    figures = {f"m{i:02d}": 1.0 for i in range(50)} | {"generatorUSD": 0.25}
    progress = Progress(phase="p" * 500, step=1, total=2, metrics=figures)
    jobs = (*(j for j in sim.observe().jobs if j is not seen), replace(seen, progress=progress))
    planned = plan(sim.cycle(), Observed(jobs, sim.observe().pods), sim.now)
    kept = next(r for r in planned.status.stages if r.name == "generate").progress
    assert kept is not None
    assert (kept.step, len(kept.phase), len(kept.metrics)) == (1, 64, 9)
    after = plan(sim.cycle().model_copy(update={"status": planned.status}), Observed(), sim.now)
    assert after.status.usage.generator_usd == 0.25, "its own account is lost; what it last said of itself counts"


def test_tokens_are_bounded() -> None:
    sim = make_simulator()
    sim.status = sim.status.model_copy(update={"restart_tokens": [f"t{i}" for i in range(200)]})
    restart(sim, "prepare", 0, "one-more")
    assert "RestartIgnored" in [event.reason for event in reconcile(sim).events]
    assert len(sim.status.restart_tokens) == 200


def test_imports_nothing_that_does_something() -> None:
    code = (
        "import sys; import medgr2_operator.plan.planner; "
        "print([m for m in ('torch', 'kubernetes', 'kopf', 'medgr2_jobs', 'random', 'time', 'socket') "
        "if m in sys.modules and m not in before])"
    )
    preload = "import sys, pydantic, json, random, time, socket, medgr2_api.cycle; before = set(sys.modules); "
    process = subprocess.run([sys.executable, "-c", preload + code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
