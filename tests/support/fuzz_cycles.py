"""Fuzzed: cycles, as a file that is validated and as an object that is reconciled."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

from medgr2_api.yaml_loader import CycleError, parse_cycle
from tests.support.cycle_documents import tiny_cycle
from tests.support.fuzz_target import EXAMPLES, Case, Target
from tests.support.memory_api import MemoryApi
from tests.support.mutations import TOKENS, VALUES, damaged_document, damaged_text, json_text

Document = dict[str, Any]
POD = "/spec/template/spec"
#: Of each fragment of Kubernetes one that is right.
TEMPLATE: Document = {
    "imagePullSecrets": [{"name": "registry"}],
    "labels": {"team": "ml"},
    "annotations": {"example.com/a": "b"},
    "env": [{"name": "A", "value": "b"}, {"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
    "envFrom": [{"configMapRef": {"name": "c"}}],
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]}}},
    "securityContext": {"runAsUser": 1000, "fsGroup": None},
    "patches": [{"op": "add", "path": "/metadata/annotations", "value": {"a": "b"}}],
}  # fmt: skip
STAGE: Document = {
    "name": "sft",
    "resources": {"limits": {"nvidia.com/gpu": 2, "memory": "8Gi"}, "requests": {"cpu": "500m"}},
    "tolerations": [{"operator": "Exists"}],
    "patches": [{"op": "replace", "path": f"{POD}/containers/0/image", "value": "x"}],
}
_POINTERS = (
    "", "/", "/spec", POD, f"{POD}/containers", f"{POD}/containers/0", f"{POD}/containers/-",
    f"{POD}/containers/0/env", f"{POD}/volumes/-", "/metadata/annotations", "/metadata/annotations/a",
    "/metadata/labels", "/spec/x", "/spec/x/a/a", "/spec/suspend", "/spec/completions", f"{POD}/restartPolicy",
    f"{POD}/containers/" + "9" * 5000, "/spec" + "/a" * 90, "/~2", "x",
    "/spec/template/metadata/labels/medgr2.io~1stage", f"{POD}/containers/\u0661",
)  # fmt: skip


def _operations(rng: random.Random) -> list[Any]:
    """RFC 6902 operations, some of which apply."""
    made: list[Any] = []
    for _ in range(rng.choice((1, 2, 5, 64))):
        operation = {
            "op": rng.choice(("add", "add", "replace", "remove", "copy", "copy", "move", "test")),
            "path": rng.choice(_POINTERS),
            "from": rng.choice(_POINTERS),
            "value": rng.choice(({}, [], {"a": {"a": {}}}, {"name": "x"}, *VALUES)),
        }
        made.append(damaged_document(rng, operation) if rng.random() < 0.2 else operation)
    return made


def _with_fragments(rng: random.Random, document: Document) -> Document:
    """The cycle with fragments of Kubernetes, of which some are damaged."""
    spec = {**document["spec"], "template": dict(TEMPLATE), "stages": [dict(STAGE)]}
    match rng.randrange(3):
        case 0:
            spec["template"] = damaged_document(rng, TEMPLATE)
        case 1:
            spec["stages"] = [damaged_document(rng, STAGE)]
        case _:
            rng.choice((spec["template"], spec["stages"][0]))["patches"] = _operations(rng)
    return {**document, "spec": spec}


def _validated(_: Path) -> Case:
    from medgr2_api.presets import resolve
    from medgr2_api.unsupported import unsupported
    from medgr2_operator.render.render_context import RenderSettings
    from medgr2_operator.render.trial import unrenderable

    texts = [path.read_text() for path in sorted(EXAMPLES.glob("*.yaml"))]
    documents = [parse_cycle(text, "x").dump() for text in texts]
    for document in documents:
        document.pop("status", None)

    def case(rng: random.Random) -> str:
        match rng.randrange(5):
            case 0 | 1:
                text = damaged_text(rng, rng.choice(texts))
            case 2 | 3:
                text = json_text(damaged_document(rng, rng.choice(documents)))
            case _:
                text = json_text(_with_fragments(rng, rng.choice(documents)))
        try:
            cycle = parse_cycle(text, "cycle.yaml")
        except CycleError as error:
            str(error)
            return "refused"
        if unsupported(cycle.spec, local=rng.random() < 0.5):
            return "unsupported"
        if errors := unrenderable(cycle, RenderSettings(image="")):
            "; ".join(map(str, errors)).encode()
            return "cannot be rendered"
        resolve(cycle.spec)
        return "valid"

    return case


def _reconciled(_: Path) -> Case:
    from medgr2_operator.kube.client import CLAIMS, CYCLES, EVENTS, JOBS, PODS
    from medgr2_operator.kube.events import EventRecorder
    from medgr2_operator.render.render_context import RenderSettings
    from medgr2_operator.runtime.progress_poller import ProgressPoller
    from medgr2_operator.runtime.reconciler import Reconciler
    from medgr2_operator.runtime.workqueue import CycleKey, WorkQueue

    key = CycleKey("ml", "loop")

    def case(rng: random.Random) -> str:
        api = MemoryApi()
        client: Any = api
        api.put(CLAIMS, {"metadata": {"name": "x"}, "spec": {"accessModes": ["ReadWriteMany"]}})
        cycle = tiny_cycle("loop")
        whole = _of_api_server(_with_fragments(rng, cycle)) if rng.random() < 0.5 else cycle
        api.put(CYCLES, {**whole, "metadata": {**cycle["metadata"], "generation": 1}})
        queue: WorkQueue[CycleKey] = WorkQueue()
        settings = RenderSettings(image="x")
        reconcile = Reconciler(client, settings, EventRecorder(client), ProgressPoller(queue, 8080))

        async def twice() -> None:
            await reconcile(key)
            assert api.of(JOBS) or api.condition("loop")["status"] == "False", "it starts, or says why not"
            for job in api.of(JOBS):
                pod, events = _pod(rng, job)
                api.put(PODS, pod)
                for event in events:
                    api.put(EVENTS, event)
                job["status"] = {"conditions": _conditions(rng, ("Complete", "Failed", "FailureTarget", "Suspended"))}
            await reconcile(key)

        asyncio.run(twice())
        return str(api.condition("loop")["reason"])

    return case


def _of_api_server(document: Document) -> Document:
    """The document as an API server has it, whose strings are UTF-8."""
    stored: Document = json.loads(json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"))
    return stored


#: Of the API server's strings, which are UTF-8.
_TEXTS = tuple(token.encode("utf-8", "replace").decode() for token in TOKENS)
_TIME = "2026-01-01T00:00:00Z"
_WORDS = (
    "ContainerCreating", "PodInitializing", "ErrImagePull", "CreateContainerConfigError", "CrashLoopBackOff", "Error",
    "OOMKilled", "Unschedulable", "SchedulingGated", "Evicted", "FailedMount", "FailedCreate", "x", "",
)  # fmt: skip


def _conditions(rng: random.Random, types: tuple[str, ...]) -> list[Document]:
    found = rng.sample(types, rng.choice((0, 0, 1, 2)))
    return [
        {"type": kind, "status": rng.choice(("True", "False", "Unknown")), "reason": rng.choice(_WORDS)}
        | {"message": rng.choice(_TEXTS), "lastTransitionTime": _TIME}
        for kind in found
    ]


def _container(rng: random.Random, name: str) -> Document:
    states: tuple[Document, ...] = (
        {},
        {"waiting": {"reason": rng.choice(_WORDS), "message": rng.choice(_TEXTS)}},
        {"running": {"startedAt": _TIME}},
        {"terminated": {"exitCode": rng.choice((0, 1, 65, 85, 137, 143, -1)), "message": rng.choice(_TEXTS)}},
        {"terminated": {"exitCode": 0, "startedAt": _TIME, "finishedAt": _TIME, "reason": rng.choice(_WORDS)}},
    )
    last = rng.choice(states)
    return {"name": name, "state": rng.choice(states), "lastState": last, "restartCount": rng.choice((0, 3, 2**31 - 1))}


def _pod(rng: random.Random, job: Document) -> tuple[Document, list[Document]]:
    """A pod of the Job as an API server may hold it, with whatever words others wrote into it, and its events."""
    template, metadata = job["spec"]["template"], job["metadata"]
    annotations = {"batch.kubernetes.io/job-completion-index": rng.choice(("0", "1", *_TEXTS))}
    owner = {"uid": metadata["uid"], "controller": True}
    ends = {"deletionTimestamp": _TIME, "deletionGracePeriodSeconds": 30} if rng.random() < 0.2 else {}
    name = "pod"
    status = {
        "phase": rng.choice(("Pending", "Running", "Succeeded", "Failed", "Unknown")),
        "reason": rng.choice(_WORDS),
        "message": rng.choice(_TEXTS),
        "conditions": _conditions(rng, ("PodScheduled", "DisruptionTarget", "Ready")),
        "containerStatuses": [_container(rng, name) for name in rng.choice(((), ("main",), ("main", "injected")))],
        "initContainerStatuses": [_container(rng, name) for name in rng.choice(((), ("vllm",), ("injected",)))],
    }
    labels = {**template["metadata"]["labels"], "medgr2.io/attempt": rng.choice(("1", "1", "1", *_TEXTS))}
    pod = {
        "metadata": {"name": name, "labels": labels, "annotations": annotations, "ownerReferences": [owner], **ends},
        "spec": {**template["spec"], **({"nodeName": "n"} if rng.random() < 0.5 else {})},
        "status": status,
    }
    event = {"metadata": {"name": "e"}, "type": rng.choice(("Warning", "Normal")), "reason": rng.choice(_WORDS)}
    return pod, [{**event, "message": rng.choice(_TEXTS), "lastTimestamp": rng.choice((_TIME, None))}]


TARGETS = (
    Target("spec", 0.12, _validated),
    Target("reconciling", 0.03, _reconciled),
)
