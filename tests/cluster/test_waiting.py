"""Every reason of waiting, provoked on a real node, and what GitOps tools make of such cycles.

All cycles wait side by side. How long each took to say why is printed at the end (`pytest -s`).
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
import yaml

from medgr2_api.waiting import WaitingReason
from tests.cluster import images, tools
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import Document, Kubectl, eventually, fresh_namespace, serve_crd
from tests.cluster.node import Node
from tests.cluster.operator import ForkedOperator
from tests.support.kwok_env import QUICKSTART

pytestmark = pytest.mark.cluster

R = WaitingReason
POD = "/spec/template/spec"
MAIN = f"{POD}/containers/0"
GITOPS = Path(__file__).parents[2] / "charts" / "medgr2-operator" / "files" / "gitops"
CLAIM = "medgr2-data"
#: Until a cycle says what it waits for; `eventually` is as patient as a busy machine asks for.
TOLD_SECONDS = 30
#: All of them have to fit on a small node.
LITTLE = {"requests": {"cpu": "5m", "memory": "8Mi"}, "limits": {"memory": "64Mi"}}


def add(path: str, value: Any) -> Document:
    return {"op": "add", "path": path, "value": value}


def container(name: str, *command: str) -> Document:
    return {"name": name, "image": images.PAUSE.reference, "imagePullPolicy": "Never", "command": list(command)}


def runs(*command: str) -> Document:
    """What the stage runs."""
    return add(f"{MAIN}/command", list(command))


def variable(kind: str) -> Document:
    return {"name": "KEY", "valueFrom": {kind: {"name": "not-there", "key": "k"}}}


def volume(**source: Any) -> list[Document]:
    """One more volume of the pod."""
    mount = {"name": "more", "mountPath": "/more"}
    return [add(f"{POD}/volumes/-", {"name": "more", **source}), add(f"{MAIN}/volumeMounts/-", mount)]


@dataclass(frozen=True)
class Case:
    """A cycle that waits."""

    reason: WaitingReason
    words: str = ""
    """Something that the message has."""
    spec: Document = field(default_factory=dict)
    patches: tuple[Document, ...] = ()
    place: str = "plain"
    """Which of the namespaces."""


CASES: dict[str, Case] = {
    "approval": Case(R.AWAITING_APPROVAL, spec={"pauseBefore": ["prepare"]}),
    "queue": Case(R.AWAITING_QUOTA, "queue", {"queueing": {"queueName": "gpu"}}),
    "gated": Case(R.SCHEDULING_GATED, "a.io/gate", patches=(add(f"{POD}/schedulingGates", [{"name": "a.io/gate"}]),)),
    "no-claim": Case(
        R.AWAITING_VOLUME,
        "does not exist",
        {"workspace": {"persistentVolumeClaim": {"claimName": "not-there"}}},
    ),
    "unbound-claim": Case(
        R.AWAITING_VOLUME, "PersistentVolumeClaim", {"workspace": {"persistentVolumeClaim": {"claimName": "unbound"}}}
    ),
    "no-such-path": Case(
        R.AWAITING_VOLUME, "FailedMount", patches=tuple(volume(hostPath={"path": "/not/there", "type": "Directory"}))
    ),
    "secret-variable": Case(R.AWAITING_SECRET, "not-there", {"template": {"env": [variable("secretKeyRef")]}}),
    "configmap-variable": Case(R.AWAITING_SECRET, "not-there", {"template": {"env": [variable("configMapKeyRef")]}}),
    "secret-volume": Case(R.AWAITING_SECRET, "not-there", patches=tuple(volume(secret={"secretName": "not-there"}))),
    "image": Case(R.IMAGE_PULL, "localhost/not-there", {"template": {"image": "localhost/not-there:1"}}),
    "root": Case(
        R.CONTAINER_CONFIG,
        "runAsNonRoot",
        patches=(
            {"op": "remove", "path": f"{POD}/securityContext/runAsUser"},
            {"op": "remove", "path": f"{POD}/securityContext/runAsGroup"},
            add(f"{MAIN}/securityContext/runAsNonRoot", True),
        ),
    ),
    "too-large": Case(
        R.UNSCHEDULABLE,
        "cpu",
        {"stages": [{"name": "prepare", "resources": {"requests": {"cpu": "900"}, "limits": {"cpu": "900"}}}]},
    ),
    "no-scheduler": Case(R.UNSCHEDULABLE, "nobody", patches=(add(f"{POD}/schedulerName", "nobody"),)),
    "pods-quota": Case(R.PODS_NOT_CREATED, "exceeded quota", place="few-pods"),
    "pod-security": Case(R.PODS_NOT_CREATED, "PodSecurity", patches=(add(f"{POD}/hostNetwork", True),), place="strict"),
    "no-account": Case(R.PODS_NOT_CREATED, "not-there", {"template": {"serviceAccountName": "not-there"}}),
    "jobs-quota": Case(R.JOB_REFUSED, "exceeded quota", place="few-jobs"),
    "policy": Case(R.JOB_REFUSED, "not this one", patches=(add("/metadata/labels/forbidden", "yes"),)),
    "no-sandbox": Case(R.CONTAINER_CREATING, "not-there", patches=(add(f"{POD}/runtimeClassName", "medgr2-broken"),)),
    "init": Case(
        R.INIT_CONTAINERS, "slow", patches=(add(f"{POD}/initContainers", [container("slow", "sleep", "3600")]),)
    ),
    "sidecar": Case(
        R.SIDECAR_STILL_RUNS,
        "injected",
        patches=(runs("true"), add(f"{POD}/containers/-", container("injected", "sleep", "3600"))),
    ),
    "fails": Case(
        R.BACKOFF, patches=(runs("false"),), spec={"failurePolicy": {"backoffSeconds": 600, "maxBackoffSeconds": 600}}
    ),
}
#: Cycles that wait for nothing: what they are at the end.
OTHERS: dict[str, tuple[Document, tuple[Document, ...], str]] = {
    "wrong-job": ({}, (add(f"{POD}/activeDeadlineSeconds", -1),), "Failed"),
    "fails-for-good": ({"failurePolicy": {"maxRetries": 0}}, (runs("false"),), "Failed"),
    "invalid": ({"policy": {"baseModel": "builtin://no-such-model"}}, (), "Invalid"),
    "suspended": ({"suspend": True}, (), "Suspended"),
    "at-work": ({}, (runs("sleep", "3600"),), "Running"),
}


@dataclass
class WaitingRoom:
    """The namespaces with all cycles, and when each of them said what it waits for."""

    control_plane: ControlPlane
    namespaces: dict[str, str]
    log: Path
    began: float = 0.0
    told: dict[str, float] = field(default_factory=dict)
    telling: dict[str, Document] = field(default_factory=dict)
    """Each as it was then."""
    cycles: dict[str, Document] = field(default_factory=dict)
    """As last seen, by name."""

    def apply(self, name: str, place: str, spec: Document, patches: tuple[Document, ...]) -> None:
        document = yaml.safe_load(QUICKSTART.read_text())
        document["metadata"]["name"] = name
        document["spec"] |= {"iterations": 1, "stages": [{"name": "prepare", "resources": LITTLE}], **spec}
        template = document["spec"].get("template", {})
        document["spec"]["template"] = {**template, "patches": list(patches), "terminationGracePeriodSeconds": 10}
        Kubectl(self.control_plane, self.namespaces[place]).apply(document)

    def watch(self, over: threading.Event) -> None:
        """Asks twice a second, and notes when a cycle first tells its reason."""
        objects = kubernetes.client.CustomObjectsApi(self.control_plane.client())
        while not over.wait(0.5):
            for namespace in self.namespaces.values():
                with suppress(kubernetes.client.ApiException):
                    found = objects.list_namespaced_custom_object("medgr2.io", "v1alpha1", namespace, "medgr2cycles")
                    for cycle in found["items"]:
                        self._note(cycle)

    def _note(self, cycle: Document) -> None:
        name = cycle["metadata"]["name"]
        self.cycles[name] = cycle
        case = CASES.get(name)
        if case is not None and name not in self.told and self._tells(name, case):
            self.told[name] = time.monotonic() - self.began
            self.telling[name] = cycle

    def _tells(self, name: str, case: Case) -> bool:
        """Whether it names reason and cause; a cause that an event tells can be known later than the reason."""
        said = self.condition(name, "Progressing")
        return said.get("reason") == case.reason and case.words in said["message"]

    def condition(self, name: str, kind: str) -> Document:
        return condition_of(self.cycles.get(name, {}), kind)

    def events(self, name: str, place: str) -> set[tuple[str, str]]:
        """Type and reason of the operator's events about a cycle."""
        events = Kubectl(self.control_plane, self.namespaces[place]).get("events")["items"]
        return {
            (event["type"], event["reason"])
            for event in events
            if (event["involvedObject"]["kind"], event["involvedObject"]["name"]) == ("MedGR2Cycle", name)
        }


