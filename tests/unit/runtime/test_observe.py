"""What the planner is told of Jobs and pods, from JSON as the API server writes it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from medgr2_api.stage_contract import StageResult
from medgr2_operator.plan.types import AttemptKey, JobState, ObservedJob
from medgr2_operator.runtime import observe
from medgr2_operator.runtime.why_waiting import Surroundings

UID = "cycle-uid"
KEY = AttemptKey(1, "sft", "", 2)
LABELS = {
    "medgr2.io/iteration": "1",
    "medgr2.io/stage": "sft",
    "medgr2.io/token": "",
    "medgr2.io/attempt": "2",
}
END = "2026-01-01T00:10:00Z"
NOW = datetime(2026, 1, 1, 0, 12, tzinfo=UTC)


def owner(uid: str) -> list[dict[str, Any]]:
    return [{"uid": uid, "controller": True}]


def job(*conditions: dict[str, str], **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "j", "uid": "job-uid", "labels": LABELS, "ownerReferences": owner(UID)},
        "spec": spec,
        "status": {
            "conditions": [{"status": "True", "lastTransitionTime": END, **condition} for condition in conditions]
        },
    }


def pod(phase: str = "Running", state: dict[str, Any] | None = None, index: int = 0, **status: Any) -> dict[str, Any]:
    main = {"name": "main", "state": state or {}}
    return {
        "metadata": {
            "name": f"p{index}",
            "labels": LABELS,
            "ownerReferences": owner("job-uid"),
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
        },
        "status": {"phase": phase, "containerStatuses": [main], **status},
    }


def ended(code: int, *, message: str = "", reason: str = "", at: str = END) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": message, "reason": reason, "finishedAt": at, "startedAt": at}}


def termination_message(**fields: Any) -> str:
    return StageResult(**{"exit_code": 0, "output_digest": "d" * 64, **fields}).to_termination_message()


def seen(manifest: dict[str, Any], *pods: dict[str, Any], lasting: float = 0.0) -> ObservedJob:
    kept = list(map(observe.needed, pods))
    around = Surroundings(NOW, lasting=dict.fromkeys(observe.lasting_facts(kept), lasting))
    [observed] = observe.jobs([observe.needed(manifest)], kept, UID, around)
    assert observed.key == KEY
    return observed


COMPLETE, FAILED = {"type": "Complete"}, {"type": "Failed"}


def test_a_success_brings_its_result() -> None:
    observed = seen(job(COMPLETE), pod("Succeeded", ended(0, message=termination_message(metrics={"loss": 1.0}))))
    assert (observed.state, observed.exit_code, observed.owned) == (JobState.SUCCEEDED, 0, True)
    assert observed.result is not None
    assert observed.result.metrics == {"loss": 1.0}
    assert observed.finished == datetime(2026, 1, 1, 0, 10, tzinfo=UTC)


@pytest.mark.parametrize("index", ["1", "x", "", "9" * 5000])
def test_what_a_user_annotates_as_the_index_changes_nothing(index: str) -> None:
    only = pod("Succeeded", ended(0, message=termination_message(metrics={"loss": 1.0})))
    only["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] = index
    result = seen(job(COMPLETE), only).result
    assert result is not None
    assert result.metrics == {"loss": 1.0}


def test_a_success_whose_pod_is_gone_has_no_result() -> None:
    observed = seen(job(COMPLETE))
    assert (observed.state, observed.result, observed.finished) == (
        JobState.SUCCEEDED,
        None,
        datetime(2026, 1, 1, 0, 10, tzinfo=UTC),
    )


def test_shards_count_only_together() -> None:
    sharded = {"completionMode": "Indexed", "completions": 2, "backoffLimitPerIndex": 0}
    parts = [
        pod("Succeeded", ended(0, message=termination_message(output_digest=str(i) * 64)), index=i) for i in range(2)
    ]
    assert seen(job(COMPLETE, **sharded), parts[0]).result is None
    whole = seen(job(COMPLETE, **sharded), *reversed(parts)).result
    assert whole is not None
    assert whole == seen(job(COMPLETE, **sharded), *parts).result, "the order of the pods says nothing"
    assert whole.output_digest not in ("0" * 64, "1" * 64)


def test_of_a_training_over_nodes_rank_0_speaks() -> None:
    nodes = {"completionMode": "Indexed", "completions": 2, "backoffLimit": 0}
    parts = [
        pod("Succeeded", ended(0, message=termination_message(output_digest=str(i) * 64)), index=i) for i in range(2)
    ]
    result = seen(job(COMPLETE, **nodes), *parts).result
    assert result is not None
    assert result.output_digest == "0" * 64


@pytest.mark.parametrize("code", [1, 65, 75, 78, 85, 137, 143])
def test_a_failure_brings_code_and_words(code: int) -> None:
    observed = seen(
        job(FAILED), pod("Failed", ended(code, message=termination_message(exit_code=code, message="because")))
    )
    assert (observed.state, observed.exit_code, observed.reason, observed.message) == (
        JobState.FAILED,
        code,
        "",
        "because",
    )


def test_last_words_that_are_no_result_are_told() -> None:
    observed = seen(job(FAILED), pod("Failed", ended(1, message="Traceback: boom")))
    assert (observed.result, observed.message) == (None, "Traceback: boom")


def test_out_of_memory_has_its_own_word() -> None:
    assert seen(job(FAILED), pod("Failed", ended(137, reason="OOMKilled"))).reason == "OOMKilled"


@pytest.mark.parametrize(
    "status",
    [
        {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]},
        {"reason": "Evicted", "message": "The node was low on resource: memory."},
        {"reason": "NodeLost"},
    ],
)
def test_a_disruption_outranks_the_exit_code(status: dict[str, Any]) -> None:
    observed = seen(job(FAILED), pod("Failed", ended(137), **status))
    assert observed.reason == "DisruptionTarget"
    assert observed.message


def test_a_pod_that_left_in_good_order_was_not_disrupted() -> None:
    status = {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]}
    observed = seen(
        job(FAILED), pod("Failed", ended(85, message=termination_message(exit_code=85, checkpoint_step=7)), **status)
    )
    assert (observed.exit_code, observed.reason) == (85, "")
    assert observed.result is not None
    assert observed.result.checkpoint_step == 7


def test_of_many_failures_the_one_that_explains_it_is_told() -> None:
    pods = [
        pod("Failed", ended(85, at="2026-01-01T00:01:00Z"), 0),
        pod("Failed", ended(75, at="2026-01-01T00:03:00Z"), 1),
        pod("Failed", ended(65, at="2026-01-01T00:02:00Z"), 2),
    ]
    assert seen(job(FAILED), *pods).exit_code == 65


def test_without_pods_the_jobs_condition_tells() -> None:
    message = "Container main for pod ns/p failed with exit code 78 matching FailJob rule at index 0"
    assert seen(job({**FAILED, "message": message})).exit_code == 78
    message = "Pod ns/p has condition DisruptionTarget matching FailJob rule at index 1"
    observed = seen(job({**FAILED, "message": message}))
    assert (observed.exit_code, observed.reason) == (None, "DisruptionTarget")


def test_running_since_the_first_container() -> None:
    early, late = ({"running": {"startedAt": f"2026-01-01T00:0{minute}:00Z"}} for minute in (1, 5))
    observed = seen(job(), pod(state=late), pod(state=early, index=1))
    assert (observed.state, observed.started) == (JobState.RUNNING, datetime(2026, 1, 1, 0, 1, tzinfo=UTC))


def test_what_a_queue_has_stopped_waits_when_its_pods_have_ended() -> None:
    queued = job(suspend=True)
    assert seen(queued, pod("Running", {"running": {"startedAt": END}})).state is JobState.RUNNING
    assert seen(queued, pod("Failed", ended(85))).state is JobState.QUEUED
    assert seen(job(), pod("Failed", ended(85))).state is JobState.RUNNING, "its Job will tell"


def test_what_a_queue_has_stopped_ran_until_its_last_pod_ended() -> None:
    parts = [pod("Failed", ended(85, at=f"2026-01-01T00:0{minute}:00Z"), index=minute) for minute in (4, 2)]
    assert seen(job(suspend=True), *parts).finished == datetime(2026, 1, 1, 0, 4, tzinfo=UTC)
    assert seen(job(suspend=True)).finished is None


def earlier_run(state: dict[str, Any], phase: str = "Failed", created: str = "2026-01-01T00:01:00Z") -> dict[str, Any]:
    """A pod that a queue stopped and that is still there: its kubelet unmounts a volume, a finalizer holds it."""
    left = pod(phase, state, index=7)
    left["metadata"] |= {"creationTimestamp": created, "deletionTimestamp": "2026-01-01T00:09:00Z"}
    return left


RESUMED = {"type": "Suspended", "status": "False"}
"""At END."""


def test_a_pod_of_an_earlier_run_says_nothing_of_this_one() -> None:
    stopped = earlier_run(ended(85, at="2026-01-01T00:08:00Z"))
    assert seen(job(RESUMED), stopped).state is JobState.QUEUED
    assert seen(job(RESUMED), stopped, pod("Pending")).state is JobState.QUEUED
    second = {"running": {"startedAt": "2026-01-01T00:11:00Z"}}
    again = seen(job(RESUMED), stopped, pod(state=second))
    assert (again.state, again.started) == (JobState.RUNNING, datetime(2026, 1, 1, 0, 11, tzinfo=UTC))
    killed = seen(job(RESUMED, FAILED), earlier_run(ended(78, message="then")), pod("Failed", ended(1, message="now")))
    assert (killed.exit_code, killed.message) == (1, "now")
    around = Surroundings(NOW, lasting={})
    [waits] = observe.jobs([job(RESUMED)], [stopped], UID, around)
    assert waits.waiting == seen(job(RESUMED)).waiting is not None


@pytest.mark.parametrize(
    ("left", "why"),
    [
        (earlier_run({"running": {"startedAt": END}}, "Running"), "it still writes its checkpoint"),
        (earlier_run(ended(143), created=END), "it was made for this run, and somebody drained its node"),
    ],
)
def test_what_is_of_this_run_counts(left: dict[str, Any], why: str) -> None:
    assert seen(job(RESUMED), left).state is JobState.RUNNING, why


def test_a_sidecar_that_does_not_stay_up_is_told() -> None:
    def sidecar(restarts: int) -> dict[str, Any]:
        last = {"terminated": {"exitCode": 1, "message": "CUDA error"}}
        return {"name": "vllm", "restartCount": restarts, "ready": False, "lastState": last}

    assert seen(job(), pod("Pending", initContainerStatuses=[sidecar(2)])).stuck == ""
    assert "vllm restarted 3 times: CUDA error" in seen(job(), pod("Pending", initContainerStatuses=[sidecar(3)])).stuck


def test_strangers_are_told_apart() -> None:
    manifest = job()
    manifest["metadata"]["ownerReferences"] = owner("another")
    assert not seen(manifest).owned


def test_only_living_pods_may_write() -> None:
    going = pod(index=3)
    going["metadata"]["deletionTimestamp"] = END
    live = list(observe.live_pods([pod("Succeeded"), pod("Failed"), pod("Pending", index=1), going]))
    assert [(p.name, p.terminating) for p in live] == [("p1", False), ("p3", True)]


def test_pods_that_did_not_find_each_other_say_so() -> None:
    state = ended(1, message=termination_message(exit_code=1, output_digest="", reason="RendezvousTimeout"))
    assert seen(job(FAILED), pod("Failed", state)).reason == "RendezvousTimeout"


@pytest.mark.parametrize(
    ("seconds", "state", "lost"),
    [(60, {"running": {}}, False), (120, {"running": {}}, True), (120, ended(137), False)],
)
def test_a_pod_whose_kubelet_is_silent_is_lost(seconds: float, state: dict[str, Any], lost: bool) -> None:
    """Counted from the moment when this process saw it, for its grace period and a minute."""
    going = pod(state=state)
    going["metadata"] |= {"deletionTimestamp": END, "deletionGracePeriodSeconds": 30}
    lasting = dict.fromkeys(observe.lasting_facts([going, pod(index=1)]), seconds)
    assert bool(list(observe.overdue_pods([going, pod(index=1)], lasting))) is lost
    waits = 30.0 if not lost and "running" in state else None
    assert observe.next_overdue([going, pod(index=1)], lasting) == waits
    assert list(observe.overdue_pods([going], {})) == [], "nobody knows for how long"


def test_the_job_of_a_silent_nodes_pod_is_lost() -> None:
    going = pod(state={"running": {"startedAt": END}})
    going["metadata"]["deletionTimestamp"], going["spec"] = END, {"nodeName": "n"}
    observed = seen(job(), going, lasting=120)
    assert (observed.state, observed.lost) == (
        JobState.RUNNING,
        f"pod p0 should have ended at {END}, and node n is silent",
    )
    assert seen(job(), pod(state={"running": {"startedAt": END}}), lasting=120).lost == ""


# -- work that has ended in a pod that has not -------------------------------------------------------------------------


def beside(*states: dict[str, Any], index: int = 0, main: dict[str, Any] | None = None) -> dict[str, Any]:
    """A pod that runs, with a container beside main in each of these states."""
    pod_ = pod("Running", main or ended(0, message=termination_message()), index=index)
    pod_["status"]["containerStatuses"] += [{"name": f"istio-{n}", "state": state} for n, state in enumerate(states)]
    return pod_


def test_the_result_counts_though_a_sidecar_keeps_the_pod_alive() -> None:
    observed = seen(job(), beside({"running": {}}), lasting=61)
    assert (observed.state, observed.exit_code) == (JobState.SUCCEEDED, 0)
    assert observed.result is not None
    assert observed.result.output_digest == "d" * 64
    assert observed.left_over == f"istio-0 still runs; main ended with 0 at {END}"


def test_so_does_a_failure() -> None:
    observed = seen(job(), beside({"running": {}}, main=ended(78, message="bad configuration")), lasting=61)
    assert (observed.state, observed.exit_code, observed.message) == (JobState.FAILED, 78, "bad configuration")
    assert observed.left_over


@pytest.mark.parametrize(
    ("pods", "spec", "seconds"),
    [
        ([beside({"running": {}})], {}, 59),
        ([beside({"terminated": {"exitCode": 0}})], {}, 600),
        ([beside({"running": {}}, main={"running": {"startedAt": END}})], {}, 600),
        ([beside({"running": {}}), pod("Running", {"running": {"startedAt": END}}, 1)], {"completions": 2}, 600),
        ([beside({"running": {}})], {"completions": 2}, 600),
    ],
    ids=["a pod needs a moment to end", "all has ended", "it works", "another pod works", "another pod is to come"],
)
def test_what_has_not_ended_goes_on(pods: list[dict[str, Any]], spec: dict[str, Any], seconds: float) -> None:
    observed = seen(job(**spec), *pods, lasting=seconds)
    assert (observed.state, observed.left_over) == (JobState.RUNNING, "")


def test_the_parts_of_a_job_count_one_by_one() -> None:
    finished = pod("Succeeded", ended(0, message=termination_message(output_digest="e" * 64)), index=1)
    observed = seen(job(completions=2, backoffLimitPerIndex=0), beside({"running": {}}), finished, lasting=61)
    assert observed.state is JobState.SUCCEEDED
    assert observed.result is not None


def test_objects_of_others_are_passed_over() -> None:
    stranger = {"metadata": {"name": "x", "uid": "x", "labels": {"app": "x"}}, "spec": {}, "status": {}}
    assert list(observe.jobs([stranger], [stranger], UID, Surroundings(NOW))) == []
    assert list(observe.live_pods([stranger])) == []


def test_progress_is_polled_of_pods_that_run_and_have_an_address() -> None:
    pods = [
        pod("Running", index=0, podIP="10.0.0.1"),
        pod("Pending", index=1, podIP="10.0.0.2"),
        pod("Running", index=2),
        pod("Succeeded", index=3, podIP="10.0.0.3"),
    ]
    assert observe.running_pods(pods) == [observe.RunningPod(KEY, "10.0.0.1")]
