"""The metrics, dashboards and alerts against a real Prometheus that scrapes a real operator and a stage's port."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from monitoring import queries, table
from prometheus_client.parser import text_string_to_metric_families

from medgr2_api.stage_contract import CycleRef, Progress, StageRequest
from medgr2_jobs.runner.metrics_server import FIGURES, handler
from tests.cluster import tools
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import Document, Kubectl, eventually, fresh_namespace
from tests.cluster.kwok import Kwok, behaviour
from tests.cluster.prometheus import Prometheus, Target
from tests.support.kwok_env import KwokEnv

STAGE_PORT = 8080  # where the operator asks every pod


class Stage:
    """A stage's own port, as its pod would serve it, on a loopback address of its own."""

    def __init__(self, folder: Path) -> None:
        self.address = f"127.77.{os.getpid() % 250}.{os.getpid() // 250 % 250 + 1}"
        self._file = folder / "progress.json"
        cycle = CycleRef(name="loop", uid="u")
        request = StageRequest(cycle=cycle, iteration=1, stage="grpo", input_hash="h", parameters={})
        self._server = ThreadingHTTPServer((self.address, STAGE_PORT), handler(self._file, request))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def tell(self, step: int) -> None:
        """How far it is, with every figure there is."""
        figures = dict.fromkeys(FIGURES, step + 0.5)
        progress = Progress(phase="grpo", step=step, total=40, eta_seconds=40.0 - step, metrics=figures)
        self._file.write_text(json.dumps(progress.dump()))

    def close(self) -> None:
        """Nobody answers any more."""
        self._server.shutdown()
        self._server.server_close()


@dataclass
class MonitoredCycles:
    """Three cycles that came as far as they get, and the Prometheus that scrapes them."""

    env: KwokEnv
    prometheus: Prometheus
    stage: Stage
    began: float

    def filled(self, query: queries.Query, cycle: str) -> str:
        """An expression as Grafana would send it."""
        values = {"job": "medgr2-operator", "namespace": self.env.namespace, "cycle": cycle}
        return query.filled(**values, __rate_interval="30s", __range="10m")

    def shown(self, query: queries.Query) -> list[dict[str, Any]]:
        """The series that a panel would show for any of the cycles."""
        series = []
        for cycle in ("loop", "stuck"):
            expression = self.filled(query, cycle)
            if query.instant:
                series += self.prometheus.query(expression)
            else:
                window = {"start": str(self.began), "end": str(time.time()), "step": "2"}
                series += self.prometheus.get("query_range", query=expression, **window)["result"]
        return series


@pytest.fixture(scope="module")
def monitored(
    control_plane: ControlPlane, kwok_cluster: Kwok, crd: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MonitoredCycles]:
    folder = tmp_path_factory.mktemp("metrics")
    with fresh_namespace(control_plane, "metrics") as namespace:
        env = KwokEnv(control_plane, Kubectl(control_plane, namespace), namespace, folder)
        env.make_claim()
        stage, prometheus = Stage(folder), Prometheus(folder)
        try:
            began = time.time()
            env.operator.start()
            eventually(lambda: env.operator.get("/readyz")[0] == 200, "the operator is ready")
            stage.tell(0)
            operator = {"namespace": "medgr2-system", "pod": "operator-0"}
            pod = {"namespace": namespace, "pod": "grpo-0"}
            prometheus.start(
                Target("medgr2-operator", env.operator.port, labels=operator, honor_labels=True),
                Target("medgr2-stages", STAGE_PORT, stage.address, labels=pod),
            )
            _play(env, prometheus, stage)
            yield MonitoredCycles(env, prometheus, stage, began)
        finally:
            prometheus.stop()
            stage.close()
            env.close()


def _play(env: KwokEnv, prometheus: Prometheus, stage: Stage) -> None:
    """One cycle loses a GPU stage and completes, one waits for an image, one fails, one cannot be rendered."""
    grpo = {**behaviour(attempt=1, run="forever", pod_ip=stage.address), **behaviour(attempt=2, delay_ms=2500)}
    scores = {f"validation/{name}/macroAccuracy": value for name, value in (("base", 0.4), ("sft", 0.5), ("grpo", 0.6))}
    env.apply(
        stages=[
            {"name": "grpo", "resources": {"limits": {"nvidia.com/gpu": 2}}, "patches": [_annotations(grpo)]},
            {"name": "measure", "patches": [_annotations(behaviour(result={"metrics": scores}))]},
        ]
    )
    env.apply("stuck", behaviour(waiting="ImagePullBackOff"))
    env.apply("failed", behaviour(exit_code=78))
    env.apply("invalid", template={"patches": [{"op": "remove", "path": "/spec/nothing"}]})
    env.running("grpo")
    stage.tell(10)
    progress = f'medgr2_cycle_stage_progress_ratio{{namespace="{env.namespace}", stage="grpo"}}'
    eventually(lambda: prometheus.value(progress) == 0.25, "the operator asked the stage, Prometheus the operator", 90)
    stage.tell(20)
    env.kubectl("delete", "pod", "-l", "medgr2.io/stage=grpo,medgr2.io/cycle=loop", "--wait=false")
    env.wait("Complete")
    env.wait("Failed", "failed")
    done = (
        f'sum(medgr2_stage_attempts_total{{stage="report", outcome="Succeeded"}}) == 1 and on () {_phase("Complete")}'
    )
    eventually(lambda: prometheus.query(done), "Prometheus saw the end")


