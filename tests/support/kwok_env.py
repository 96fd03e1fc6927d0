"""A namespace with a volume claim, an operator that watches it, and words for what tests do there."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
import yaml
from kubernetes.client.exceptions import NotFoundException

from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import Document, Kubectl, eventually
from tests.cluster.kwok import Kwok, behaviour, ending_now
from tests.cluster.operator import ForkedOperator, Operator

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
#: Until the condition names the cause of a stage that waits, in seconds.
TOLD_SECONDS = 60
ENDED = ("Succeeded", "Failed")
#: A finalizer that keeps a pod which has ended, and the patch of a Job whose pods are kept so.
HELD = "medgr2.io/test"
HOLD = {"op": "add", "path": "/spec/template/metadata/finalizers", "value": [HELD]}


class KwokEnv:
    """One test's namespace on the kwok cluster, and the operator that watches it."""

    def __init__(self, control_plane: ControlPlane, kubectl: Kubectl, namespace: str, folder: Path) -> None:
        self.control_plane, self.kubectl, self.namespace, self.folder = control_plane, kubectl, namespace, folder
        self.operators: list[Operator] = []
        # asked ten times a second while a test waits: a kubectl each time would be most of a test's work
        client = control_plane.client()
        self._objects, self._core = kubernetes.client.CustomObjectsApi(client), kubernetes.client.CoreV1Api(client)
        self.operator = self.replica("operator-0")

    def replica(self, name: str, kind: type[Operator] = ForkedOperator) -> Operator:
        """Another replica, not started."""
        self.operators.append(kind(self.control_plane, self.folder, self.namespace, name))
        return self.operators[-1]

    def make_claim(self) -> None:
        """A volume of the namespace's own, and the quickstart's claim on it."""
        common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
        # reserved: a volume that is free for a moment would go to any other test's claim that waits for one
        reserved = {"claimRef": {"namespace": self.namespace, "name": "medgr2-data"}}
        volume = {**common, **reserved, "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/nowhere"}}
        claim = {**common, "resources": {"requests": {"storage": "1Gi"}}, "volumeName": self.namespace}
        self._core.create_persistent_volume({"metadata": {"name": self.namespace}, "spec": volume})
        self._core.create_namespaced_persistent_volume_claim(
            self.namespace, {"metadata": {"name": "medgr2-data"}, "spec": claim}
        )

    def close(self) -> None:
        """Ends the operators; the namespace goes by itself."""
        for operator in self.operators:
            operator.kill()
        with contextlib.suppress(NotFoundException):
            self._core.delete_persistent_volume(self.namespace)

    # -- the cycle -----------------------------------------------------------------------------------------------------

    def apply(
        self,
        name: str = "loop",
        annotations: dict[str, str] | None = None,
        annotations_of: dict[str, dict[str, str]] | None = None,
        **changes: Any,
    ) -> None:
        """A quickstart of one round. All pods behave as `annotations` say, a stage's as `annotations_of` says."""
        document = yaml.safe_load(QUICKSTART.read_text())
        document["metadata"]["name"] = name
        spec = {**document["spec"], "iterations": 1, "failurePolicy": {"backoffSeconds": 0}, **changes}
        template = spec.get("template", {})
        patches = [_annotate(annotations or behaviour()), *template.get("patches", [])]
        spec["template"] = {**template, "patches": patches}
        stages = {stage["name"]: stage for stage in spec.get("stages", [])}
        for name_, found in (annotations_of or {}).items():
            stage = stages.setdefault(name_, {"name": name_})
            stages[name_] = {**stage, "patches": [_annotate(found), *stage.get("patches", [])]}
        spec["stages"] = list(stages.values())
        self.kubectl.apply({**document, "spec": spec})

    def patch(self, change: Document, name: str = "loop") -> None:
        self.kubectl("patch", "medgr2cycle", name, "--type=merge", "-p", json.dumps(change))

    def cycle(self, name: str = "loop") -> Document:
        cycle: Document = self._objects.get_namespaced_custom_object(
            "medgr2.io", "v1alpha1", self.namespace, "medgr2cycles", name
        )
        return cycle

    def condition(self, kind: str, name: str = "loop") -> Document:
        """A condition; empty when the cycle has none of that kind."""
        conditions = self.cycle(name).get("status", {}).get("conditions", [])
        return next((condition for condition in conditions if condition["type"] == kind), {})

    def told(self, reason: str, words: str, name: str = "loop", seconds: float = TOLD_SECONDS) -> str:
        """The message of Progressing, once that is the reason and the message has these words (a regular expression):
        what a queue or an event says is often known later than that there is something to wait for."""

        def told() -> Document | None:
            condition = self.condition("Progressing", name)
            said = condition.get("reason") == reason and re.search(words, condition["message"])
            return condition if said else None

        return str(self._eventually(told, f"{name} tells {reason}: {words}", name, seconds)["message"])

    def wait(self, kind: str, name: str = "loop", seconds: float = 180) -> Document:
        """The condition, once it is true; shows status and log when it does not come."""

        def holds() -> Document | None:
            condition = self.condition(kind, name)
            return condition if condition.get("status") == "True" else None

        return self._eventually(holds, f"condition {kind} of {name}", name, seconds)

    def _eventually(self, check: Callable[[], Document | None], what: str, name: str, seconds: float) -> Document:
        def look() -> Document | None:
            lost, alive = (any(map(ask, self.operators)) for ask in (Operator.lost, Operator.alive))
            if not (result := check()) and lost and not alive:
                pytest.fail(f"the operator has ended by itself; waiting for {what} is in vain")
            return result

        try:
            return dict(eventually(look, what, seconds))
        except BaseException:
            print(json.dumps(self.cycle(name).get("status"), indent=1)[-6000:])
            print(self.operator.log.read_text()[-6000:])
            raise

    def stage(self, stage: str, iteration: int = 1, name: str = "loop") -> Document:
        """A stage's record; empty before it has one."""
        stages = self.cycle(name).get("status", {}).get("stages", [])
        return next((s for s in stages if (s["name"], s["iteration"]) == (stage, iteration)), {})

    def running(self, stage: str, iteration: int = 1, name: str = "loop") -> Document:
        """The stage's record, once it runs."""
        return self.reaches("Running", stage, iteration, name)

    def reaches(self, state: str, stage: str, iteration: int = 1, name: str = "loop") -> Document:
        """The stage's record, once it is in this state; make it one that lasts, or it may be missed."""

        def record() -> Document | None:
            stage_record = self.stage(stage, iteration, name)
            return stage_record if stage_record.get("state") == state else None

        return self._eventually(record, f"{stage}@{iteration} of {name} is {state}", name, 120)

    def finish(self, stage: str, name: str = "loop") -> None:
        """Lets the pods of a stage end that run for ever."""
        selector = f"medgr2.io/cycle={name},medgr2.io/stage={stage}"
        self.kubectl("annotate", "pods", "-l", selector, "--overwrite", *ending_now())

    def release(self, pod: str) -> None:
        """Lets a held pod go, now or when it ends."""
        finalizers = self.kubectl.get("pod", pod)["metadata"].get("finalizers", [])
        change = {"metadata": {"finalizers": [name for name in finalizers if name != HELD]}}
        self.kubectl("patch", "pod", pod, "--type=merge", "-p", json.dumps(change))

    # -- what is there -------------------------------------------------------------------------------------------------

    def find(self, kind: str, name: str) -> Document | None:
        """An object; None when there is none."""
        document = self.kubectl("get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(document) if document.strip() else None

    def created_jobs(self) -> list[str]:
        """Names of all Jobs that were ever created here, one entry per creation."""
        return self.control_plane.audit.created("jobs", self.namespace)

    def live_pods(self, selector: str = "") -> list[str]:
        """Names of pods that have not ended."""
        pods = self._core.list_namespaced_pod(self.namespace, label_selector=selector).items
        return [pod.metadata.name for pod in pods if pod.status.phase not in ENDED]

    def events(self) -> list[tuple[str, str]]:
        """Reason and message of the operator's events."""
        events = self.kubectl.get("events")["items"]
        return [(e["reason"], e["message"]) for e in events if e.get("reportingComponent") == "medgr2-operator"]

    def evict(self, pod: str) -> None:
        """As a drain of its node does."""
        body = kubernetes.client.V1Eviction(metadata={"name": pod, "namespace": self.namespace})
        self._core.create_namespaced_pod_eviction(pod, self.namespace, body)

    def first_job_name(self, name: str = "loop") -> str:
        """The name that the first Job of a cycle will have."""
        from medgr2_operator.plan.scheduling import job_name
        from medgr2_operator.plan.types import AttemptKey

        return job_name(name, self.cycle(name)["metadata"]["uid"], AttemptKey(0, "prepare", "", 1))

    def stranger(self, name: str) -> None:
        """Somebody else's Job of that name, which never ends."""
        container = {"name": "main", "image": "x"}
        template = {
            "metadata": {"annotations": behaviour(run="forever")},
            "spec": {"restartPolicy": "Never", "containers": [container]},
        }
        metadata = {"name": name, "labels": {"whose": "not-yours"}}
        self.kubectl.apply(
            {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": template}}
        )

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(seconds)


@pytest.fixture
def env(
    control_plane: ControlPlane, kwok_cluster: Kwok, crd: str, kubectl: Kubectl, namespace: str, tmp_path: Path
) -> Iterator[KwokEnv]:
    """The test's namespace with a claim; the operator is not started yet."""
    kwok_env = KwokEnv(control_plane, kubectl, namespace, tmp_path)
    kwok_env.make_claim()
    yield kwok_env
    kwok_env.close()


def _annotate(annotations: dict[str, str]) -> Document:
    return {"op": "add", "path": "/spec/template/metadata/annotations", "value": annotations}
