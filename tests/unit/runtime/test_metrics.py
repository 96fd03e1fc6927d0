"""The operator's metrics: every attempt counts once, labels are bounded, what a cycle tells goes with the cycle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample
from tests.support import event_schedules, simulator_helpers
from tests.support.planner_objects import SimJob
from tests.support.planner_simulator import PlannerSimulator
from tests.support.simulator_helpers import edit, fail, finish, job, restart, run, succeed, until

from medgr2_api.scheduling import StageRef
from medgr2_api.stage_contract import Progress, StageResult
from medgr2_api.stages import stage_names
from medgr2_api.status import AttemptState, CycleStatus, Phase
from medgr2_operator.plan.status_draft import ACTIVE, attempt_of
from medgr2_operator.plan.types import AttemptKey, JobState, Plan
from medgr2_operator.runtime.metrics import OUTCOMES, Metrics
from medgr2_operator.runtime.settings import Settings
from medgr2_operator.runtime.workqueue import CycleKey, WorkQueue

NAME = "a-rather-long-name-of-a-cycle-for-the-test-of-names"
KEY = CycleKey("ml", NAME)
LOST = ("Application", "Infrastructure", "Permanent", "Checkpointed")


class Exported:
    """The metrics of one process, and what they say."""

    def __init__(self) -> None:
        self.registry, self.queue = CollectorRegistry(), WorkQueue[CycleKey]()
        self.metrics = Metrics(self.registry, self.queue, Settings(lease_name="the-lease", workers=3))

    def samples(self) -> Iterator[Sample]:
        """All of them."""
        return (sample for family in self.registry.collect() for sample in family.samples)

    def value(self, name: str, /, **labels: str) -> float | None:
        """A sample's value."""
        return self.registry.get_sample_value(name, labels)

    def total(self, name: str, /, **labels: str) -> float:
        """Over all samples with these labels."""
        matching = (s for s in self.samples() if s.name == name and labels.items() <= s.labels.items())
        return sum(sample.value for sample in matching)

    def labels(self, name: str) -> list[dict[str, str]]:
        """Of all samples of this name."""
        return [sample.labels for sample in self.samples() if sample.name == name]


@dataclass
class Counted(PlannerSimulator):
    """A simulator whose executor tells metrics of each status that it stored, as the reconciler does."""

    exported: Exported = field(default_factory=Exported)
    attempts: set[AttemptKey] = field(default_factory=set)

    def _write(self, status: CycleStatus, version: int) -> bool:
        before = self.cycle()
        written = super()._write(status, version)
        if written:
            self.attempts |= {attempt_of(record) for record in status.stages if record.attempt}
            self.exported.metrics.on_stored(before, Plan(status))
        return written


def counted(**changes: Any) -> Counted:
    return Counted(simulator_helpers.make_spec(**{"iterations": 1, **changes}))


def outcomes(sim: Counted, stage: str) -> dict[str, int]:
    """Attempts of a stage that ended, by outcome."""
    totals = {o: sim.exported.total("medgr2_stage_attempts_total", stage=stage, outcome=o) for o in OUTCOMES}
    return {outcome: int(value) for outcome, value in totals.items() if value}


@pytest.mark.parametrize("seed", range(30))
def test_every_attempt_counts_once_whatever_happens(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_schedules, "PlannerSimulator", Counted)
    sim = event_schedules.run_schedule(seed)
    assert isinstance(sim, Counted)
    active = sum(1 for record in sim.status.stages if record.attempt and record.state in ACTIVE)
    assert sim.exported.total("medgr2_stage_attempts_total") == len(sim.attempts) - active
    restarted = sim.exported.total("medgr2_stage_attempts_total", outcome="Restarted")
    assert sim.exported.total("medgr2_stage_attempt_duration_seconds_count") == len(sim.attempts) - active - restarted
    assert sim.exported.total("medgr2_gpu_seconds_total") == pytest.approx(sim.status.usage.gpu_seconds)
    assert sim.exported.total("medgr2_gpu_wasted_seconds_total") == pytest.approx(sim.status.usage.wasted_gpu_seconds)


@pytest.mark.parametrize(
    ("code", "reason", "result", "outcome"),
    [
        (1, "", {}, "Application"),
        (137, "OOMKilled", {}, "Application"),
        (143, "", {}, "Infrastructure"),
        (1, "DisruptionTarget", {}, "Infrastructure"),
        (85, "", {"checkpoint_step": 5}, "Checkpointed"),
        (78, "", {}, "Permanent"),
    ],
)
def test_how_an_attempt_ended(code: int, reason: str, result: dict[str, int], outcome: str) -> None:
    sim = counted(failurePolicy={"backoffSeconds": 0})
    sim_job = run(sim, until(sim, "sft"))
    sim.now += timedelta(seconds=40)
    fail(sim, sim_job, code, reason, **result)
    sim.reconcile()
    assert outcomes(sim, "sft") == {outcome: 1}
    labels = {"stage": "sft", "outcome": outcome}
    assert sim.exported.value("medgr2_stage_attempt_duration_seconds_sum", **labels) == 40
    if outcome != "Permanent":
        finish(sim)
        assert outcomes(sim, "sft") == {outcome: 1, "Succeeded": 1}