def _phase(phase: str) -> str:
    return f'(count(medgr2_cycle_phase{{phase="{phase}"}}) > 0)'


def _annotations(annotations: dict[str, str]) -> Document:
    return {"op": "add", "path": "/spec/template/metadata/annotations", "value": annotations}


def test_every_metric_of_the_table_has_samples(monitored: MonitoredCycles) -> None:
    names = {sample["metric"]["__name__"] for sample in monitored.prometheus.query('{job=~"medgr2-.*"}')}
    seen = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    rows = [*table.operator_rows(), *table.stage_rows()]
    seen |= {
        row.name for row in rows if monitored.prometheus.query(f"last_over_time({row.name}[10m])")
    }  # what has ended
    assert {row.name for row in rows} - seen == set()
    of_others = re.compile("up|scrape_.*|ALERTS.*")
    scraped = {name for name in seen if not of_others.fullmatch(name)}
    assert scraped - {row.name for row in rows} == set(), "not in the table"


def test_labels_are_those_of_the_table(monitored: MonitoredCycles) -> None:
    added = {"__name__", "job", "instance", "namespace", "pod", "le"}
    for row in (*table.operator_rows(), *table.stage_rows()):
        name = f"{row.name}_bucket" if row.kind == "histogram" else row.name
        for series in monitored.prometheus.query(f"last_over_time({name}[10m])"):
            assert set(series["metric"]) - added == set(row.labels) - added, row.name


