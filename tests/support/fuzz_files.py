"""Fuzzed: what the operator and the command line read beside cycles: termination messages, kubeconfigs, states and
manifests."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medgr2_api.yaml_loader import parse_cycle
from tests.support.fuzz_target import EXAMPLES, Case, Target
from tests.support.mutations import damaged_json, damaged_text


def _termination(_: Path) -> Case:
    from medgr2_api.stage_contract import StageResult
    from medgr2_operator.runtime import observe
    from medgr2_operator.runtime.why_waiting import Surroundings

    labels = {"medgr2.io/iteration": "1", "medgr2.io/stage": "sft", "medgr2.io/token": "", "medgr2.io/attempt": "2"}
    at = "2026-01-01T00:10:00Z"
    whole = StageResult(exit_code=0, output_digest="d" * 64, metrics={"accuracy": 0.5}, usage={"gpuHours": 1.0})
    document = json.loads(whole.to_termination_message())

    def case(rng: random.Random) -> str:
        message = damaged_json(rng, document).decode("utf-8", "replace")
        code = rng.choice((0, 1, 65, 78, 85, 137))
        end = {"exitCode": code, "message": message, "finishedAt": at, "startedAt": at}
        job = {
            "metadata": {
                "name": "j",
                "uid": "j",
                "labels": labels,
                "ownerReferences": [{"uid": "c", "controller": True}],
            },
            "spec": {},
            "status": {
                "conditions": [
                    {
                        "type": "Failed" if code else "Complete",
                        "status": "True",
                        "lastTransitionTime": at,
                        "message": message,
                    }
                ]
            },
        }
        pod = {
            "metadata": {"name": "p", "labels": labels, "ownerReferences": [{"uid": "j", "controller": True}]},
            "status": {
                "phase": "Failed" if code else "Succeeded",
                "containerStatuses": [{"name": "main", "state": {"terminated": end}}],
            },
        }
        around = Surroundings(datetime(2026, 1, 1, 0, 12, tzinfo=UTC))
        [seen] = observe.jobs([observe.needed(job)], [observe.needed(pod)], "c", around)
        return "read" if seen.result else "unread"

    return case


def _kubeconfig(folder: Path) -> Case:
    from medgr2_operator.kube.kubeconfig import KubeconfigError, connect

    text = """apiVersion: v1
kind: Config
clusters:
- name: c
  cluster:
    server: https://127.0.0.1:6443
    insecure-skip-tls-verify: true
contexts:
- name: x
  context:
    cluster: c
    user: u
    namespace: ml
users:
- name: u
  user:
    token: secret
current-context: x
"""
    loop = asyncio.new_event_loop()

    async def read() -> str:
        async with connect(str(folder / "config")) as (_, namespace):
            return "read" if namespace == "ml" else "another namespace"

    def case(rng: random.Random) -> str:
        (folder / "config").write_bytes(damaged_text(rng, text).encode("utf-8", "surrogatepass"))
        try:
            return loop.run_until_complete(read())
        except KubeconfigError as error:
            str(error).encode()
            return "refused"

    return case


def _state(folder: Path) -> Case:
    from medgr2_api.cycle import Cycle
    from medgr2_operator.local.state import StateError, StateFile

    cycle = parse_cycle((EXAMPLES / "quickstart.yaml").read_text(), "x")
    state = StateFile(folder, cycle.metadata.name)
    state.save(cycle)
    document: Any = json.loads(state.path.read_text())
    document["status"] = {
        "phase": "Running",
        "observedGeneration": 1,
        "conditions": [
            {"type": "Progressing", "status": "True", "reason": "x", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        ],
        "stages": [],
    }

    def case(rng: random.Random) -> str:
        state.path.write_bytes(damaged_json(rng, document))
        try:
            return "read" if isinstance(state.load(), Cycle) else "none"
        except StateError as error:
            str(error).encode()
            return "refused"

    return case


def _manifest(folder: Path) -> Case:
    from medgr2_api import paths
    from medgr2_jobs.errors import CorruptArtifact
    from medgr2_jobs.store import manifest

    (folder / "t.parquet").write_bytes(b"x")
    part = manifest.Part(
        name="t.parquet",
        path="t.parquet",
        bytes=1,
        sha256="2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
    )
    made = manifest.Manifest(
        stage="curate", input_hash="a" * 64, code_version=1, cycle="c", iteration=1, attempt=1, parts=[part],
        inputs={"prepare": "b" * 64}, parameters={"seed": 1},
    )  # fmt: skip
    made.output_digest = made.digest()

    def case(rng: random.Random) -> str:
        (folder / paths.MANIFEST).write_bytes(damaged_json(rng, made.dump()))
        try:
            loaded = manifest.load(folder)
            if loaded is None:
                return "none"
            manifest.verify(folder, loaded)
            return "read"
        except CorruptArtifact as error:
            str(error).encode()
            return "refused"

    return case


TARGETS = (
    Target("termination messages", 0.05, _termination),
    Target("kubeconfig", 0.02, _kubeconfig),
    Target("state.json", 0.04, _state),
    Target("manifests", 0.04, _manifest),
)
