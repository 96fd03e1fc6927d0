"""A stage's own port: `/progress` for the operator, `/metrics` for Prometheus.

Both tell what the stage last wrote into its progress file; the port is open only where the operator asks for one.
Figures have stable names in `/metrics`; one that `FIGURES` does not know shows in `/progress` only.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from pydantic import ValidationError

from medgr2_api import paths
from medgr2_api.stage_contract import PROGRESS_PORT_ENV, Progress, StageRequest

_log = logging.getLogger(__name__)
#: Figure of `Progress.metrics` → metric and help. Those whose name ends in `_total` are counters.
FIGURES = {
    "loss": ("medgr2_stage_loss", "Loss of the last logged step"),
    "reward": ("medgr2_stage_reward", "Mean reward of the last logged step"),
    "kl": ("medgr2_stage_kl_divergence", "Mean KL divergence from the reference policy in the last logged step"),
    "mean_token_accuracy": ("medgr2_stage_token_accuracy_ratio", "Accuracy on the answers' tokens, last logged step"),
    "tokens": ("medgr2_stage_tokens_total", "Tokens of all processes since training began or, in stage sft, resumed"),
    "tokens_per_second": ("medgr2_stage_tokens_per_second", "Tokens of all processes per second, last logged steps"),
    "step_seconds": ("medgr2_stage_step_duration_seconds", "Duration of an optimizer step, last logged steps"),
    "checkpoint_seconds": ("medgr2_stage_checkpoint_duration_seconds", "Duration of the last checkpoint's writing"),
    "zero_variance_groups": (
        "medgr2_stage_zero_variance_groups_ratio",
        "Share of the prompts whose completions all earned the same, last step",
    ),
    "rollout_seconds": ("medgr2_stage_rollout_duration_seconds", "Duration of the last sampling by a vLLM"),
    "weights_seconds": ("medgr2_stage_weights_duration_seconds", "Duration of giving a vLLM the newest weights"),
    "failed": ("medgr2_stage_failed_requests_total", "Requests to the generator that got no usable answer"),
    "concurrency": ("medgr2_stage_generator_concurrency", "Requests to the generator that may be in flight"),
    "generatorUSD": ("medgr2_stage_generator_usd_total", "US dollars paid for this part of the work by all attempts"),
}
_LABELS = ("cycle", "stage", "iteration")
#: Connections at a time: the operator's, Prometheus', a person's.
MOST_CONNECTIONS = 8
#: Seconds that one may take.
CONNECTION_SECONDS = 5.0


@contextmanager
def serve_metrics(request: StageRequest, root: Path) -> Iterator[int | None]:
    """Serves while the block runs; gives the port, or None where none is wanted.

    A port that cannot be opened is no reason to fail: it costs sight, not work.
    """
    port = os.environ.get(PROGRESS_PORT_ENV)
    if not port:
        yield None
        return
    name = paths.attempt_name(request.iteration, request.stage, request.token, request.attempt, request.shard.index)
    path = root / paths.progress(request.cycle.name, name)
    path.unlink(missing_ok=True)  # what an attempt of the same name said before
    try:
        server = BoundedServer(("", int(port)), handler(path, request))
    except OSError as error:
        _log.warning("port %s for /progress and /metrics cannot be opened: %s", port, error)
        yield None
        return
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


class BoundedServer(ThreadingHTTPServer):
    """A server whose connections are few and short: each has a thread, and everybody who reaches the pod may connect.

    The oldest gives way to a new one, so that those who connect and say nothing keep nobody out.
    """

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._since: dict[socket.socket, float] = {}
        """Open connections, the oldest first."""
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Takes a connection."""
        with self._lock:
            if len(self._since) >= MOST_CONNECTIONS:
                self._hang_up(next(iter(self._since)))
            self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Is called about every half second: ends what takes too long, however little by little it sends."""
        with self._lock:
            late = [one for one, since in self._since.items() if time.monotonic() - since > CONNECTION_SECONDS]
            for connection in late:
                self._hang_up(connection)

    def shutdown_request(self, request: Any) -> None:
        """Ends a connection."""
        with self._lock:
            self._since.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: who hangs up, or is hung up on, is no news."""

    def _hang_up(self, connection: socket.socket) -> None:
        del self._since[connection]
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and ends


def handler(path: Path, request: StageRequest) -> type[BaseHTTPRequestHandler]:
    """What answers for the stage whose progress file this is."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            progress, written_at = _read(path)
            if self.path == "/progress":
                self._answer("application/json", progress.model_dump_json(by_alias=True, exclude_none=True).encode())
            elif self.path == "/metrics":
                self._answer(CONTENT_TYPE_LATEST, generate_latest(StageMetrics(request, progress, written_at)))
            else:
                self.send_error(404)

        def _answer(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Silent: every scrape would be a line."""

    return Handler


def _read(path: Path) -> tuple[Progress, float]:
    """What the stage last said, and when (seconds since the epoch; 0: nothing yet)."""
    try:
        return Progress.model_validate_json(path.read_text()), path.stat().st_mtime
    except (OSError, ValidationError):
        return Progress(phase="starting"), 0.0


class StageMetrics(Collector):
    """What a stage said of itself, as metrics. Prometheus itself adds pod and namespace."""

    def __init__(self, request: StageRequest, progress: Progress, written_at: float) -> None:
        self._labels = [request.cycle.name, str(request.stage), str(request.iteration)]
        self._progress, self._written_at = progress, written_at

    def collect(self) -> Iterable[Metric]:
        progress = self._progress
        yield self._metric("medgr2_stage_steps", "Units of work done", progress.step)
        yield self._metric("medgr2_stage_steps_planned", "Units of work in all; 0: not known", progress.total)
        yield self._metric(
            "medgr2_stage_progress_timestamp_seconds",
            "When the stage last said how far it is; 0: never",
            self._written_at,
        )
        if progress.eta_seconds is not None:
            yield self._metric("medgr2_stage_eta_seconds", "Estimated time to the end", progress.eta_seconds)
        for figure, value in progress.metrics.items():
            if figure in FIGURES:
                yield self._metric(*FIGURES[figure], value)

    def _metric(self, name: str, description: str, value: float) -> Metric:
        family = (CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily)(
            name, description, labels=_LABELS
        )
        family.add_metric(self._labels, value)
        return family