@pytest.fixture(scope="module")
def room(node_cluster: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WaitingRoom]:
    """Everything waits when the first test begins."""
    control_plane = node_cluster.control_plane
    serve_crd(control_plane)
    node_cluster.import_image(images.PAUSE)
    folder = tmp_path_factory.mktemp("waiting")
    with ExitStack() as stack:
        places = ("plain", "few-pods", "strict", "few-jobs")
        namespaces = {place: stack.enter_context(fresh_namespace(control_plane, place)) for place in places}
        room = WaitingRoom(control_plane, namespaces, folder / "operator-0.log")
        prepare(node_cluster, namespaces)
        stack.callback(control_plane.kubectl, "delete", "-f", "-", stdin=yaml.safe_dump_all(CLUSTER_WIDE), check=False)
        operator = ForkedOperator(control_plane, folder, ",".join(namespaces.values()))
        stack.callback(operator.kill)
        operator.start(namespace=namespaces["plain"], image=images.PAUSE.reference)
        eventually(lambda: operator.get("/readyz")[0] == 200, "the operator is up")
        over = threading.Event()
        watching = threading.Thread(target=room.watch, args=(over,))
        room.began = time.monotonic()
        watching.start()
        try:
            for name, case in CASES.items():
                room.apply(name, case.place, case.spec, case.patches)
            for name, (spec, patches, _) in OTHERS.items():
                room.apply(name, "plain", spec, patches)
            yield room
        finally:
            over.set()
            watching.join()
            for name in sorted(CASES, key=lambda name: room.told.get(name, 1e9)):
                print(f"{room.told.get(name, float('nan')):6.1f} s  {CASES[name].reason:20}{name}")


