"""A real Prometheus on loopback, scraping what a test gives it, with the chart's alerts loaded."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from monitoring.table import ALERTS

from tests.cluster import tools
from tests.cluster.fixtures import eventually
from tests.cluster.processes import Processes
from tests.support.ports import free_port

START_SECONDS = 60.0


@dataclass(frozen=True)
class Target:
    """Something to scrape, as a ServiceMonitor or PodMonitor would."""

    job: str
    port: int
    host: str = "127.0.0.1"
    labels: Mapping[str, str] = field(default_factory=dict)
    """What Prometheus adds: the target's namespace, pod and so on."""
    honor_labels: bool = False
    """Labels of the metrics go before those of the target."""


class Prometheus:
    """One server with a data folder of its own; scrapes and evaluates every two seconds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "prometheus"
        self._processes = Processes(self._folder)
        self._port = free_port()

    def start(self, *targets: Target) -> Prometheus:
        """Returns when every target was scraped once."""
        self._folder.mkdir(parents=True)
        configuration = self._folder / "prometheus.yml"
        configuration.write_text(yaml.safe_dump(_configuration(targets)))
        command = [
            tools.ensure(["prometheus"])["prometheus"],
            f"--config.file={configuration}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
            "--query.lookback-delta=20s",
        ]
        self._processes.start("prometheus", command)
        self._processes.wait("prometheus", self._ready, START_SECONDS)
        eventually(lambda: self._up() >= len(targets), f"{len(targets)} targets are up", START_SECONDS)
        return self

    def stop(self) -> None:
        """Ends the process."""
        self._processes.stop()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of a PromQL expression, now: `metric` (its labels) and `value`."""
        answer = self.get("query", query=expression)
        if answer["resultType"] == "scalar":
            return [{"metric": {}, "value": answer["result"]}]
        return list(answer["result"])

    def value(self, expression: str) -> float | None:
        """The value of an expression with at most one sample; None: it has none."""
        series = self.query(expression)
        assert len(series) <= 1, f"{expression} has {len(series)} samples"
        return float(series[0]["value"][1]) if series else None

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of the HTTP API; an error of the API fails the test in its words."""
        address = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _up(self) -> int:
        return len(self.query("up == 1"))


def _configuration(targets: tuple[Target, ...]) -> dict[str, Any]:
    scrapes = [
        {
            "job_name": target.job,
            "honor_labels": target.honor_labels,
            "static_configs": [{"targets": [f"{target.host}:{target.port}"], "labels": dict(target.labels)}],
        }
        for target in targets
    ]
    seconds = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "2s"}
    return {"global": seconds, "rule_files": [str(ALERTS)], "scrape_configs": scrapes}