def test_the_exposition_is_clean(monitored: MonitoredCycles) -> None:
    operator = monitored.env.operator.get("/metrics")[1]
    stage = "".join(f"{line}\n" for line in _scraped(monitored.stage))
    for text in (operator, stage):
        done = subprocess.run(
            [tools.ensure(["promtool"])["promtool"], "check", "metrics", "--extended"],
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def _scraped(stage: Stage) -> list[str]:
    from urllib.request import urlopen

    with urlopen(f"http://{stage.address}:{STAGE_PORT}/metrics", timeout=60) as answer:
        return list(answer.read().decode().splitlines())


def test_what_was_counted_is_what_happened(monitored: MonitoredCycles) -> None:
    value = monitored.prometheus.value
    stages = monitored.env.cycle()["status"]["stages"]
    succeeded = sum(stage["state"] == "Succeeded" for stage in stages)
    assert value('sum(medgr2_stage_attempts_total{outcome="Succeeded"})') == succeeded
    assert value('sum(medgr2_stage_attempts_total{outcome="Infrastructure", stage="grpo"})') == 1
    assert value('sum(medgr2_stage_attempts_total{outcome="Permanent", stage="prepare"})') == 1
    assert value("sum(medgr2_stage_attempts_total)") == succeeded + 2
    usage = monitored.env.cycle()["status"]["usage"]
    assert value("medgr2_gpu_seconds_total") == pytest.approx(usage["gpuSeconds"])
    assert value("medgr2_gpu_wasted_seconds_total") == pytest.approx(usage["wastedGPUSeconds"])
    assert usage["gpuSeconds"] > usage["wastedGPUSeconds"] > 0
    assert (value("medgr2_cycle_best_score_ratio"), value("leader_election_master_status")) == (0.6, 1)
    phases = {
        series["metric"]["phase"]: series["value"][1] for series in monitored.prometheus.query("medgr2_cycles > 0")
    }
    assert phases == {"Complete": "1", "Failed": "1", "Invalid": "1", "Waiting": "1"}

    def waits() -> list[tuple[str, str]]:
        series = monitored.prometheus.query("medgr2_cycle_stage_pending_since_timestamp_seconds")
        return [(each["metric"]["cycle"], each["metric"]["reason"]) for each in series]

    eventually(lambda: waits() == [("stuck", "ImagePull")], "the cause is seen, a look later")
    created = value('sum(rest_client_requests_total{method="POST", code="201"})') or 0
    assert created >= len(monitored.env.created_jobs())


@pytest.mark.parametrize("query", list(queries.of_dashboards()), ids=lambda query: query.place)
def test_a_panel_shows_something(monitored: MonitoredCycles, query: queries.Query) -> None:
    series = monitored.shown(query)
    assert series, query.expression
    for one in series:
        legend_labels = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
        assert legend_labels <= set(one["metric"]), f"the legend {query.legend} names no label of {one['metric']}"


def test_the_choices_of_the_dashboards_are_offered(monitored: MonitoredCycles) -> None:
    offered = {}
    for path in sorted(queries.FOLDER.glob("*.json")):
        for variable in json.loads(path.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"])
                assert match
                matcher = match[1].replace("$namespace", monitored.env.namespace)
                offered[path.stem, variable["name"]] = monitored.prometheus.get(
                    f"label/{match[2]}/values", **{"match[]": matcher}
                )
    assert offered == {
        ("cycle", "cycle"): ["failed", "invalid", "loop", "stuck"],
        ("cycle", "namespace"): [monitored.env.namespace],
        ("fleet", "job"): ["medgr2-operator"],
        ("fleet", "namespace"): [monitored.env.namespace],
    }


def test_the_alerts_are_evaluated_and_those_fire_that_should(monitored: MonitoredCycles) -> None:
    def rules() -> list[dict[str, Any]]:
        evaluated = [rule for group in monitored.prometheus.get("rules")["groups"] for rule in group["rules"]]
        return evaluated if all(rule["health"] != "unknown" for rule in evaluated) else []

    evaluated = eventually(rules, "every rule was evaluated")
    assert {rule["name"]: rule.get("lastError", "") for rule in evaluated if rule["health"] != "ok"} == {}
    assert {rule["name"] for rule in evaluated} == {query.place for query in queries.of_alerts()}
    alerts = {rule["name"]: rule["alerts"] for rule in evaluated if rule["state"] != "inactive"}
    cycles = {name: [alert["labels"].get("cycle") for alert in active] for name, active in alerts.items()}
    assert cycles == {"MedGR2CycleFailed": ["failed"], "MedGR2CycleInvalid": ["invalid"]}
    assert [alert["state"] for alert in alerts["MedGR2CycleFailed"]] == ["firing"]


@pytest.mark.parametrize("query", list(queries.of_alerts()), ids=lambda query: query.place)
def test_an_alert_looks_at_series_that_are_there(monitored: MonitoredCycles, query: queries.Query) -> None:
    never = {
        'rest_client_requests_total{code=~"5..|<error>"}',
        'medgr2_cycle_stage_pending_since_timestamp_seconds{reason="AwaitingApproval"}',
    }
    for selector in query.selectors - never:
        assert monitored.prometheus.query(f"last_over_time({selector}[10m])"), selector


def test_series_of_a_deleted_cycle_go(monitored: MonitoredCycles) -> None:
    """The last test: it takes the cycle away."""
    ours = f'count({{namespace="{monitored.env.namespace}", cycle="loop", job="medgr2-operator"}})'
    assert monitored.prometheus.value(ours)
    monitored.env.kubectl("delete", "medgr2cycle", "loop", "--wait=false")
    eventually(lambda: monitored.prometheus.value(ours) is None, "its series end")
    assert monitored.prometheus.value('count(medgr2_cycle_phase{cycle="failed"})') == 1
    assert monitored.prometheus.value('sum(medgr2_stage_attempts_total{outcome="Succeeded"})'), "what was counted stays"


def test_creations_that_are_refused_count_once_when_they_succeed(env: KwokEnv) -> None:
    """They are tried again; every attempt counts once all the same, from the end before it to its creation."""
    quota = {"metadata": {"name": "one-job"}, "spec": {"hard": {"count/jobs.batch": "1"}}}
    env.kubectl.apply({"apiVersion": "v1", "kind": "ResourceQuota", **quota})
    env.operator.start()
    env.apply()
    posts = "rest_client_requests_total"
    eventually(lambda: _sum(env, posts, method="POST", code="403") >= 3, "the second Job is refused, again and again")
    reasons = lambda: {stage.get("reason") for stage in env.cycle()["status"]["stages"]}  # noqa: E731
    eventually(lambda: "JobRefused" in reasons(), "its stage says so")
    refused = env.stage("prepare", 0)["completionTime"]
    assert _sum(env, "medgr2_stage_attempts_total", stage="prepare") == 1
    assert _sum(env, "medgr2_transition_latency_seconds_count") == 0
    lasted = time.time() - datetime.fromisoformat(refused).timestamp()
    env.kubectl("delete", "resourcequota", "one-job")
    env.wait("Complete")
    stages = env.cycle()["status"]["stages"]
    assert _sum(env, "medgr2_stage_attempts_total") == len(stages) == len(env.created_jobs())
    assert _sum(env, "medgr2_transition_latency_seconds_sum") >= lasted
    assert 0 < _sum(env, "medgr2_transition_latency_seconds_count") <= len(stages) - 1


def _sum(env: KwokEnv, name: str, **labels: str) -> float:
    """Over the operator's samples of this name with these labels."""
    families = text_string_to_metric_families(env.operator.get("/metrics")[1])
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())
