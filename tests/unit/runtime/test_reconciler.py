"""One cycle can fail only itself: whatever stands in it, it is told, the others go on, and so does the process."""

from __future__ import annotations

import asyncio
import difflib
import itertools
import json
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.cycle_documents import tiny_cycle
from tests.support.memory_api import MemoryApi
from tests.unit.api.test_kubernetes_fragments import ANYTHING, DAMAGED

from medgr2_api import kubernetes_fragments, validation_errors
from medgr2_api.cycle import LARGEST_SPEC
from medgr2_operator.kube.client import CLAIMS, CYCLES, JOBS, PODS, ApiError
from medgr2_operator.kube.events import EventRecorder
from medgr2_operator.render.cycle_policy import CyclePolicy
from medgr2_operator.render.render_context import RenderSettings
from medgr2_operator.runtime import bounded_work, reconciler
from medgr2_operator.runtime.bounded_work import Setbacks, TooSlowError, compute
from medgr2_operator.runtime.first_seen import FirstSeen
from medgr2_operator.runtime.progress_poller import ProgressPoller
from medgr2_operator.runtime.reconciler import Reconciler
from medgr2_operator.runtime.workqueue import CycleKey, WorkQueue

KEY = CycleKey("ml", "loop")
POD = "/spec/template/spec"
CONTAINERS = f"{POD}/containers"
SETTINGS = RenderSettings(image="medgr2/jobs:test")


def operator(api: MemoryApi, setbacks: Setbacks | None = None) -> Reconciler:
    client: Any = api
    queue: WorkQueue[CycleKey] = WorkQueue()
    return Reconciler(client, SETTINGS, EventRecorder(client), ProgressPoller(queue, 8080), setbacks=setbacks)


def with_cycle(api: MemoryApi, **spec: Any) -> dict[str, Any]:
    """The API with a claim and a cycle."""
    api.put(CLAIMS, {"metadata": {"name": "x"}, "spec": {"accessModes": ["ReadWriteMany"]}})
    cycle = tiny_cycle("loop", **spec)
    return api.put(CYCLES, {**cycle, "metadata": {**cycle["metadata"], "generation": 1}})


def run(api: MemoryApi, setbacks: Setbacks | None = None) -> float | None:
    return asyncio.run(operator(api, setbacks)(KEY))


def nested(levels: int) -> list[Any]:
    """A list in a list in a list …"""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def test_a_good_cycle_starts() -> None:
    api = MemoryApi()
    with_cycle(api)
    run(api)
    assert [job["metadata"]["labels"]["medgr2.io/stage"] for job in api.jobs] == ["prepare"]


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ({"stages": [{"name": "sft", "resources": {"limits": {"nvidia.com/gpu": "two"}}}]}, "'two' is not a quantity"),
        ({"stages": [{"name": "grpo", "patches": [{"op": "remove", "path": "/spec/x"}]}]}, r"spec\.stages\[grpo\]"),
        ({"stages": [{"name": "report", "patches": [{"op": "remove", "path": CONTAINERS}]}]}, "containers: missing"),
        ({"template": {"env": [{"name": "MEDGR2_X", "value": "y"}]}}, r"spec\.template\.env\[0\]"),
        (
            {"template": {"patches": [{"op": "copy", "from": POD, "path": f"{POD}/x{n}"} for n in range(30)]}},
            r"spec\.template\.patches\[\d+\]: makes the Job larger than 256 KiB",
        ),
        ({"template": {"patches": [{"value": nested(300)}]}}, "nested more than 64 levels"),
    ],
)  # fmt: skip
def test_a_stage_that_cannot_be_rendered_is_told_before_the_first_one_starts(spec: dict[str, Any], what: str) -> None:
    api = MemoryApi()
    with_cycle(api, **spec)
    run(api)
    assert api.jobs == []
    condition = api.condition("loop")
    assert (condition["status"], condition["reason"]) == ("False", "InvalidSpec")
    with pytest.raises(AssertionError, match=what):
        assert condition["message"] == ""


def test_what_the_platform_does_not_allow_is_told_and_may_be_allowed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    api = MemoryApi()
    with_cycle(api, stages=[{"name": "grpo", "patches": [{"op": "add", "path": f"{POD}/hostPID", "value": True}]}])
    strict = replace(SETTINGS, policy=CyclePolicy(allow_host_access=False))
    with monkeypatch.context() as now:
        now.setattr(sys.modules[__name__], "SETTINGS", strict)
        run(api)
        run(api)
    assert api.jobs == []
    condition = api.condition("loop", "Stalled")
    assert (condition["status"], condition["reason"]) == ("True", "NotAllowed")
    assert "pod.hostPID: reaches the node" in condition["message"]
    run(api)
    assert len(api.jobs) == 1


