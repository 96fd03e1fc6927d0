"""What the operator exports to Prometheus, beside what every controller does (`controller_metrics.py`).

Labels are bounded: their values are the operator's own reasons, stages and iterations. Only the metrics of single
cycles (`medgr2_cycle_*`) name a cycle and its namespace, and they go when the cycle does.
"""

from __future__ import annotations

import platform
from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from medgr2_api.cycle import Cycle
from medgr2_api.metrics import MACRO_ACCURACY, deciding
from medgr2_api.stages import stage_names
from medgr2_api.status import AttemptState, CycleStatus, Phase, StageStatus

from ..plan.failure_policy import FailureClass
from ..plan.status_draft import ACTIVE, attempt_of, stage_of
from ..plan.types import Plan
from .controller_metrics import ControllerMetrics
from .reconciler import ReconcileObserver
from .settings import Settings
from .workqueue import CycleKey, WorkQueue

#: How an attempt ends: it succeeded, a result was there already, its result could not be read, `restartFrom`
#: took it back, or one of the planner's classes of failures.
OUTCOMES = ("Succeeded", "Reused", "ResultUnreadable", "Restarted", *map(str, FailureClass))

#: States of a stage that has begun, or would have if a person had said so.
_UNFINISHED = (AttemptState.AWAITING_APPROVAL, *sorted(ACTIVE))
_RUNS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 48 * 3600)
_LATENCIES = (0.5, 1, 1.5, 2, 5, 10, 30, 60, 300)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series beside each counter that nobody reads


class Metrics(ReconcileObserver):
    """All metrics of one process."""

    def __init__(self, registry: CollectorRegistry, queue: WorkQueue[CycleKey], settings: Settings) -> None:
        build = Gauge(
            "medgr2_operator_build_info", "1; what runs here", ["version", "python_version"], registry=registry
        )
        build.labels(version("medgr2"), platform.python_version()).set(1)
        self._attempts = Counter(
            "medgr2_stage_attempts_total", "Attempts that ended, by outcome", ["stage", "outcome"], registry=registry
        )
        for stage, outcome in product(stage_names(), OUTCOMES):  # so that `increase()` sees the first of a kind
            self._attempts.labels(stage, outcome)
        self._durations = Histogram(
            "medgr2_stage_attempt_duration_seconds",
            "Running time of attempts that ended, without the time a queue took from them",
            ["stage", "outcome"],
            buckets=_RUNS,
            registry=registry,
        )
        self._waits = Histogram(
            "medgr2_stage_queue_wait_seconds",
            "Time for which attempts waited to be scheduled, from their creation, or from when a queue took their "
            "quota back, to their first running pod",
            ["stage"],
            buckets=_RUNS,
            registry=registry,
        )
        self._latency = Histogram(
            "medgr2_transition_latency_seconds",
            "Time from the end of an attempt to the creation of the Jobs that its end made possible "
            "(Kubernetes tells ends in whole seconds, so up to one second too much)",
            buckets=_LATENCIES,
            registry=registry,
        )
        self._gpu = Counter(
            "medgr2_gpu_seconds_total", "GPUs times seconds of attempts, booked when they end", registry=registry
        )
        self._wasted = Counter(
            "medgr2_gpu_wasted_seconds_total",
            "Of medgr2_gpu_seconds_total, what was lost with attempts that did not end well; the rest was useful",
            registry=registry,
        )
        self._resync = Gauge(
            "medgr2_operator_last_resync_timestamp_seconds",
            "When all cycles were last listed and looked at again, whatever the watches say; 0 on a standby",
            registry=registry,
        )
        self.controller = ControllerMetrics(registry, queue, settings)
        self._cycles = CycleCollector()
        registry.register(self._cycles)
        ProcessCollector(registry=registry)
        self._ends: dict[CycleKey, datetime] = {}
        """Ends of attempts after which nothing was created yet."""

    def resynced(self) -> None:
        """Every cycle was listed and is in the queue."""
        self._resync.set_to_current_time()

    def on_stored(self, cycle: Cycle, plan: Plan) -> None:
        key = _key(cycle)
        before, after = cycle.status, plan.status
        for old, new in _transitions(before, after):
            self._count(key, old, new)
        self._gpu.inc(max(0.0, after.usage.gpu_seconds - before.usage.gpu_seconds))
        self._wasted.inc(max(0.0, after.usage.wasted_gpu_seconds - before.usage.wasted_gpu_seconds))
        self._cycles.update(key, after, cycle.spec.iterations)

    def _count(self, key: CycleKey, old: StageStatus, new: StageStatus | None) -> None:
        """Counts what happened to an attempt: it ran, or ended, or `restartFrom` took it back (no new record)."""
        stage = old.name
        started = new and (new.running_since or (new.start_time if old.start_time is None else None))
        if old.pending_since is not None and started:
            self._waits.labels(stage).observe(_between(old.pending_since, started))
        if new is None or new.state not in ACTIVE:
            outcome = _outcome(old, new)
            self._attempts.labels(stage, outcome).inc()
            if new is not None:
                self._durations.labels(stage, outcome).observe(new.attempt_seconds)
                if new.completion_time is not None:
                    self._ends[key] = max(self._ends.get(key, new.completion_time), new.completion_time)

    def on_done(self, cycle: Cycle, plan: Plan) -> None:
        key = _key(cycle)
        self._cycles.update(key, plan.status, cycle.spec.iterations)
        ended = self._ends.pop(key, None)
        if ended is not None and plan.creates:
            self._latency.observe(_between(ended, datetime.now(UTC)))

    def on_invalid(self, key: CycleKey) -> None:
        self._cycles.mark_invalid(key)

    def on_gone(self, key: CycleKey) -> None:
        self._ends.pop(key, None)
        self._cycles.remove(key)