def test_a_result_that_cannot_be_read_a_reused_one_and_a_restart() -> None:
    sim = counted()
    succeed(sim, run(sim, until(sim, "sft")), readable=False)
    sim.reconcile()
    assert outcomes(sim, "sft") == {"ResultUnreadable": 1}
    run(sim, until(sim, "grpo"))
    assert outcomes(sim, "sft") == {"ResultUnreadable": 1, "Succeeded": 1}
    restart(sim, "sft", 1, "again")
    simulator_helpers.reconcile(sim, 2)
    sim.obey()
    assert outcomes(sim, "grpo") == {"Restarted": 1}
    succeed(sim, until(sim, "sft"), reused=True)
    sim.reconcile()
    assert outcomes(sim, "sft") == {"ResultUnreadable": 1, "Succeeded": 1, "Reused": 1}


def test_waits_for_a_place_are_measured_each_time() -> None:
    sim = counted()
    sim_job = until(sim, "sft")
    sim.now += timedelta(seconds=30)
    sim.reconcile()
    run(sim, sim_job)
    waits = "medgr2_stage_queue_wait_seconds"
    assert (sim.exported.value(f"{waits}_count", stage="sft"), sim.exported.value(f"{waits}_sum", stage="sft")) == (
        1,
        30,
    )
    sim.now += timedelta(seconds=100)
    sim_job.state, sim_job.started = JobState.QUEUED, None  # a queue takes its quota back
    sim.release(sim_job, linger=False)
    sim.reconcile()
    sim.now += timedelta(seconds=7)
    run(sim, sim_job)
    assert (sim.exported.value(f"{waits}_count", stage="sft"), sim.exported.value(f"{waits}_sum", stage="sft")) == (
        2,
        37,
    )
    succeed(sim, sim_job)
    sim.reconcile()
    assert sim.exported.value(f"{waits}_count", stage="sft") == 2


def test_gpu_seconds_of_attempts_and_what_of_them_was_wasted() -> None:
    sim = counted(stages=[{"name": "sft", **simulator_helpers.GPU}], failurePolicy={"backoffSeconds": 0})
    for ends in (lambda sim_job: fail(sim, sim_job, 1), lambda sim_job: succeed(sim, sim_job)):
        sim_job = run(sim, until(sim, "sft"))
        sim.now += timedelta(seconds=10)
        ends(sim_job)
        sim.reconcile()
    assert sim.exported.value("medgr2_gpu_seconds_total") == 80
    assert sim.exported.value("medgr2_gpu_wasted_seconds_total") == 40
    assert sim.exported.value("medgr2_cycle_gpu_seconds_total", namespace="ml", cycle=NAME) == 80


def test_transition_latency_waits_for_what_is_created_however_often_it_is_tried() -> None:
    sim = counted()
    metrics = sim.exported.metrics
    count, total = "medgr2_transition_latency_seconds_count", "medgr2_transition_latency_seconds_sum"
    sim.now = datetime.now(UTC) - timedelta(seconds=60)
    sim_job = until(sim, "sft")
    sim.now += timedelta(seconds=40)
    succeed(sim, sim_job)
    planned = sim.reconcile()
    assert planned.creates
    assert sim.exported.value(count) == 0, "nothing was created yet: the request failed, say"
    metrics.on_done(sim.cycle(), planned)
    metrics.on_done(sim.cycle(), planned)
    assert sim.exported.value(count) == 1
    assert 20 <= (sim.exported.value(total) or 0) < 40
    succeed(sim, job(sim, "grpo"))
    sim.reconcile()
    metrics.on_done(sim.cycle(), Plan(sim.status))  # nothing follows at once: a pause, a backoff
    metrics.on_done(sim.cycle(), planned)
    assert sim.exported.value(count) == 1