class Looked:
    """How often a function is called, which it still is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        self.times, look = 0, getattr(module, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            self.times += 1
            return look(*arguments, **options)

        monkeypatch.setattr(module, name, counted)


def read(cycle: dict[str, Any], settings: RenderSettings = SETTINGS) -> list[str]:
    """What is wrong with a cycle."""
    _, problems, reason = reconciler._read(cycle, settings)
    assert reason in ("", "InvalidSpec")
    return problems


def test_a_spec_that_is_too_large_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    api, looked = MemoryApi(), Looked(monkeypatch, kubernetes_fragments, "_key_problems")
    small = with_cycle(api, template={"labels": {f"k{number}": "v" for number in range(100)}})
    assert (read(small), looked.times > 0) == ([], True)
    looked.times = 0
    large = with_cycle(api, template={"labels": {f"k{number}": "v" for number in range(30_000)}})
    assert read(large) == ["spec: is larger than 256 KiB, and no cycle needs as much: shorten it"]
    assert looked.times == 0


def test_the_limit_is_met_to_the_byte() -> None:
    cycle = with_cycle(MemoryApi(), template={"annotations": {"a": ""}})

    def problems(size: int) -> list[str]:
        note = cycle["spec"]["template"]["annotations"]
        note["a"] = ""
        note["a"] = "\u00e4" * ((size - len(json.dumps(cycle["spec"], separators=(",", ":")))) // 2)
        assert len(json.dumps(cycle["spec"], separators=(",", ":"), ensure_ascii=False).encode()) == size
        return read(cycle)

    size = LARGEST_SPEC - (LARGEST_SPEC - len(json.dumps(cycle["spec"], separators=(",", ":")))) % 2
    assert problems(size) == []
    assert [problem[:24] for problem in problems(size + 2)] == ["spec: is larger than 256"]


@pytest.mark.parametrize(
    ("spec", "module", "last"),
    [
        (
            {f"x{number}": 1 for number in range(15_000)},
            (validation_errors, "_message"),
            "spec.x100: is the first of 14900 further problems",
        ),
        (
            {"policy": {"baseModel": "m", "sft": {"trainer": {f"x{number:05}": 1 for number in range(14_000)}}}},
            (difflib, "get_close_matches"),
            "spec.policy.sft.trainer.x00100: is the first of further problems",
        ),
    ],
    ids=["fields", "trainer options"],
)
def test_of_all_errors_a_hundred_are_explained(
    spec: dict[str, Any], module: tuple[Any, str], last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = Looked(monkeypatch, *module)
    problems = read(with_cycle(MemoryApi(), **spec))
    assert (len(problems), problems[-1]) == (101, last)
    assert 100 <= looked.times <= 101


def affinity(terms: list[Any]) -> dict[str, Any]:
    """An affinity for nodes."""
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


@pytest.mark.parametrize(
    ("terms", "values"),
    [
        ([{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["v"] * 20_000}]}], 20_000),
        ([{}] * 20_000, 20_000),
    ],
    ids=["plain values", "objects"],
)
def test_what_is_in_all_jobs_is_not_looked_at_for_each(terms: list[Any], values: int) -> None:
    """Eighteen Jobs are rendered; most of a spec can stand in all of them."""
    cycle = with_cycle(MemoryApi(), template={"affinity": affinity(terms)})
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        problems = read(cycle)
    finally:
        sys.setprofile(None)
    assert problems == []
    assert calls < 24 * values


def test_an_accepted_spec_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    api, tried = MemoryApi(), []
    with_cycle(api)
    monkeypatch.setattr(
        reconciler, "unrenderable", lambda cycle, settings: tried.append(cycle.metadata.generation) or []
    )
    run(api)
    run(api)
    edited = api.objects["medgr2cycles", "ml", "loop"]
    edited["metadata"]["generation"] = 2
    run(api)
    assert tried == [1, 2]


@pytest.mark.parametrize("error", [ValueError("invalid literal: 'two'"), KeyError("limits"), RecursionError("deep")])
def test_what_nobody_foresaw_becomes_a_condition(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    api = MemoryApi()
    with_cycle(api)

    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr(reconciler.planner, "plan", broken)
    with pytest.raises(type(error)):  # the queue tries it again, later and later
        run(api)
    condition = api.condition("loop")
    assert (condition["status"], condition["reason"]) == ("False", "ReconcileError")
    assert condition["message"] == f"{type(error).__name__}: {error}"
    assert [event["reason"] for (kind, _, _), event in api.objects.items() if kind == "events"] == ["ReconcileError"]


@pytest.mark.parametrize(("status", "told"), [(403, True), (0, False), (429, False), (503, False)])
def test_what_the_api_server_refuses_is_told_what_passes_is_not(
    monkeypatch: pytest.MonkeyPatch, status: int, told: bool
) -> None:
    api = MemoryApi()
    with_cycle(api)

    async def refused(*_: Any, **__: Any) -> None:
        raise ApiError("LIST jobs: no", status)

    monkeypatch.setattr(api, "list", refused)
    with pytest.raises(ApiError):
        run(api)
    assert (api.condition("loop").get("reason") == "ReconcileError") is told


def test_one_broken_cycle_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    api = MemoryApi()
    good = with_cycle(api)
    api.put(CYCLES, {**good, "metadata": {"name": "bad", "generation": 1}})
    plan = reconciler.planner.plan

    def slow(cycle: Any, *rest: Any) -> Any:
        if cycle.metadata.name == "bad":
            while time.monotonic() < until:  # computes: nothing lets the loop go by itself
                pass
        return plan(cycle, *rest)

    async def both() -> list[Any]:
        work = operator(api)
        beats = asyncio.create_task(beat())
        results = await asyncio.gather(work(CycleKey("ml", "bad")), work(KEY), return_exceptions=True)
        beats.cancel()
        return results

    async def beat() -> None:
        while True:
            last.append(time.monotonic())
            await asyncio.sleep(0.01)

    last: list[float] = []
    monkeypatch.setattr(reconciler.planner, "plan", slow)
    monkeypatch.setattr(bounded_work.compute, "__defaults__", (0.5,))
    until = time.monotonic() + 2
    bad, fine = asyncio.run(both())
    assert isinstance(bad, TooSlowError)
    assert not isinstance(fine, Exception)
    assert max(later - earlier for earlier, later in itertools.pairwise(last)) < 0.4, "the Lease is renewed"
    assert api.condition("bad")["message"] == "TooSlowError: took longer than 0.5 s"
    assert len(api.jobs) == 1


def test_the_deepest_json_that_an_api_server_takes_can_be_read_and_written() -> None:
    code = (
        "import json\nfrom medgr2_operator.runtime.main import read_deep_objects\nread_deep_objects()\n"
        "for text in ('[' * 10_000 + ']' * 10_000, '{\"a\":' * 10_000 + '1' + '}' * 10_000):\n"
        "    assert json.dumps(json.loads(text), separators=(',', ':')) == text\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- setbacks ----------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def die(folder: Path, clock: Clock, *others: CycleKey) -> Setbacks:
    """A process that ends while it works on the cycle; returns what the next one knows."""
    before = Setbacks(folder, clock)
    for other in others:
        with before.working_on(other):
            pass
    before.working_on(KEY).__enter__()
    return Setbacks(folder, clock)


def test_a_cycle_that_ended_the_process_is_set_back_and_says_so(tmp_path: Path) -> None:
    api, clock = MemoryApi(), Clock()
    with_cycle(api)
    other = CycleKey("ml", "other")
    setbacks = die(tmp_path, clock, other)
    assert setbacks.left(other) == 0
    assert run(api, setbacks) == pytest.approx(30)
    assert api.jobs == []
    condition = api.condition("loop")
    assert (condition["status"], condition["reason"]) == ("False", "SetBack")
    assert "the operator's process ended while it worked on this cycle" in condition["message"]
    clock.now += 31
    run(api, setbacks)
    assert len(api.jobs) == 1
    assert api.condition("loop")["reason"] == "StagesRunning"
    assert list(tmp_path.iterdir()) == []


def test_an_edit_of_a_cycle_that_is_set_back_is_tried_at_once(tmp_path: Path) -> None:
    api, clock = MemoryApi(), Clock()
    cycle = with_cycle(api)
    setbacks = die(tmp_path, clock)
    for _ in range(2):
        assert run(api, setbacks) == pytest.approx(30)
    assert api.jobs == []
    told = api.objects[CYCLES.plural, "ml", "loop"]
    api.put(CYCLES, {**told, "metadata": {**cycle["metadata"], "generation": 2}})
    run(api, setbacks)
    assert len(api.jobs) == 1
    assert setbacks.left(KEY) == 0


def test_each_end_sets_it_back_twice_as_long_up_to_an_hour(tmp_path: Path) -> None:
    clock, delays = Clock(), []
    for _ in range(10):
        setbacks = die(tmp_path, clock)
        delays.append(setbacks.left(KEY))
        clock.now += delays[-1]
    assert delays == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert "(10 times in a row)" in setbacks.why(KEY)


def test_an_end_without_its_help_is_not_counted_against_it(tmp_path: Path) -> None:
    clock = Clock()
    die(tmp_path, clock)
    again = Setbacks(tmp_path, clock)  # ended once more, while nothing was worked on
    assert again.left(KEY) == 30


def test_an_error_or_a_shutdown_sets_nothing_back(tmp_path: Path) -> None:
    setbacks = Setbacks(tmp_path)
    for error in (ValueError, asyncio.CancelledError):
        with pytest.raises(error), setbacks.working_on(KEY):
            raise error
    assert Setbacks(tmp_path).left(KEY) == 0


def test_half_a_note_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"namespace": "ml"')
    (tmp_path / "b.json").write_text("[]")
    assert Setbacks(tmp_path).left(KEY) == 0


def test_what_computes_too_long_is_set_back() -> None:
    setbacks = Setbacks(None, Clock())
    with pytest.raises(TooSlowError), setbacks.working_on(KEY):
        asyncio.run(compute(lambda: time.sleep(0.5), 0.05))
    assert setbacks.left(KEY) == 30


def test_a_foreign_job_is_forgotten_with_its_cycle() -> None:
    """A process that lives for months sees many cycles."""
    api = MemoryApi()
    with_cycle(api)
    asyncio.run(operator(api)(KEY))
    (name,) = [job["metadata"]["name"] for job in api.jobs]
    api.put(JOBS, {"metadata": {"name": name, "ownerReferences": []}, "spec": {"template": {}}})
    with_cycle(api)
    work = operator(api)
    asyncio.run(work(KEY))
    assert list(work._foreign_jobs[KEY]) == [name]
    asyncio.run(work(KEY))
    assert list(work._foreign_jobs[KEY]) == [name]
    del api.objects["medgr2cycles", KEY.namespace, KEY.name]
    asyncio.run(work(KEY))
    assert work._foreign_jobs == {}


# -- anything ----------------------------------------------------------------------------------------------------------

OPERATIONS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test"]) | ANYTHING,
            "path": st.sampled_from(["", "/spec", POD, f"{POD}/containers/0", f"{POD}/volumes/-", "/x"]) | ANYTHING,
            "from": st.sampled_from(["", "/spec", POD, f"{POD}/containers"]) | ANYTHING,
            "value": ANYTHING,
        },
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(DAMAGED, OPERATIONS)
def test_whatever_stands_in_a_cycle_it_starts_or_says_why_not(damaged: tuple[str, Any], patches: Any) -> None:
    path, value = damaged
    spec: dict[str, Any] = {"template": {"patches": patches}}
    *parent, leaf = path.split(".")
    (spec.setdefault(parent[0], {}) if parent else spec)[leaf] = value
    api = MemoryApi()
    with_cycle(api, **spec)
    run(api)  # raises nothing: not even what the queue would try again
    assert api.jobs or api.of(CLAIMS)[1:] or api.condition("loop")["reason"] in ("InvalidSpec", "WorkspaceNotReady")


# -- clocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [-7, 0, 7])
def test_whatever_the_clock_says_a_pod_has_its_grace_period(hours: int) -> None:
    """Somebody deletes a healthy pod; the operator's clock is wrong, and is set while it runs."""
    api = MemoryApi()
    with_cycle(api)
    seconds, wrong = [0.0], [0]
    work = operator(api)
    work._now = lambda: datetime.now(UTC) + timedelta(hours=wrong[0])
    work._first_seen = FirstSeen(lambda: seconds[0])
    asyncio.run(work(KEY))
    (job,) = api.jobs
    going = {
        "name": "p",
        "labels": job["spec"]["template"]["metadata"]["labels"],
        "ownerReferences": [{"uid": job["metadata"]["uid"], "controller": True}],
        "deletionTimestamp": "2026-01-01T00:00:00Z",  # years ago
        "deletionGracePeriodSeconds": 300,
    }
    state = {"name": "main", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
    api.put(PODS, {"metadata": going, "status": {"phase": "Running", "containerStatuses": [state]}})
    for wrong[0] in (hours, -hours):
        asyncio.run(work(KEY))
        seconds[0] += 150
    assert api.deleted == []
    seconds[0] += 61
    asyncio.run(work(KEY))
    assert ("Pod", "p", 0) in api.deleted, "its node is silent"
