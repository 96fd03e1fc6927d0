"""The operator with the rights that the chart gives it, through everything it can meet: none is missing, none unused.

What it asked and what it was allowed is read from the API server's audit log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from medgr2_api.crd import NEVER_OBSERVED
from medgr2_api.stage_contract import Progress
from medgr2_operator.render.render_context import RenderSettings
from tests.cluster.audit import Event
from tests.cluster.chart.conftest import restricted_namespace
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import Document, eventually
from tests.cluster.helm import RELEASE, Helm
from tests.cluster.kwok import Kwok, behaviour
from tests.cluster.operator import Operator
from tests.cluster.rbac import Grant, denied, grants, unused
from tests.support.chart_fixtures import CLAIM, CLAIM_TEMPLATE, ChartEnv, chart_env

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

#: On loopback, and outside the addresses that kwok gives away.
POD_ADDRESS = "127.65.0.1"
NODE = "lost"
#: The taint of a node that only a test's own pods go to.
OWN = "kwok.medgr2.io/own"
LOST_SECONDS = 180


def test_cluster_wide(
    own_cluster: ControlPlane, own_kwok: Kwok, cluster_helm: Helm, home: str, team: str, tmp_path: Path
) -> None:
    cluster_helm.install(home, values={"replicas": 1})
    with chart_env(own_cluster, team, tmp_path, home) as env:
        live_through_everything(env, own_kwok)
    events = asked(own_cluster, home)
    given = grants(own_cluster, home, RELEASE)
    assert denied(events) == []
    assert unused(given, events) == []
    assert {grant.namespace for grant in given} == {"", home}
    assert {grant.resource for grant in given if grant.namespace == home} == {"leases"}
    assert_that_the_proof_can_fail(own_cluster, home, given, events)
    cluster_helm.uninstall(home)


def test_in_named_namespaces(
    own_cluster: ControlPlane, own_kwok: Kwok, cluster_helm: Helm, home: str, team: str, tmp_path: Path
) -> None:
    with restricted_namespace(own_cluster, "idle") as idle, restricted_namespace(own_cluster, "foreign") as foreign:
        cluster_helm.install(home, values={"replicas": 1, "watchNamespaces": [team, idle]})
        with (
            chart_env(own_cluster, team, tmp_path, home) as env,
            chart_env(own_cluster, foreign, tmp_path, home) as elsewhere,
        ):
            elsewhere.apply()
            live_through_everything(env, own_kwok)
            assert elsewhere.cycle()["status"] == NEVER_OBSERVED
        events = asked(own_cluster, home)
        given = grants(own_cluster, home, RELEASE)
        assert denied(events) == []
        assert {event.namespace for event in events} == {team, idle, home}
        here = {(g.group, g.resource, g.verb) for g in given if g.namespace == team}
        assert {(g.group, g.resource, g.verb) for g in given if g.namespace == idle} == here
        assert unused([grant for grant in given if grant.namespace != idle], events) == []
        assert {grant.namespace for grant in given} == {team, idle, home}, "no right in the cluster as a whole"
        cluster_helm.uninstall(home)


def asked(cluster: ControlPlane, home: str) -> list[Event]:
    """All that the chart's ServiceAccount asked for."""
    return list(cluster.audit.events(user=f"system:serviceaccount:{home}:{RELEASE}"))


def assert_that_the_proof_can_fail(cluster: ControlPlane, home: str, given: list[Grant], events: list[Event]) -> None:
    """A right too many, another one's name, a right too few: each is seen."""
    for extra in (
        Grant("", "", "secrets", "get"),
        Grant("", "batch", "jobs", "update"),
        Grant("", "medgr2.io", "medgr2cycles", "update"),  # beside medgr2cycles/status
        Grant(home, "coordination.k8s.io", "leases", "get", "another"),
        Grant("", "*", "*", "*"),
    ):
        assert unused([*given, extra], events) == [extra]
    kubeconfig = cluster.service_account_kubeconfig(home, RELEASE)
    cluster.kubectl("get", "secret", "key", "-n", home, kubeconfig=kubeconfig, check=False)
    eventually(lambda: denied(asked(cluster, home)) == [f"get /secrets/ {home}/key"], "a refusal in the audit log")


# -- everything --------------------------------------------------------------------------------------------------------


def live_through_everything(env: ChartEnv, kwok: Kwok) -> None:
    """Ends with all operators stopped, for the API server notes a watch when it ends."""
    standby = env.replica("operator-1")
    env.operator.start()
    leads(env, env.operator)
    standby.start()
    with lost_pod(env, kwok) as lost:
        failures_retries_and_two_nodes(env)
        a_stranger(env)
        a_queue(env)
        a_job_without_pods(env)
        a_short_life(env)
        suspended_under_two_leaders(env)
        progress(env)
        eventually(lambda: wake(env, "lost") or given_up(env, lost), "the lost pod is deleted", LOST_SECONDS)
        env.deleted("lost")
    assert standby.stop() == 0, "and it gives its Lease up"
    assert not holder(env)