def test_what_a_cycle_tells() -> None:
    sim = counted(iterations=3)
    sim_job = until(sim, "grpo")
    sim.reconcile()
    waiting = sim.exported.labels("medgr2_cycle_stage_pending_since_timestamp_seconds")
    ready = {stage.name for stage in sim.status.stages if stage.state is AttemptState.PENDING}
    assert "grpo" in ready
    assert sorted((labels["stage"], labels["reason"]) for labels in waiting) == [
        (stage, "AwaitingQuota") for stage in sorted(ready)
    ]
    run(sim, sim_job)
    sim_job.step = 25
    sim.reconcile()
    of = {"namespace": "ml", "cycle": NAME}
    at = {**of, "stage": "grpo", "iteration": "1"}
    value = sim.exported.value
    assert value("medgr2_cycle_phase", **of, phase="Running") == 1
    assert value("medgr2_cycle_iteration", **of) == 2, "generate runs ahead"
    assert value("medgr2_cycle_iterations_planned", **of) == 3
    assert value("medgr2_cycle_stage_progress_ratio", **at) == 0.25
    assert value("medgr2_cycle_stage_state", **at, state="Running") == 1
    assert value("medgr2_stages_active", stage="grpo", state="Running") == 1
    base = next(score for score in sim.status.scores if score.checkpoint == "base")
    assert value(
        "medgr2_cycle_score_ratio", **of, checkpoint="base", iteration="0", metric="macroAccuracy"
    ) == base.value("macroAccuracy")
    assert (value("medgr2_cycles", phase="Running"), value("medgr2_cycles", phase="Failed")) == (1, 0)
    waiting = sim.exported.labels("medgr2_cycle_stage_pending_since_timestamp_seconds")
    ready = {stage.name for stage in sim.status.stages if stage.state is AttemptState.PENDING}
    assert "grpo" not in ready
    assert {labels["stage"] for labels in waiting} == ready
    finish(sim)
    assert value("medgr2_cycles", phase="Complete") == 1
    assert value("medgr2_cycle_phase", **of, phase="Running") is None
    assert sim.exported.total("medgr2_stages_active") == 0


def test_which_models_go_on() -> None:
    sim = counted()
    succeed(sim, until(sim, "grpo"), promoted=False)
    finish(sim)
    of = {"namespace": "ml", "cycle": NAME}
    value = sim.exported.value
    assert value("medgr2_cycle_model_iteration", **of, model="policy", stage="sft") == 1
    assert value("medgr2_cycle_model_iteration", **of, model="policy", stage="grpo") is None, "worse than SFT"
    assert value("medgr2_cycle_model_iteration", **of, model="reward", stage="reward") == 0


def test_a_cycle_that_is_gone_leaves_no_series() -> None:
    sim = counted()
    before = {(s.name, *s.labels) for s in Exported().samples()}
    run(sim, until(sim, "sft"))
    assert any(sample.labels.get("cycle") == NAME for sample in sim.exported.samples())
    sim.exported.metrics.on_gone(KEY)
    assert not [sample for sample in sim.exported.samples() if "cycle" in sample.labels]
    assert sim.exported.total("medgr2_cycles") == 0
    assert {s.name for s in sim.exported.samples()} <= {name for name, *_ in before} | {
        f"medgr2_stage_{which}_{end}"
        for which in ("attempt_duration_seconds", "queue_wait_seconds")
        for end in ("bucket", "count", "sum")
    }


def test_a_cycle_that_cannot_be_run_is_told_until_it_can() -> None:
    sim = counted()
    of = {"namespace": "ml", "cycle": NAME}
    for _ in range(2):
        sim.exported.metrics.on_invalid(KEY)
    assert sim.exported.value("medgr2_cycle_invalid", **of) == 1
    assert sim.exported.value("medgr2_cycles", phase="Invalid") == 1
    sim.reconcile()
    assert sim.exported.value("medgr2_cycle_invalid", **of) is None
    sim.exported.metrics.on_invalid(KEY)
    assert sim.exported.value("medgr2_cycle_phase", **of, phase="Invalid") == 1
    assert sim.exported.value("medgr2_cycle_phase", **of, phase=str(sim.status.phase)) is None
    assert sim.exported.value("medgr2_cycle_iteration", **of) == 0, "what is known of it stays"


def test_an_end_stays_one_though_the_spec_is_spoilt_later() -> None:
    sim = counted()
    finish(sim)
    sim.exported.metrics.on_invalid(KEY)
    of = {"namespace": "ml", "cycle": NAME}
    assert sim.exported.value("medgr2_cycle_phase", **of, phase="Complete") == 1
    assert sim.exported.value("medgr2_cycle_invalid", **of) == 1


def test_a_stage_that_waits_for_a_person_is_told() -> None:
    sim = counted(pauseBefore=["prepare"])
    sim.reconcile()
    at = {"namespace": "ml", "cycle": NAME, "stage": "prepare", "iteration": "0"}
    assert sim.exported.value("medgr2_cycle_stage_state", **at, state="AwaitingApproval") == 1
    since = "medgr2_cycle_stage_pending_since_timestamp_seconds"
    assert sim.exported.value(since, **at, reason="AwaitingApproval") == sim.now.timestamp()
    assert sim.exported.value("medgr2_stages_active", stage="prepare", state="AwaitingApproval") == 1
    edit(sim, approved=[StageRef(iteration=0, stage="prepare")])
    sim.reconcile()
    assert sim.exported.value("medgr2_cycle_stage_state", **at, state="AwaitingApproval") is None


