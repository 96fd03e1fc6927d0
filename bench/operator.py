"""What the operator costs, and how quickly it acts: real API server, Job controller and scheduler, simulated nodes.

    make bench NAME=operator                                  # about ten minutes
    python -m bench.operator --cycles 20 --stage-seconds 15   # smaller

Part 1, a few cycles with short stages: how long after the end of a Job the next one is created, and the operator's
requests per attempt. Part 2, many cycles side by side: memory and processor of the operator. Part 3, the operator is
killed, every running stage ends meanwhile, and it is started again: how long until every cycle has been brought up to
date, counted from the moment at which it leads. All moments and requests are read from the API server's audit log; the
operator is a user of its own there.

A Job's latency runs from the moment at which the last of the Jobs that it needs was stored as Complete to the moment at
which it was stored itself. What kwok (simulated pods) and the Job controller take before that is told separately.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import yaml
from tests.cluster.cluster_lock import SharedCluster
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import CRD, Kubectl, fresh_namespace
from tests.cluster.kwok import behaviour
from tests.cluster.operator import Operator
from tests.support.kwok_env import QUICKSTART, KwokEnv

from medgr2_api.cycle import CycleSpec
from medgr2_operator.plan.graph import Graph
from medgr2_operator.plan.spec_cache import cached_spec
from medgr2_operator.plan.types import StageKey
from medgr2_operator.render import labels

USER = "bench-operator"
#: Part 1: so many cycles, whose stages take so many milliseconds.
FEW, SHORT_MS = 10, (1500, 4000)
LONGEST_WAIT = 600.0
READS = {"get", "list", "watch"}


# -- the audit log -----------------------------------------------------------------------------------------------------


@dataclass
class Trace:
    """What the audit log tells of one namespace; `read` goes on where it stopped."""

    path: Path
    namespace: str
    offset: int = 0
    created: dict[tuple[str, StageKey], float] = field(default_factory=dict)
    """Jobs by cycle and stage: when they were stored, in seconds since 1970."""
    complete: dict[tuple[str, StageKey], float] = field(default_factory=dict)
    pod_ended: dict[tuple[str, StageKey], float] = field(default_factory=dict)
    reconciled: dict[str, float] = field(default_factory=dict)
    """When the operator last wrote a cycle's status."""
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The operator's: verb, resource."""
    refused: Counter[str] = field(default_factory=Counter)
    _jobs: dict[str, tuple[str, StageKey]] = field(default_factory=dict)

    def read(self) -> Trace:
        """Everything that was logged since."""
        with self.path.open("rb") as log:
            log.seek(self.offset)
            for line in log:
                if not line.endswith(b"\n"):  # still being written
                    break
                self.offset += len(line)
                event = json.loads(line)
                if event.get("objectRef", {}).get("namespace") == self.namespace:
                    self._note(event)
        return self

    def _note(self, event: dict[str, Any]) -> None:
        what, verb, code = event["objectRef"], event["verb"], event.get("responseStatus", {}).get("code", 0)
        resource = "/".join(filter(None, (what["resource"], what.get("subresource"))))
        ours = event["user"].get("username") == USER
        if ours:
            self.requests[verb, resource] += 1
            if code >= 400:
                self.refused[f"{verb} {resource} {code}"] += 1
        if code >= 300:
            return
        when = datetime.fromisoformat(event["stageTimestamp"]).timestamp()
        sent = event.get("requestObject") or {}
        if ours and (verb, resource) == ("create", "jobs"):
            found = sent["metadata"]["labels"]
            key = labels.attempt_key(found)
            assert key is not None
            self._jobs[what["name"]] = found[labels.CYCLE], key.stage
            self.created[self._jobs[what["name"]]] = when
        elif ours and resource == "medgr2cycles/status":
            self.reconciled[what["name"]] = when
        elif resource == "jobs/status" and what["name"] in self._jobs and _holds(sent, "Complete"):
            self.complete.setdefault(self._jobs[what["name"]], when)
        elif resource == "pods/status" and sent.get("status", {}).get("phase") == "Succeeded":
            job = self._jobs.get(what["name"].rpartition("-")[0])
            if job:
                self.pod_ended.setdefault(job, when)

    # -- figures -------------------------------------------------------------------------------------------------------

    def latencies(self, graph: Graph, since: float = 0.0) -> list[float]:
        """Seconds from the last end that a Job waited for to its creation; Jobs that waited for none are left out."""
        found = []
        for (cycle, stage), when in self.created.items():
            ends = [self.complete.get((cycle, need), float("inf")) for need in graph.nodes[stage].needs]
            if ends and when > since:
                found.append(when - max(ends))
        return found

    def job_controller(self) -> list[float]:
        """Seconds from the end of a pod to the Job's: no work of ours."""
        return [when - self.pod_ended[job] for job, when in self.complete.items() if job in self.pod_ended]