#: A policy that denies Jobs, and a runtime that containerd does not have.
CLUSTER_WIDE: tuple[Document, ...] = (
    {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "medgr2-forbidden"},
        "spec": {
            "matchConstraints": {
                "resourceRules": [
                    {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
                ]
            },
            "validations": [{"expression": "!('forbidden' in object.metadata.labels)", "message": "not this one"}],
        },
    },
    {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "medgr2-forbidden"},
        "spec": {"policyName": "medgr2-forbidden", "validationActions": ["Deny"]},
    },
    {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": "medgr2-broken"},
        "handler": "not-there",
    },
)


def prepare(node: Node, namespaces: dict[str, str]) -> None:
    """What the cycles find: a volume in each namespace, quotas, a strict namespace."""
    control_plane = node.control_plane
    control_plane.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(CLUSTER_WIDE))
    for place, namespace in namespaces.items():
        kubectl = Kubectl(control_plane, namespace)
        common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
        spec = {**common, "resources": {"requests": {"storage": "1Gi"}}}
        source = {"capacity": {"storage": "1Gi"}, "hostPath": {"path": str(node.folder_for(namespace))}}
        reserved = {"claimRef": {"namespace": namespace, "name": CLAIM}}
        volume_spec = {**common, **source, **reserved, "persistentVolumeReclaimPolicy": "Retain"}
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}}
        kubectl.apply(
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": namespace}, "spec": volume_spec},
            {**claim, "spec": {**spec, "volumeName": namespace}},
        )
        if place == "plain":
            kubectl.apply({**claim, "metadata": {"name": "unbound"}, "spec": spec})
        for quota, hard in (("few-pods", "pods"), ("few-jobs", "count/jobs.batch")):
            if place == quota:
                manifest = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}}
                kubectl.apply({**manifest, "spec": {"hard": {hard: "0"}}})
    strict = "pod-security.kubernetes.io/enforce=restricted"
    control_plane.kubectl("label", "namespace", namespaces["strict"], strict)