@contextmanager
def lost_pod(env: ChartEnv, kwok: Kwok) -> Iterator[str]:
    """The pod of a cycle `lost`, whose node went silent: over a minute later the operator deletes it."""
    kwok.add_node(NODE)
    try:
        env.kubectl("taint", "node", NODE, f"{OWN}={NODE}:NoSchedule", "--overwrite")
        eventually(lambda: kwok.is_ready(NODE), "the node is ready")
        template = {
            "nodeSelector": {"kubernetes.io/hostname": NODE},
            "tolerations": [{"key": OWN, "operator": "Exists"}],  # not what Kubernetes says of silent nodes
            "terminationGracePeriodSeconds": 10,
        }
        env.apply("lost", annotations=behaviour(run="forever"), template=template)
        running(env, "lost")
        kwok.unreachable(NODE)
        (pod,) = env.live_pods()
        env.kubectl("delete", "pod", pod, "--wait=false", "--grace-period=1")
        yield pod
    finally:
        kwok.remove_node(NODE)


def failures_retries_and_two_nodes(env: ChartEnv) -> None:
    """Every stage fails once; its Job is replaced and deleted; the claim is the cycle's own."""
    env.make_volume()
    claim = {"volumeClaimTemplate": CLAIM_TEMPLATE, "retention": {"whenDeleted": "Delete"}}
    stages: list[Document] = [{"name": "sft", "numNodes": 2}]
    env.apply("loop", annotations=behaviour(attempt=1, exit_code=1), workspace=claim, stages=stages)
    env.wait("Complete")
    assert env.stage("sft")["attempt"] == 2
    assert env.kubectl.get("services", "-l", "medgr2.io/cycle=loop")["items"]
    env.deleted("loop")
    eventually(lambda: not env.find("pvc", CLAIM), "the claim is gone")


def a_stranger(env: ChartEnv) -> None:
    env.apply("guest", suspend=True, annotations=behaviour(run="forever"))
    env.wait("Suspended", "guest")
    name = env.first_job_name("guest")
    env.stranger(name)
    env.patch({"spec": {"suspend": False}}, "guest")
    env.wait("NameConflict", "guest")
    env.kubectl("delete", "job", name)
    running(env, "guest")
    env.deleted("guest")


def a_queue(env: ChartEnv) -> None:
    """There is no Kueue, so the Job stays suspended, and what it waits for is asked for in vain."""
    env.apply("queued", queueing={"queueName": "gpu"})
    audit = env.control_plane.audit
    eventually(lambda: list(audit.events(namespace=env.namespace, resource="workloads")), "the Workloads are listed")
    env.deleted("queued")


def a_job_without_pods(env: ChartEnv) -> None:
    """Its ServiceAccount is not there, which only an event says."""
    env.apply("podless", template={"serviceAccountName": "nobody"})
    eventually(lambda: env.stage("prepare", 0, "podless").get("reason") == "PodsNotCreated", "the cause", 60)
    env.deleted("podless")


def a_short_life(env: ChartEnv) -> None:
    env.apply("short", annotations=behaviour(exit_code=2), ttlSecondsAfterFinished=1)
    eventually(lambda: env.find("medgr2cycle", "short") is None, "it is gone", 120)


def suspended_under_two_leaders(env: ChartEnv) -> None:
    """The second leader meets an event that the first has written."""
    env.apply("held", annotations=behaviour(run="forever", term_exit_code=85))
    running(env, "held")
    env.patch({"spec": {"suspend": True}}, "held")
    env.wait("Suspended", "held")
    env.patch({"spec": {"suspend": False}}, "held")
    running(env, "held")
    env.operator.kill()
    leads(env, env.operators[1])
    env.patch({"spec": {"suspend": True}}, "held")
    env.wait("Suspended", "held")
    eventually(lambda: 2 in counts(env, "held", "Suspended"), "the event is counted")
    env.deleted("held")


def progress(env: ChartEnv) -> None:
    """What a running stage says is in the status. It is asked directly, which takes no right."""
    with telling(Progress(step=3, total=12)):
        env.apply("told", annotations=behaviour(run="forever", pod_ip=POD_ADDRESS))
        eventually(lambda: env.stage("prepare", 0, "told").get("progress", {}).get("step") == 3, "the progress", 90)
    env.deleted("told")


@contextmanager
def telling(progress: Progress) -> Iterator[None]:
    """A stage's own port, at the address of a pod."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(progress.model_dump_json(by_alias=True).encode())

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer((POD_ADDRESS, RenderSettings(image="x").progress_port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


# -- details -----------------------------------------------------------------------------------------------------------


def leads(env: ChartEnv, operator: Operator) -> None:
    eventually(lambda: holder(env) == operator.name, f"{operator.name} leads", 90)


def running(env: ChartEnv, name: str) -> None:
    eventually(lambda: env.stage("prepare", 0, name).get("state") == "Running", f"{name} runs", 120)


def wake(env: ChartEnv, name: str) -> None:
    """Any change of a cycle makes the operator look at it; by itself it would look once a minute."""
    env.kubectl("annotate", "medgr2cycle", name, "--overwrite", f"woken={time.monotonic()}")


def given_up(env: ChartEnv, pod: str) -> bool:
    """Whether the pod was deleted without grace."""
    manifest = env.find("pod", pod)
    return manifest is None or manifest["metadata"].get("deletionGracePeriodSeconds") == 0


def counts(env: ChartEnv, name: str, reason: str) -> list[int]:
    """How often the operator's events of that reason happened."""
    events = env.kubectl.get("events")["items"]
    return [e["count"] for e in events if (e["involvedObject"]["name"], e["reason"]) == (name, reason)]


def holder(env: ChartEnv) -> str:
    lease = env.control_plane.kubectl("get", "lease", RELEASE, "-n", env.home, "-o", "jsonpath={.spec.holderIdentity}")
    return lease.strip()
