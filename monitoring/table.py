"""docs/metrics.md, from the registries of the operator and of a stage, and the alerts: `python -m monitoring.table`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from medgr2_api.stage_contract import CycleRef, Progress, StageRequest
from medgr2_jobs.runner.metrics_server import FIGURES, StageMetrics
from medgr2_operator.runtime.metrics import Metrics
from medgr2_operator.runtime.settings import Settings
from medgr2_operator.runtime.workqueue import WorkQueue

_ROOT = Path(__file__).parents[1]
PATH = _ROOT / "docs" / "metrics.md"
ALERTS = _ROOT / "charts" / "medgr2-operator" / "files" / "alerts.yaml"

_HEAD = """# Metrics

Made by `make monitoring` from the code; a test keeps it so.

The operator serves `/metrics` beside its health endpoints, every stage on its own port (`progress`, 8080). Scrape the
operator with `honorLabels: true`: the metrics of a cycle name the cycle's namespace, not the operator's. Stages name no
namespace; Prometheus adds it, with the pod, when it finds them by a PodMonitor.

Values of labels are words of the code, stages and iterations (0 to 20); only `medgr2_cycle_*` and the stages' own
metrics name a cycle, and their series end when the cycle or its pod does. A standby exports no cycles. The names of
`workqueue_*`, `controller_runtime_*`, `rest_client_*` and `leader_election_*` are those of controller-runtime, so
dashboards for any controller work.

Two Grafana dashboards, MedGR2 / Fleet and MedGR2 / Cycle, and the alerts below are files of the chart
(`charts/medgr2-operator/files`); each alert carries its runbook in an annotation.
"""


@dataclass(frozen=True)
class Row:
    """One metric."""

    name: str
    kind: str
    labels: tuple[str, ...]
    told: str


class _Registry(CollectorRegistry):
    """A registry that tells what was registered."""

    def __init__(self) -> None:
        super().__init__()
        self.collectors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        super().register(collector)
        self.collectors.append(collector)


def operator_rows() -> list[Row]:
    """The operator's metrics, by name."""
    registry = _Registry()
    Metrics(registry, WorkQueue(), Settings())
    rows = [row for collector in registry.collectors for row in _of(collector)]
    return sorted(rows, key=lambda row: (not row.name.startswith("medgr2_"), row.name))


def stage_rows() -> list[Row]:
    """A stage's metrics: those that every stage has, then those of the stages that know the figure."""
    cycle = CycleRef(name="c", uid="u")
    request = StageRequest(cycle=cycle, iteration=1, stage="sft", input_hash="h", parameters={})
    progress = Progress(eta_seconds=1.0, metrics=dict.fromkeys(FIGURES, 0.0))
    return [_row(family) for family in StageMetrics(request, progress, 0.0).collect()]


def _of(collector: Collector) -> Iterator[Row]:
    labels = getattr(collector, "_labelnames", ())  # of one metric; the library has no public word for them
    families: Iterable[Metric] = getattr(collector, "describe", collector.collect)()
    for family in families:
        yield _row(family, labels)


def _row(family: Metric, labels: Iterable[str] = ()) -> Row:
    names = tuple(labels) or tuple(getattr(family, "_labelnames", ()))
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return Row(name, family.type, names, family.documentation)


def _alerts() -> Iterator[tuple[str, str, str]]:
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            summary = re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"‹\1›", rule["annotations"]["summary"])
            yield rule["alert"], rule["labels"]["severity"], summary


def render() -> str:
    """The page."""
    parts = [_HEAD]
    for title, rows in (("Operator", operator_rows()), ("Stages", stage_rows())):
        parts += [f"## {title}\n", "| metric | type | labels | meaning |", "|---|---|---|---|"]
        parts += [f"| `{r.name}` | {r.kind} | {', '.join(f'`{n}`' for n in r.labels)} | {r.told} |" for r in rows]
        parts.append("")
    parts += ["## Alerts\n", "| alert | severity | summary |", "|---|---|---|"]
    parts += [f"| {name} | {severity} | {told} |" for name, severity, told in _alerts()]
    parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    PATH.write_text(render())