def _key(cycle: Cycle) -> CycleKey:
    return CycleKey(cycle.metadata.namespace, cycle.metadata.name)


def _transitions(before: CycleStatus, after: CycleStatus) -> Iterator[tuple[StageStatus, StageStatus | None]]:
    """Attempts that had not ended, before and after; None: their stage was started anew."""
    now = {stage_of(record): record for record in after.stages}
    for old in before.stages:
        if old.attempt and old.state in ACTIVE:
            new = now.get(stage_of(old))
            yield old, new if new is not None and attempt_of(new) == attempt_of(old) else None


def _outcome(old: StageStatus, new: StageStatus | None) -> str:
    """Which of `OUTCOMES` it is. Never the record's reason: that may be a word of the user's code."""
    if new is None:
        return "Restarted"
    if new.state is AttemptState.SUCCEEDED:
        return "Reused" if new.reused else "Succeeded"
    if new.collect and not old.collect:
        return "ResultUnreadable"
    if new.retries > old.retries:
        return FailureClass.APPLICATION
    if new.infra_restarts > old.infra_restarts:
        return FailureClass.INFRASTRUCTURE
    return FailureClass.PERMANENT if new.given_up else FailureClass.CHECKPOINTED


def _between(start: datetime, end: datetime) -> float:
    return max(0.0, (end - start).total_seconds())


Sample = tuple[str, tuple[str, ...], float]
"""A sample: name of the metric, values of its labels behind namespace and cycle, value."""

#: Metrics of a cycle: help and labels. Those whose name ends in `_total` are counters.
_OF_A_CYCLE: dict[str, tuple[str, tuple[str, ...]]] = {
    "medgr2_cycle_phase": ("1 for the phase that the cycle is in", ("phase",)),
    "medgr2_cycle_invalid": ("1 if the cycle cannot be run as it is written", ()),
    "medgr2_cycle_iteration": ("Newest iteration that has started", ()),
    "medgr2_cycle_iterations_planned": ("Iterations that the spec asks for", ()),
    "medgr2_cycle_score_ratio": (
        "Validation score by each metric that may decide, 0..1",
        ("checkpoint", "iteration", "metric"),
    ),
    "medgr2_cycle_best_score_ratio": ("Best validation score so far: macro accuracy, 0..1", ()),
    "medgr2_cycle_model_iteration": (
        "Iteration of the newest model that goes on, and the stage that made it",
        ("model", "stage"),
    ),
    "medgr2_cycle_stage_state": ("1 for the state that an unfinished stage is in", ("stage", "iteration", "state")),
    "medgr2_cycle_stage_pending_since_timestamp_seconds": (
        "Since when a stage waits to be approved or scheduled, and why (docs/cluster.md has the reasons)",
        ("stage", "iteration", "reason"),
    ),
    "medgr2_cycle_stage_progress_ratio": ("Progress of a running stage, 0..1", ("stage", "iteration")),
    "medgr2_cycle_gpu_seconds_total": ("GPUs times seconds of the cycle's attempts, booked when they end", ()),
    "medgr2_cycle_gpu_wasted_seconds_total": ("Of these, lost with attempts that did not end well", ()),
    "medgr2_cycle_generator_usd_total": ("US dollars paid to the generator's provider", ()),
    "medgr2_cycle_retries_total": ("Attempts lost to errors of the application or the infrastructure", ("cause",)),
    "medgr2_cycle_reused_stages_total": ("Stages whose result was already there", ()),
}


