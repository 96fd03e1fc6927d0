"""What a stage can wait for. Status, conditions, events, metrics, command line and docs take their words from here;
nobody reads the sentences that stand beside them."""

from __future__ import annotations

from dataclasses import dataclass

from .model import ApiEnum

#: Seconds of a wait that only a person ends, after which the cycle counts as stalled. A registry's hiccup, or a claim
#: that is applied together with the cycle, is over by then.
STALLED_AFTER = 60.0


class WaitingReason(ApiEnum):
    """Why a stage does not work."""

    AWAITING_APPROVAL = "AwaitingApproval"
    AWAITING_QUOTA = "AwaitingQuota"
    SCHEDULING_GATED = "SchedulingGated"
    AWAITING_VOLUME = "AwaitingVolume"
    AWAITING_SECRET = "AwaitingSecret"
    IMAGE_PULL = "ImagePull"
    CONTAINER_CONFIG = "ContainerConfig"
    UNSCHEDULABLE = "Unschedulable"
    JOB_REFUSED = "JobRefused"
    PODS_NOT_CREATED = "PodsNotCreated"
    CONTAINER_CREATING = "ContainerCreating"
    INIT_CONTAINERS = "InitContainers"
    SIDECAR_STILL_RUNS = "SidecarStillRuns"
    BACKOFF = "Backoff"
    STARTING = "Starting"

    @property
    def counts(self) -> bool:
        """Whether the time counts against `pendingDeadlineSeconds`: not what a queue or a person takes."""
        return WAITS[self].counts

    @property
    def stalls(self) -> bool:
        """Whether as a rule only a person ends it."""
        return WAITS[self].stalls


@dataclass(frozen=True)
class WaitDescription:
    """A row of the table in docs/cluster.md."""

    seen_in: str
    """Which object says so."""
    meaning: str
    remedy: str
    counts: bool = True
    stalls: bool = False


WAITS: dict[WaitingReason, WaitDescription] = {
    WaitingReason.AWAITING_APPROVAL: WaitDescription(
        "`spec.pauseBefore`",
        "it is ready, and a person is to look at what was made so far",
        "`medgr2 approve`",
        counts=False,
    ),
    WaitingReason.AWAITING_QUOTA: WaitDescription(
        "Job, Kueue's Workload",
        "a queue holds its Job back",
        "others have the quota: raise it, or the priority; or the queue does not exist",
        counts=False,
    ),
    WaitingReason.SCHEDULING_GATED: WaitDescription(
        "pod", "a scheduling gate holds its pod back", "whoever set the gate takes it away", counts=False
    ),
    WaitingReason.AWAITING_VOLUME: WaitDescription(
        "claim, pod, the pod's events",
        "a volume is missing, not bound, or attached to another node",
        "look at the claim and its StorageClass; free the volume where it is attached",
        stalls=True,
    ),
    WaitingReason.AWAITING_SECRET: WaitDescription(
        "pod, the pod's events",
        "a Secret or ConfigMap, or a key of one, is missing",
        "create what the message names",
        stalls=True,
    ),
    WaitingReason.IMAGE_PULL: WaitDescription(
        "pod", "its image cannot be pulled", "mend the image's name, or `template.imagePullSecrets`", stalls=True
    ),
    WaitingReason.CONTAINER_CONFIG: WaitDescription(
        "pod",
        "the kubelet refuses to start its container",
        "the message says why; mend `template` or the stage's patches",
        stalls=True,
    ),
    WaitingReason.UNSCHEDULABLE: WaitDescription(
        "pod", "no node has what it asks for", "wait for others, add nodes, or ask for less"
    ),
    WaitingReason.JOB_REFUSED: WaitDescription(
        "the API server's answer",
        "the API server refuses its Job or Service: a quota, an admission policy, an overload",
        "the message is the server's, and it is asked again; where that names wrong fields of the Job (422), the stage "
        "fails",
        stalls=True,
    ),
    WaitingReason.PODS_NOT_CREATED: WaitDescription(
        "the Job's events",
        "its Job is there and gets no pods: a quota, Pod Security, a missing ServiceAccount, an admission policy",
        "the message is the Job controller's, which tries again",
        stalls=True,
    ),
    WaitingReason.CONTAINER_CREATING: WaitDescription(
        "pod, the pod's events", "its node does not bring up the pod: network, sandbox", "look at the node"
    ),
    WaitingReason.INIT_CONTAINERS: WaitDescription(
        "pod", "what comes before it is not ready: a model server that loads, an init container", "see that one's log"
    ),
    WaitingReason.SIDECAR_STILL_RUNS: WaitDescription(
        "pod",
        "it has ended, and a container that somebody injected keeps its pod alive",
        "the result counts and the Job is deleted after a minute; keep the injector away by `template.labels` or"
        " `template.annotations`, or have it inject a native sidecar",
        counts=False,
    ),
    WaitingReason.BACKOFF: WaitDescription(
        "the stage's `retryAfter`",
        "an attempt was lost, by its own error, a preemption or a lost node; the next comes at `retryAfter`",
        "see the stage's `reason`",
        counts=False,
    ),
    WaitingReason.STARTING: WaitDescription("Job, pod", "its Job or pod was created seconds ago", "nothing"),
}


def table() -> str:
    """The reasons as a table in Markdown, without its heading."""
    rows = (
        f"| `{reason}` | {wait.seen_in} | {wait.meaning} | {wait.remedy} | {'yes' if wait.counts else 'no'} | "
        f"{'yes' if wait.stalls else 'no'} |"
        for reason, wait in WAITS.items()
    )
    return "\n".join(rows)