@pytest.mark.parametrize("name", CASES)
def test_it_says_what_it_waits_for(room: WaitingRoom, name: str, record_property: Any) -> None:
    case = CASES[name]
    eventually(lambda: name in room.told, f"{name} tells {case.reason}: {case.words}", TOLD_SECONDS)
    record_property("seconds", round(room.told[name], 1))
    cycle = room.telling[name]
    assert cycle["status"]["phase"] == ("Paused" if case.reason is R.AWAITING_APPROVAL else "Waiting")
    if name != "no-claim":  # no stage has begun
        (stage,) = cycle["status"]["stages"]
        said = stage["state"] if case.reason is R.AWAITING_APPROVAL else stage.get("reason")
        assert case.reason is R.BACKOFF or said == case.reason
        assert str(case.reason) in cycle["status"]["summary"]
    if case.reason is not R.BACKOFF and name != "no-claim":
        kind = "Warning" if case.reason.stalls else "Normal"
        eventually(lambda: (kind, str(case.reason)) in room.events(name, case.place), "the event", 20)


def test_gitops_tools_read_them(room: WaitingRoom) -> None:
    """By kstatus' own library, Flux's evaluator and Argo CD's Lua."""
    for name, (_, _, phase) in OTHERS.items():
        eventually(lambda name=name, phase=phase: phase_of(room, name) == phase, f"{name} is {phase}", 60)
    stalled = [name for name, case in CASES.items() if case.reason.stalls]
    for name in stalled:
        eventually(lambda name=name: room.condition(name, "Stalled").get("status") == "True", f"{name} stalls", 90)
    said = gitops_health(room.cycles)
    held = {"approval", "suspended"}
    bad = {*stalled, "wrong-job", "fails-for-good", "invalid"}
    expected = {name: "Failed" if name in bad else "InProgress" for name in room.cycles}
    assert {name: answer["kstatus"] for name, answer in said.items()} == expected
    assert {name: answer["flux"] for name, answer in said.items()} == expected | {"suspended": "Current"}
    words = {"Failed": "Degraded", "InProgress": "Progressing"}
    argo = {name: "Suspended" if name in held else words[status] for name, status in expected.items()}
    assert {name: answer["argo"] for name, answer in said.items()} == argo
    assert "exceeded quota" in said["jobs-quota"]["message"]
    fresh = {**room.cycles["at-work"], "status": {"observedGeneration": -1}}
    old = json.loads(json.dumps(room.cycles["fails-for-good"]))
    old["metadata"]["generation"] += 1
    for answer in gitops_health({"fresh": fresh, "edited": old}).values():
        assert (answer["kstatus"], answer["flux"], answer["argo"]) == ("InProgress", "InProgress", "Progressing")


def test_waiting_for_reconciling_to_end_never_hangs(room: WaitingRoom) -> None:
    """The recipe of docs/gitops.md comes for whatever a person has to look at, or is over."""
    for name in ("approval", "suspended", "invalid", "wrong-job", "fails-for-good", "image", "no-claim"):
        namespace = room.cycles[name]["metadata"]["namespace"]
        Kubectl(room.control_plane, namespace)(
            "wait", "--for=condition=Reconciling=False", f"mgc/{name}", "--timeout=240s"
        )


def test_an_edit_of_what_is_over_is_answered(room: WaitingRoom) -> None:
    """`kubectl wait` compares the condition's generation with the object's."""
    kubectl = Kubectl(room.control_plane, room.namespaces["plain"])
    eventually(lambda: phase_of(room, "fails-for-good") == "Failed", "it has failed")
    kubectl("patch", "mgc", "fails-for-good", "--type=merge", "-p", '{"spec": {"maxParallelStages": 2}}')
    for condition in ("Failed", "Stalled", "Reconciling=False"):
        kubectl("wait", f"--for=condition={condition}", "mgc/fails-for-good", "--timeout=120s")


def condition_of(cycle: Document, kind: str) -> Document:
    conditions = cycle.get("status", {}).get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == kind), {})


def phase_of(room: WaitingRoom, name: str) -> str:
    return str(room.cycles.get(name, {}).get("status", {}).get("phase", ""))


def gitops_health(objects: dict[str, Document]) -> dict[str, dict[str, str]]:
    (expressions,) = yaml.safe_load((GITOPS / "flux-health.yaml").read_text())
    asked = {
        "lua": (GITOPS / "argocd-health.lua").read_text(),
        "expressions": {name: expressions[name] for name in ("current", "inProgress", "failed")},
        "objects": objects,
    }
    program = tools.ensure(["gitops-health"])["gitops-health"]
    done = subprocess.run([program], input=json.dumps(asked), capture_output=True, text=True, check=True)
    answers: dict[str, dict[str, str]] = json.loads(done.stdout)
    return answers
