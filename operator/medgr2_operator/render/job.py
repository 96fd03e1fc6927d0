"""A planned attempt → the objects that run it. Pure: the same arguments give the same manifests."""

from __future__ import annotations

from typing import Any

from medgr2_api.cycle import Cycle
from medgr2_api.stage_contract import PERMANENT_EXIT_CODES, ExitCode

from ..plan.types import JobCreate
from . import labels, pod, rendezvous
from .cycle_policy import denials
from .patches import patched
from .render_context import NotAllowedError, RenderContext, RenderSettings

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"


def job(cycle: Cycle, create: JobCreate, settings: RenderSettings, single_node: bool = False) -> list[dict[str, Any]]:
    """The objects to create, in this order: the Service of a training over several nodes (it may be there already,
    from another attempt of the stage), then the Job.

    Args:
        cycle: as the planner saw it.
        create: what it planned.
        settings: the operator's.
        single_node: only the pods of one node can mount the volume at a time (ReadWriteOnce): keep them together.

    Raises:
        RenderError: the spec asks for what cannot be.
        NotAllowedError: it asks for what the platform does not allow.
    """
    context = RenderContext(cycle, create, settings, single_node)
    queue = _queue(context)
    job_labels = {**labels.of_attempt(cycle, create.key), **queue}
    manifest = patched(
        context,
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": labels.owned(cycle, create.name, job_labels),
            "spec": {
                **({"suspend": True} if queue else {}),  # Kueue starts it
                # No activeDeadlineSeconds: the planner keeps timeoutSeconds. It adds up running time over requeues; a
                # Job's clock also runs while its pods wait for a node, and begins anew after each requeue.
                **_completion(context),
                "podReplacementPolicy": "Failed",  # the only one that podFailurePolicy allows
                "podFailurePolicy": {"rules": _failure_rules(context)},
                "template": pod.template(context),
            },
        },
    )
    denied = list(denials(cycle, manifest, settings.policy, (settings.image, settings.vllm_image)))
    if denied:
        (path, message), *others = denied
        raise NotAllowedError(path, "; ".join([message, *(f"{where}: {what}" for where, what in others)]))
    return [*([rendezvous.service(context)] if context.nodes > 1 else []), manifest]


def _queue(context: RenderContext) -> dict[str, str]:
    """Kueue's labels; none without a queue. A stage's empty queue name takes it out of the cycle's queue."""
    queueing, own = context.cycle.spec.queueing, context.stage.queue_name
    queue, path = (queueing.queue_name if queueing else ""), "spec.queueing"
    name = labels.value(f"{path}.queueName", queue) if own is None else labels.value(f"{context.path}.queueName", own)
    if not name:
        return {}
    priority = ""
    if queueing is not None:
        priority = labels.value(f"{path}.workloadPriorityClassName", queueing.workload_priority_class_name)
        in_flight = labels.value(f"{path}.inFlightPriorityClassName", queueing.in_flight_priority_class_name)
        priority = in_flight if context.create.resumes and in_flight else priority
    return {QUEUE_LABEL: name, **({PRIORITY_LABEL: priority} if priority else {})}


def _completion(context: RenderContext) -> dict[str, Any]:
    """How many pods, and that none is ever replaced: a new attempt is the planner's to make."""
    if context.shards > 1:
        return {
            "completionMode": "Indexed",
            "completions": context.shards,
            "parallelism": context.shards,
            # A shard that fails leaves the others alone: what they publish, the next attempt does not repeat.
            "backoffLimitPerIndex": 0,
            # When most have failed, waiting for the rest only delays the next attempt.
            "maxFailedIndexes": context.shards // 2,
        }
    if context.nodes > 1:
        pods = {"completionMode": "Indexed", "completions": context.nodes, "parallelism": context.nodes}
    else:
        pods = {"completionMode": "NonIndexed", "completions": 1, "parallelism": 1}
    return {**pods, "backoffLimit": 0}


def _failure_rules(context: RenderContext) -> list[dict[str, Any]]:
    """The first that matches decides.

    - Bad configuration or data ends the whole Job: the stage fails.
    - A disruption is not ignored, for then the Job would replace the pod behind our back and our budget.
    - Any other failure has a rule too, because a rule puts pod and exit code into the Job's condition. Not so the codes
      of a pod that got a SIGTERM: they fail the Job without a rule (no pod is replaced), but with one also when a
      queue stopped the pod, for then only rules count.

    The last two end one shard only; a training over several nodes ends as a whole.
    """
    action = "FailIndex" if context.shards > 1 else "FailJob"
    permanent = sorted(int(code) for code in PERMANENT_EXIT_CODES)  # the API server requires them sorted
    terminated = [int(code) for code in (ExitCode.OK, ExitCode.CHECKPOINTED, ExitCode.SIGTERM)]
    return [
        {"action": "FailJob", "onExitCodes": {"containerName": pod.MAIN, "operator": "In", "values": permanent}},
        {"action": action, "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": action, "onExitCodes": {"containerName": pod.MAIN, "operator": "NotIn", "values": terminated}},
    ]