def test_no_label_holds_what_a_user_or_his_code_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = counted(iterations=2, failurePolicy={"backoffSeconds": 0}, budget={})
    users = "WordsOfTheUser"
    sim_job = run(sim, until(sim, "sft"))
    result = StageResult(exit_code=1, reason=users, message=users, output_digest=users)
    sim.finish(sim_job, 1, users, result)
    sim.release(sim_job, linger=False)
    sim.reconcile()
    sim_job = run(sim, until(sim, "grpo"))
    monkeypatch.setattr(sim, "jobs_now", lambda: _saying(sim, sim_job, users))
    sim.reconcile()
    monkeypatch.undo()
    restart(sim, "sft", 1, users.lower())
    sim.reconcile()
    sim.obey()
    finish(sim)
    edit(sim, iterations=3)
    finish(sim)
    for status in (200, 404, 0):
        sim.exported.metrics.controller.on_request("GET", "10.96.0.1:443", status, 0.1)
    stages, states = set(stage_names()), set(map(str, AttemptState))
    words = {
        "stage": stages,
        "outcome": set(OUTCOMES),
        "state": states,
        "phase": set(map(str, Phase)),
        "name": {"medgr2cycle", "the-lease"},
        "controller": {"medgr2cycle"},
        "result": {"success", "requeue_after", "error"},
        "code": {"200", "404", "<error>"},
        "method": {"GET"},
        "verb": {"GET"},
        "host": {"10.96.0.1:443"},
        "version": None,
        "python_version": None,
        "le": None,
    }
    for sample in sim.exported.samples():
        assert users.lower() not in str(sample.labels).lower()
        if not sample.name.startswith("medgr2_cycle_"):
            for label, value in sample.labels.items():
                allowed = words[label]
                assert allowed is None or value in allowed, f"{sample.name}: {label}={value}"
        elif "iteration" in sample.labels:
            assert 0 <= int(sample.labels["iteration"]) <= 20


def _saying(sim: PlannerSimulator, sim_job: SimJob, words: str) -> Any:
    """What is seen of the Jobs, with a progress full of the user's words."""
    progress = Progress(phase=words, step=1, total=9, metrics={words: 1.0})
    seen = PlannerSimulator.jobs_now(sim)
    return tuple(
        type(each)(**{**each.__dict__, "progress": progress, "waiting_message": words})
        if each.name == sim_job.name
        else each
        for each in seen
    )


def test_the_queue_under_the_names_of_every_controller() -> None:
    async def test() -> None:
        exported, seen = Exported(), []
        ours = {"name": "medgr2cycle", "controller": "medgr2cycle"}

        async def work(key: CycleKey) -> float | None:
            working = exported.value("workqueue_unfinished_work_seconds", **ours) or 0
            longest = exported.value("workqueue_longest_running_processor_seconds", **ours) or 0
            assert working > 0
            assert longest > 0
            assert exported.value("controller_runtime_active_workers", controller="medgr2cycle") == 1
            seen.append(key)
            if len(seen) == 1:
                raise RuntimeError("not yet")
            return None if len(seen) > 2 else 0.01

        exported.queue.add(KEY)
        assert exported.value("workqueue_depth", **ours) == 1
        await _until(exported.queue, work, lambda: len(seen) == 3)
        assert exported.value("workqueue_depth", **ours) == 0
        assert exported.value("workqueue_adds_total", **ours) == 3
        assert exported.value("workqueue_retries_total", **ours) == 1
        for name in ("workqueue_queue_duration_seconds", "workqueue_work_duration_seconds"):
            assert exported.value(f"{name}_count", **ours) == 3
        runtime = {"controller": "medgr2cycle"}
        results = {
            result: exported.value("controller_runtime_reconcile_total", **runtime, result=result)
            for result in ("success", "requeue_after", "error")
        }
        assert results == {"success": 1, "requeue_after": 1, "error": 1}
        assert exported.value("controller_runtime_reconcile_errors_total", **runtime) == 1
        assert exported.value("controller_runtime_reconcile_time_seconds_count", **runtime) == 3
        assert exported.value("controller_runtime_max_concurrent_reconciles", **runtime) == 3
        assert exported.value("leader_election_master_status", name="the-lease") == 0

    asyncio.run(test())


async def _until(queue: WorkQueue[CycleKey], work: Any, done: Callable[[], bool]) -> None:
    task = asyncio.create_task(queue.run(work, 1))
    async with asyncio.timeout(20):
        while not done() or queue.unfinished:
            await asyncio.sleep(0.01)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
