"""The metrics that every Kubernetes controller exports, under the names and labels of client-go and controller-runtime:
dashboards and alerts made for any controller work for this one. Requests of the watches are not among the API requests:
kopf makes those.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from .settings import Settings
from .workqueue import CycleKey, QueueObserver, ReconcileResult, WorkQueue

CONTROLLER = "medgr2cycle"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ControllerMetrics(QueueObserver):
    """Metrics of the work queue, the reconciliations, the Lease and the API requests."""

    def __init__(self, registry: CollectorRegistry, queue: WorkQueue[CycleKey], settings: Settings) -> None:
        queue.observer = self
        self._queue(registry, queue)
        self._reconcile(registry, queue, settings.workers)
        leader = Gauge(
            "leader_election_master_status", "1 on the replica that holds the Lease", ["name"], registry=registry
        )
        self.leader = leader.labels(settings.lease_name)
        self._requests = Counter(
            "rest_client_requests_total",
            "Requests to the API server, without watches",
            ["code", "method", "host"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "rest_client_request_duration_seconds",
            "Duration of requests to the API server, without watches",
            ["verb", "host"],
            buckets=_SECONDS,
            registry=registry,
        )

    def _queue(self, registry: CollectorRegistry, queue: WorkQueue[CycleKey]) -> None:
        labels, values = ["name", "controller"], (CONTROLLER, CONTROLLER)
        for name, description, value in (
            ("depth", "Items that wait in the queue", lambda: queue.depth),
            (
                "unfinished_work_seconds",
                "Time spent so far on the items that workers have",
                lambda: sum(queue.working_seconds),
            ),
            (
                "longest_running_processor_seconds",
                "Time spent so far on the item that a worker has had for longest",
                lambda: max(queue.working_seconds, default=0),
            ),
        ):
            gauge = Gauge(f"workqueue_{name}", description, labels, registry=registry)
            gauge.labels(*values).set_function(value)
        adds = Counter("workqueue_adds_total", "Items that were added to the queue", labels, registry=registry)
        retries = Counter("workqueue_retries_total", "Items whose work failed", labels, registry=registry)
        self._adds, self._retries = adds.labels(*values), retries.labels(*values)
        waited = Histogram(
            "workqueue_queue_duration_seconds", "Wait in the queue", labels, buckets=_SECONDS, registry=registry
        )
        worked = Histogram(
            "workqueue_work_duration_seconds", "Work on an item", labels, buckets=_SECONDS, registry=registry
        )
        self._waited, self._worked = waited.labels(*values), worked.labels(*values)

    def _reconcile(self, registry: CollectorRegistry, queue: WorkQueue[CycleKey], workers: int) -> None:
        labels = ["controller"]
        total = Counter(
            "controller_runtime_reconcile_total", "Reconciliations", ["controller", "result"], registry=registry
        )
        self._results = {
            "success": total.labels(CONTROLLER, "success"),
            "requeue_after": total.labels(CONTROLLER, "requeue_after"),
            "error": total.labels(CONTROLLER, "error"),
        }
        errors = Counter(
            "controller_runtime_reconcile_errors_total", "Reconciliations that failed", labels, registry=registry
        )
        seconds = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "Duration of reconciliations",
            labels,
            buckets=_SECONDS,
            registry=registry,
        )
        self._errors, self._seconds = errors.labels(CONTROLLER), seconds.labels(CONTROLLER)
        active = Gauge("controller_runtime_active_workers", "Workers that are busy", labels, registry=registry)
        active.labels(CONTROLLER).set_function(lambda: queue.unfinished)
        most = Gauge(
            "controller_runtime_max_concurrent_reconciles", "Reconciliations at a time", labels, registry=registry
        )
        most.labels(CONTROLLER).set(workers)

    def on_request(self, method: str, host: str, status: int, seconds: float) -> None:
        """Of the client: after each request."""
        self._requests.labels(status or "<error>", method, host).inc()  # client-go's code for no answer
        self._request_seconds.labels(method, host).observe(seconds)

    def added(self) -> None:
        self._adds.inc()

    def taken(self, waited: float) -> None:
        self._waited.observe(waited)

    def done(self, seconds: float, result: ReconcileResult) -> None:
        self._worked.observe(seconds)
        self._seconds.observe(seconds)
        self._results[result].inc()
        if result == "error":
            self._errors.inc()

    def retried(self) -> None:
        self._retries.inc()
