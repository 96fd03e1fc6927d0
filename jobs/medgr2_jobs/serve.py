"""A stage's own port: `/progress` for the operator, `/metrics` for Prometheus.

Both tell what the stage last wrote into its progress file; the port is open only where the operator asks for one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError

from medgr2_api import workspace
from medgr2_api.stages import Progress, StageRequest

PORT_ENV = "MEDGR2_PROGRESS_PORT"


@contextmanager
def served(request: StageRequest, root: Path) -> Iterator[int | None]:
    """Serves while the block runs; gives the port, or None where none is wanted.

    A port that cannot be opened is no reason to fail: it costs sight, not work.
    """
    wanted = os.environ.get(PORT_ENV)
    if not wanted:
        yield None
        return
    name = workspace.attempt_name(request.iteration, request.stage, request.token, request.attempt, request.shard.index)
    path = root / workspace.progress(request.cycle.name, name)
    path.unlink(missing_ok=True)  # what an attempt of the same name said before
    try:
        server = ThreadingHTTPServer(("", int(wanted)), _handler(path, request))
    except OSError as error:
        print(f"port {wanted} for /progress and /metrics cannot be opened: {error}")
        yield None
        return
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


def _handler(path: Path, request: StageRequest) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            progress = _read(path)
            if self.path == "/progress":
                self._answer("application/json", progress.model_dump_json(by_alias=True, exclude_none=True).encode())
            elif self.path == "/metrics":
                self._answer(CONTENT_TYPE_LATEST, _metrics(progress, request))
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


def _read(path: Path) -> Progress:
    try:
        return Progress.model_validate_json(path.read_text())
    except (OSError, ValidationError):
        return Progress(phase="starting")


def _metrics(progress: Progress, request: StageRequest) -> bytes:
    """The latest figures as gauges; Prometheus itself adds pod and namespace."""
    registry, names = CollectorRegistry(), ["cycle", "stage", "iteration"]
    labels = [request.cycle.name, str(request.stage), str(request.iteration)]
    step = Gauge("medgr2_stage_step", "Units of work done", names, registry=registry)
    total = Gauge("medgr2_stage_steps_planned", "Units of work in all; 0: not known", names, registry=registry)
    figure = Gauge(
        "medgr2_stage_figure", "Latest figures of the stage: loss, reward, …", [*names, "figure"], registry=registry
    )
    step.labels(*labels).set(progress.step)
    total.labels(*labels).set(progress.total)
    for name, value in progress.metrics.items():
        figure.labels(*labels, name).set(value)
    return generate_latest(registry)
