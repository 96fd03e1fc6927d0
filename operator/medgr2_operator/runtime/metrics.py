"""What the operator exports to Prometheus.

Labels are bounded: no metric but the per-cycle gauges names a cycle, and those go with their cycle.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from medgr2_api.cycle import Cycle
from medgr2_api.status import AttemptState, CycleStatus, Phase

from ..plan.ledger import attempt_of
from ..plan.model import Plan
from .keys import CycleKey
from .queue import WorkQueue
from .reconcile import Listener

_ENDED = {AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.GONE}
_CONTROLLER = "medgr2cycle"
_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 48 * 3600)
_FAST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics(Listener):
    """All metrics of one process."""

    def __init__(self, registry: CollectorRegistry, queue: WorkQueue[CycleKey]) -> None:
        self.leader = Gauge("medgr2_operator_leader", "1 on the replica that reconciles", registry=registry)
        self._attempts = Counter(
            "medgr2_stage_attempts", "Attempts that ended, by outcome", ["stage", "outcome"], registry=registry
        )
        self._durations = Histogram(
            "medgr2_stage_attempt_duration_seconds",
            "Running time of attempts that ended",
            ["stage", "outcome"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._waits = Histogram(
            "medgr2_stage_queue_wait_seconds",
            "Time from an attempt's creation to its first running pod",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._latency = Histogram(
            "medgr2_transition_latency_seconds",
            "Time from the end of a stage to the creation of the next",
            buckets=_FAST,
            registry=registry,
        )
        self._gpu = Counter(
            "medgr2_gpu_seconds", "GPU-seconds of attempts, by what became of them", ["use"], registry=registry
        )
        self._requests = Counter(
            "rest_client_requests", "Requests to the API server", ["method", "resource", "code"], registry=registry
        )
        self._request_seconds = Histogram(
            "rest_client_request_duration_seconds",
            "Duration of requests to the API server",
            ["verb"],
            buckets=_FAST,
            registry=registry,
        )
        self._cycles = Cycles()
        registry.register(self._cycles)
        registry.register(Queue(queue))

    def on_request(self, verb: str, resource: str, status: str, seconds: float) -> None:
        """Of the client: after each request."""
        self._requests.labels(verb, resource, status).inc()
        self._request_seconds.labels(verb).observe(seconds)

    def on_plan(self, key: CycleKey, cycle: Cycle, made: Plan) -> None:
        before = {attempt_of(stage): stage for stage in cycle.status.stages}
        moved = [(old, stage) for stage in made.status.stages if (old := before.get(attempt_of(stage))) is not None]
        ends = []
        for old, stage in moved:
            if old.state not in _ENDED and stage.state in _ENDED:
                outcome = stage.state if stage.state is AttemptState.SUCCEEDED else stage.reason or stage.state
                self._attempts.labels(stage.name, outcome).inc()
                self._durations.labels(stage.name, outcome).observe(stage.attempt_seconds)
                ends += [stage.completion_time] if stage.completion_time else []
            if old.start_time is None and stage.start_time and old.pending_since:
                self._waits.labels(stage.name).observe(_between(old.pending_since, stage.start_time))
        if ends and made.creates:
            self._latency.observe(_between(max(ends), datetime.now(UTC)))
        spent, usage = cycle.status.usage, made.status.usage
        wasted = max(0.0, usage.wasted_gpu_seconds - spent.wasted_gpu_seconds)
        self._gpu.labels("wasted").inc(wasted)
        self._gpu.labels("useful").inc(max(0.0, usage.gpu_seconds - spent.gpu_seconds - wasted))
        self._cycles.standing[key] = made.status

    def on_gone(self, key: CycleKey) -> None:
        self._cycles.standing.pop(key, None)


def _between(start: datetime, end: datetime) -> float:
    return max(0.0, (end - start).total_seconds())


class Cycles(Collector):
    """Gauges of each cycle, read from the last status: gone when the object is."""

    def __init__(self) -> None:
        self.standing: dict[CycleKey, CycleStatus] = {}

    def collect(self) -> Iterable[Metric]:
        phases = GaugeMetricFamily("medgr2_cycles", "Cycles by phase", labels=["phase"])
        names = ["namespace", "cycle"]
        iteration = GaugeMetricFamily("medgr2_cycle_iteration", "Newest iteration that has started", labels=names)
        score = GaugeMetricFamily(
            "medgr2_cycle_score_ratio", "Newest validation score (macro accuracy)", labels=[*names, "checkpoint"]
        )
        progress = GaugeMetricFamily(
            "medgr2_cycle_stage_progress_ratio", "Progress of running stages", labels=[*names, "stage"]
        )
        standing = dict(self.standing)
        for phase in Phase:
            phases.add_metric([phase], sum(status.phase is phase for status in standing.values()))
        for key, status in sorted(standing.items()):
            labels = [key.namespace, key.name]
            iteration.add_metric(labels, status.iteration)
            for checkpoint, value in {found.checkpoint: found.macro_accuracy for found in status.scores}.items():
                score.add_metric([*labels, checkpoint], value)
            for stage in status.stages:
                if stage.state is AttemptState.RUNNING and stage.progress and stage.progress.total > 0:
                    done = stage.progress.step / stage.progress.total
                    progress.add_metric([*labels, f"{stage.name}@{stage.iteration}"], done)
        return [phases, iteration, score, progress]


class Queue(Collector):
    """The work queue under the names of client-go and controller-runtime, which dashboards know."""

    def __init__(self, queue: WorkQueue[CycleKey]) -> None:
        self._queue = queue
        registry = CollectorRegistry()
        self._inner = registry
        self._waited = Histogram(
            "workqueue_queue_duration_seconds", "Wait in the queue", ["name"], buckets=_FAST, registry=registry
        ).labels(_CONTROLLER)
        self._worked = Histogram(
            "workqueue_work_duration_seconds", "Work on an item", ["name"], buckets=_FAST, registry=registry
        ).labels(_CONTROLLER)
        self._reconciled = Counter(
            "controller_runtime_reconcile", "Reconciliations", ["controller", "result"], registry=registry
        )
        self._adds = Counter("workqueue_adds", "Adds", ["name"], registry=registry).labels(_CONTROLLER)
        self._retries = Counter("workqueue_retries", "Retries", ["name"], registry=registry).labels(_CONTROLLER)
        self._depth = Gauge("workqueue_depth", "Items that wait", ["name"], registry=registry).labels(_CONTROLLER)
        self._oldest = Gauge(
            "workqueue_oldest_item_seconds", "Wait of the oldest item", ["name"], registry=registry
        ).labels(_CONTROLLER)

    def collect(self) -> Iterable[Metric]:
        figures = self._queue.figures
        waits, figures.queue_seconds = figures.queue_seconds, []
        works, figures.work_seconds = figures.work_seconds, []
        adds, figures.adds = figures.adds, 0
        retries, figures.retries = figures.retries, 0
        for wait in waits:
            self._waited.observe(wait)
        for seconds, result in works:
            self._worked.observe(seconds)
            self._reconciled.labels(_CONTROLLER, result).inc()
        self._adds.inc(adds)
        self._retries.inc(retries)
        self._depth.set(self._queue.depth)
        self._oldest.set(self._queue.oldest_seconds)
        return list(self._inner.collect())
