"""What the API server does not take is told in its own words, and tried again."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.support.memory_api import MemoryApi
from tests.unit.runtime.test_reconciler import KEY, SETTINGS, with_cycle

from medgr2_api.status import CycleStatus, Phase
from medgr2_operator.kube.client import CYCLES, EVENTS, ApiError, refusal
from medgr2_operator.kube.events import EventRecorder
from medgr2_operator.runtime import reconciler
from medgr2_operator.runtime.progress_poller import ProgressPoller
from medgr2_operator.runtime.reconciler import Reconciler
from medgr2_operator.runtime.workqueue import CycleKey, WorkQueue

START = datetime(2026, 1, 1, tzinfo=UTC)
QUOTA = 'jobs.batch "loop-i000-prepare" is forbidden: exceeded quota: jobs'


class Clocked:
    """The operator, with a clock that the test moves."""

    def __init__(self, api: MemoryApi) -> None:
        self.now, client = START, api
        any_client: Any = client
        queue: WorkQueue[CycleKey] = WorkQueue()
        self._reconcile = Reconciler(
            any_client, SETTINGS, EventRecorder(any_client), ProgressPoller(queue, 8080), now=lambda: self.now
        )

    def look(self, after: float = 0.0) -> float | None:
        """A reconcile so many seconds later; what it asks for."""
        self.now += timedelta(seconds=after)
        return asyncio.run(self._reconcile(KEY))


def status(api: MemoryApi) -> CycleStatus:
    return CycleStatus.model_validate(api.objects[CYCLES.plural, "ml", "loop"]["status"])


def events(api: MemoryApi) -> list[tuple[str, str, str]]:
    return [(event["type"], event["reason"], event["message"]) for event in api.of(EVENTS)]


@pytest.mark.parametrize("code", [0, 400, 403, 404, 413, 422, 429, 500, 503])
def test_a_refused_job_is_told_and_tried_again(code: int) -> None:
    api = MemoryApi()
    with_cycle(api, pendingDeadlineSeconds=100)
    api.refused["Job"] = ApiError(f"POST jobs: {code} {QUOTA}", code, server_message=QUOTA)
    operator = Clocked(api)
    assert operator.look() == 0, "it is told at once"
    assert operator.look() == 3, "and then tried again after a while"
    told = status(api)
    assert (told.phase, told.stages[0].reason, told.stages[0].message) == (Phase.WAITING, "JobRefused", QUOTA)
    assert api.condition("loop")["message"] == f"waiting: prepare@0: JobRefused {QUOTA}"
    assert ("Warning", "JobRefused", f"prepare@0: {QUOTA}") in events(api)
    assert operator.look(50) == 20
    assert api.condition("loop", "Reconciling")["status"] == "True"
    operator.look(20)
    assert api.condition("loop", "Stalled")["status"] == "True"
    operator.look(30)
    operator.look()
    failed = api.condition("loop", "Failed")
    assert failed["status"] == "True"
    assert f"not started in 100 s: JobRefused: {QUOTA}" in failed["message"]
    assert api.jobs == []


def test_what_is_taken_later_goes_on_under_the_same_name() -> None:
    api = MemoryApi()
    with_cycle(api)
    api.refused["Job"] = ApiError("POST jobs: 403", 403)
    operator = Clocked(api)
    operator.look()
    operator.look()
    api.refused.clear()
    operator.look(3)
    (job,) = api.jobs
    assert job["metadata"]["labels"]["medgr2.io/attempt"] == "1"
    operator.look()
    assert status(api).stages[0].reason != "JobRefused"


def test_a_job_that_will_never_be_taken_ends_the_stage() -> None:
    api = MemoryApi()
    with_cycle(api)
    answer = {
        "message": "Job is invalid: spec.completions",
        "reason": "Invalid",
        "details": {"causes": [{"reason": "FieldValueInvalid", "message": "-1", "field": "spec.completions"}]},
    }
    api.refused["Job"] = refusal("POST", "/jobs", 422, json.dumps(answer))
    operator = Clocked(api)
    operator.look()
    operator.look()
    assert status(api).phase is Phase.FAILED
    assert api.condition("loop", "Failed")["message"] == "prepare@0: JobRefused: Job is invalid: spec.completions"


def test_a_policy_that_answers_as_if_fields_were_wrong_may_change_its_mind() -> None:
    """What a ValidatingAdmissionPolicy answers by default."""
    api = MemoryApi()
    with_cycle(api)
    causes = [{"message": "failed expression: false"}]
    answer = {"message": "denied request: no GPUs today", "reason": "Invalid", "details": {"causes": causes}}
    api.refused["Job"] = refusal("POST", "/jobs", 422, json.dumps(answer))
    operator = Clocked(api)
    operator.look()
    operator.look()
    assert (status(api).phase, status(api).stages[0].given_up) == (Phase.WAITING, False)


def test_a_refused_service_holds_its_job_back(monkeypatch: pytest.MonkeyPatch) -> None:
    api = MemoryApi()
    with_cycle(api)
    render = reconciler.render_job
    service = {"kind": "Service", "metadata": {"name": "peers", "namespace": "ml"}}
    monkeypatch.setattr(reconciler, "render_job", lambda *given: [service, *render(*given)])
    api.refused["Service"] = ApiError("POST services", 403, server_message="exceeded quota: services")
    operator = Clocked(api)
    operator.look()
    operator.look()
    assert api.jobs == []
    assert (status(api).stages[0].reason, status(api).stages[0].message) == ("JobRefused", "exceeded quota: services")
    api.refused.clear()
    operator.look()
    assert len(api.jobs) == 1


@pytest.mark.parametrize("code", [400, 403, 422])
def test_a_refused_claim_is_told(code: int) -> None:
    api = MemoryApi()
    with_cycle(api, workspace={"volumeClaimTemplate": {"spec": {"storageClassName": "x"}}})
    api.refused["PersistentVolumeClaim"] = ApiError("POST claims", code, server_message="exceeded quota: storage")
    operator = Clocked(api)
    assert operator.look() == 20
    ready, progressing = api.condition("loop", "WorkspaceReady"), api.condition("loop")
    assert (ready["status"], progressing["reason"]) == ("False", "AwaitingVolume")
    assert ready["message"].endswith("was refused: exceeded quota: storage")
    operator.look(60)
    assert api.condition("loop", "Stalled")["reason"] == "AwaitingVolume"


def test_words_that_hold_a_key_are_redacted() -> None:
    api = MemoryApi()
    with_cycle(api)
    api.refused["Job"] = ApiError("x", 403, server_message="env OPENAI_API_KEY=sk-abcdefghijklmnopqrstuvwxyz0123456789")
    operator = Clocked(api)
    operator.look()
    operator.look()
    assert "sk-abc" not in str(api.objects)