def _samples(status: CycleStatus, iterations: int) -> Iterator[Sample]:
    """What a status says, in samples: these are kept, for statuses are large."""
    yield "medgr2_cycle_phase", (status.phase,), 1
    yield "medgr2_cycle_iteration", (), status.iteration
    yield "medgr2_cycle_iterations_planned", (), iterations
    for score in status.scores:
        for metric in deciding():
            if (value := score.value(metric.name)) is not None:
                yield "medgr2_cycle_score_ratio", (score.checkpoint, str(score.iteration), metric.name), value
    if status.best is not None and (value := status.best.value(MACRO_ACCURACY.name)) is not None:
        yield "medgr2_cycle_best_score_ratio", (), value
    for model, pointer in (("policy", status.models.policy), ("reward", status.models.reward)):
        if pointer is not None:
            yield "medgr2_cycle_model_iteration", (model, str(pointer.stage)), pointer.iteration
    for record in status.stages:
        where = (str(record.name), str(record.iteration))
        if not (record.attempt and record.state in ACTIVE) and record.state is not AttemptState.AWAITING_APPROVAL:
            continue
        yield "medgr2_cycle_stage_state", (*where, record.state), 1
        if record.pending_since is not None:
            since = record.pending_since.timestamp()
            yield "medgr2_cycle_stage_pending_since_timestamp_seconds", (*where, str(record.waiting)), since
        if record.state is AttemptState.RUNNING and record.progress and record.progress.total > 0:
            yield "medgr2_cycle_stage_progress_ratio", where, record.progress.step / record.progress.total
    usage = status.usage
    yield "medgr2_cycle_gpu_seconds_total", (), usage.gpu_seconds
    yield "medgr2_cycle_gpu_wasted_seconds_total", (), usage.wasted_gpu_seconds
    yield "medgr2_cycle_generator_usd_total", (), usage.generator_usd
    yield "medgr2_cycle_retries_total", ("Application",), usage.app_retries
    yield "medgr2_cycle_retries_total", ("Infrastructure",), usage.infra_restarts
    yield "medgr2_cycle_reused_stages_total", (), usage.reused_stages


class CycleCollector(Collector):
    """Metrics of each cycle, from its last status, and of all cycles together: gone when the object is."""

    def __init__(self) -> None:
        self._samples_of: dict[CycleKey, list[Sample]] = {}

    def update(self, key: CycleKey, status: CycleStatus, iterations: int) -> None:
        """Replaces what is known of a cycle."""
        self._samples_of[key] = list(_samples(status, iterations))

    def mark_invalid(self, key: CycleKey) -> None:
        """Its spec cannot be run; what runs of an earlier one goes on."""
        samples = self._samples_of.get(key, [])
        over = [("medgr2_cycle_phase", (str(phase),), 1) for phase in (Phase.COMPLETE, Phase.FAILED)]
        phase = next((s for s in samples if s in over), ("medgr2_cycle_phase", (str(Phase.INVALID),), 1))
        others = [s for s in samples if s[0] not in ("medgr2_cycle_phase", "medgr2_cycle_invalid")]
        self._samples_of[key] = [phase, *others, ("medgr2_cycle_invalid", (), 1)]

    def remove(self, key: CycleKey) -> None:
        """There is no such cycle any more."""
        self._samples_of.pop(key, None)

    def describe(self) -> list[Metric]:
        """The metrics without samples."""
        phases = GaugeMetricFamily("medgr2_cycles", "Cycles by phase", labels=["phase"])
        stages = GaugeMetricFamily("medgr2_stages_active", "Unfinished stages by state", labels=["stage", "state"])
        return [phases, stages, *_families().values()]

    def collect(self) -> Iterable[Metric]:
        phases, stages, *_ = self.describe()
        families, tally = _families(), Tally[tuple[str, ...]]()
        for key, samples in sorted(self._samples_of.copy().items()):
            for name, labels, value in samples:
                families[name].add_metric([key.namespace, key.name, *labels], value)
                if name == "medgr2_cycle_phase":
                    tally[labels] += 1
                elif name == "medgr2_cycle_stage_state":
                    tally[labels[0], labels[2]] += 1
        for phase in Phase:
            phases.add_sample("medgr2_cycles", {"phase": phase}, tally[phase,])
        for stage, state in product(stage_names(), _UNFINISHED):
            stages.add_sample("medgr2_stages_active", {"stage": stage, "state": state}, tally[stage, state])
        return [phases, stages, *families.values()]


def _families() -> dict[str, GaugeMetricFamily | CounterMetricFamily]:
    return {
        name: (CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily)(
            name, description, labels=["namespace", "cycle", *labels]
        )
        for name, (description, labels) in _OF_A_CYCLE.items()
    }