def _holds(manifest: dict[str, Any], condition: str) -> bool:
    found = manifest.get("status", {}).get("conditions") or ()
    return any(each["type"] == condition and each["status"] == "True" for each in found)


# -- the operator's process --------------------------------------------------------------------------------------------


class Sampler:
    """Resident memory of a process, twice a second."""

    def __init__(self, pid: int) -> None:
        self.process = psutil.Process(pid)
        self.mib: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            try:
                self.mib.append(self.process.memory_info().rss / 2**20)
            except psutil.Error:
                return

    def cpu(self) -> float:
        """Processor seconds so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


# -- the env ---------------------------------------------------------------------------------------------------------


@contextmanager
def namespace_of(control_plane: ControlPlane, title: str, folder: Path) -> Iterator[KwokEnv]:
    """A namespace with a claim."""
    with fresh_namespace(control_plane, title) as name:
        env = KwokEnv(control_plane, Kubectl(control_plane, name), name, folder)
        env.operator = env.replica("program", Operator)  # a forked one would have another's memory
        env.make_claim()
        yield env
        env.close()


def prepare(control_plane: ControlPlane) -> Path:
    """Our CRD, and the kubeconfig of a user whose reads are in the audit log, too."""
    control_plane.kubectl("apply", "--server-side", "-f", str(CRD))
    control_plane.kubectl("wait", "--for=condition=Established", "crd/medgr2cycles.medgr2.io", "--timeout=30s")
    control_plane.kubectl("create", "clusterrolebinding", USER, "--clusterrole=cluster-admin", f"--user={USER}")
    return control_plane.user_kubeconfig(USER)


def cycles(count: int, milliseconds: tuple[int, int], **changes: Any) -> list[dict[str, Any]]:
    """Quickstarts that differ in how long their stages take."""
    rng = random.Random(0)
    document = yaml.safe_load(QUICKSTART.read_text())
    made = []
    for number in range(count):
        annotations = behaviour(delay_ms=rng.randint(*milliseconds))
        patch = {"op": "add", "path": "/spec/template/metadata/annotations", "value": annotations}
        spec = {**document["spec"], **changes, "template": {"patches": [patch]}, "maxParallelStages": 16}
        made.append({**document, "metadata": {"name": f"loop-{number:03d}"}, "spec": spec})
    return made


def graph_of(document: dict[str, Any]) -> Graph:
    """The stages of a cycle, and what each needs."""
    spec = CycleSpec.model_validate(document["spec"])
    return cached_spec(document["metadata"]["name"], spec).graph(spec.iterations)


def started(operator: Operator, kubeconfig: Path) -> Sampler:
    """Starts the operator; returns once it leads."""
    operator.start(kubeconfig=str(kubeconfig))
    sampler = Sampler(operator.pid)

    def leads() -> bool:
        if not operator.alive():
            raise RuntimeError(f"the operator ended:\n{operator.log.read_text()[-3000:]}")
        return 'leader_election_master_status{name="medgr2-operator"} 1.0' in operator.get("/metrics")[1]

    until(leads, "the operator leads", 0.05)
    return sampler


def until(check: Callable[[], bool], what: str, every: float = 1.0) -> None:
    """Waits.

    Raises:
        TimeoutError: in vain.
    """
    deadline = time.monotonic() + LONGEST_WAIT
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(every)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- the three parts ---------------------------------------------------------------------------------------------------


def transitions(env: KwokEnv, kubeconfig: Path) -> dict[str, Any]:
    """Part 1: latency, and requests per attempt."""
    documents = cycles(FEW, SHORT_MS)
    graph = graph_of(documents[0])
    sampler = started(env.operator, kubeconfig)
    time.sleep(2)
    idle, cpu = sampler.mib[-1], sampler.cpu()
    trace = Trace(env.control_plane.audit.path, env.namespace)
    before = Counter(trace.read().requests)
    env.kubectl.apply(*documents)
    jobs = FEW * len(graph.nodes)
    until(lambda: len(trace.read().complete) == jobs, "all cycles are complete")
    time.sleep(2)  # their last status writes
    used = sampler.cpu() - cpu
    requests = trace.read().requests - before
    env.operator.kill()
    sampler.stop()
    return {
        "transition_seconds": spread(trace.latencies(graph)),
        "job_controller_seconds": spread(trace.job_controller()),
        "attempts": jobs,
        **per_attempt(requests, jobs),
        "refused": dict(trace.refused),
        "cpu_seconds_per_attempt": round(used / jobs, 4),
        "idle_rss_mib": round(idle, 1),
    }


def crowd(env: KwokEnv, kubeconfig: Path, count: int, seconds: float) -> dict[str, Any]:
    """Parts 2 and 3: memory, processor, and the restart."""
    milliseconds = (int(500 * seconds), int(1500 * seconds))
    documents = cycles(count, milliseconds, iterations=3)
    graph = graph_of(documents[0])
    sampler = started(env.operator, kubeconfig)
    trace = Trace(env.control_plane.audit.path, env.namespace)
    applied = time.time()
    for start in range(0, count, 50):
        env.kubectl.apply(*documents[start : start + 50])
    until(lambda: len({cycle for cycle, _ in trace.read().created}) == count, "every cycle has a Job", 0.5)
    ramp = time.time() - applied
    say(f"{count} cycles have their first Job after {ramp:.1f} s")

    cpu, jobs, before, began = sampler.cpu(), len(trace.created), Counter(trace.requests), time.time()
    time.sleep(4 * seconds)
    trace.read()
    took, used, attempts = time.time() - began, sampler.cpu() - cpu, len(trace.created) - jobs
    figures = {
        "cycles": count,
        "first_jobs_seconds": round(ramp, 1),
        "window_seconds": round(took),
        "attempts": attempts,
        "transition_seconds": spread(trace.latencies(graph, began)),
        "job_controller_seconds": spread(trace.job_controller()),
        **per_attempt(trace.requests - before, attempts),
        "refused": dict(trace.refused),
        "cpu_seconds_per_attempt": round(used / attempts, 4),
        "cpu_share_of_a_core": round(used / took, 3),
        "rss_mib_peak": round(max(sampler.mib), 1),
        "rss_mib_steady": round(statistics.median(sampler.mib[-int(2 * took) :]), 1),
    }
    say(json.dumps(figures))
    env.operator.kill()
    sampler.stop()

    time.sleep(milliseconds[1] / 1000 + 5)  # every stage that ran has ended by now
    trace.read()
    trace.reconciled.clear()
    sampler = started(env.operator, kubeconfig)
    leads = time.time()
    until(lambda: len(trace.read().reconciled) == count, "every cycle's status is written", 0.5)
    figures["restart_seconds_until_all_reconciled"] = round(max(trace.reconciled.values()) - leads, 1)
    figures["restart_rss_mib_peak"] = round(max(sampler.mib), 1)
    sampler.stop()
    return figures


def per_attempt(requests: Counter[tuple[str, str]], attempts: int) -> dict[str, Any]:
    """The operator's requests, without those about its Lease."""
    told = {
        f"{verb} {resource}": round(times / attempts, 3)
        for (verb, resource), times in requests.most_common()
        if resource != "leases"
    }
    writes = {name: value for name, value in told.items() if name.split()[0] not in READS}
    reads = {name: value for name, value in told.items() if name not in writes}
    return {
        "writes_per_attempt": round(sum(writes.values()), 2),
        "writes": writes,
        "reads_per_attempt": round(sum(reads.values()), 2),
        "reads": reads,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, 99th percentile and largest, in seconds."""
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "p50": round(statistics.median(ordered), 3),
        "p99": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 3),
        "max": round(ordered[-1], 3),
    }


def main() -> int:
    """Prints the line of JSON."""
    parser = argparse.ArgumentParser(description="What the operator costs, and how quickly it acts.")
    parser.add_argument("--cycles", type=int, default=200, help="side by side, in part 2")
    parser.add_argument("--stage-seconds", type=float, default=60, help="of a stage of part 2, give or take a half")
    asked = parser.parse_args()
    cluster = SharedCluster(f"bench-operator-{os.getpid()}")
    control_plane = cluster.join()
    try:
        cluster.kwok()
        kubeconfig = prepare(control_plane)
        with tempfile.TemporaryDirectory() as folder:
            with namespace_of(control_plane, "few", Path(folder)) as env:
                few = transitions(env, kubeconfig)
            say(json.dumps(few))
            with namespace_of(control_plane, "crowd", Path(folder)) as env:
                many = crowd(env, kubeconfig, asked.cycles, asked.stage_seconds)
    finally:
        cluster.leave()
    figures = {"few": few, "many": many}
    print(json.dumps({"name": "operator", "figures": figures, "n": asked.cycles, "cores": os.cpu_count()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
