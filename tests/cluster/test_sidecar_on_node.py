"""A model server beside the stage, on a real kubelet: `transformers serve` in the place of `vllm serve`."""

from __future__ import annotations

import copy
import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.cluster.fixtures import eventually
from tests.cluster.lab import Lab
from tests.e2e.loop_world import CYCLE
from tests.integration.real_server import BUILD

pytestmark = pytest.mark.cluster

#: What `transformers serve` needs, and the image of the stages does not have.
SERVING = ("fastapi", "uvicorn")
CANDIDATES = 6


@pytest.mark.lab("lab-sidecar")
def test_a_model_server_starts_before_the_stage_and_ends_with_it(lab: Lab, stage_image: str) -> None:
    folder = lab.volume("models")
    subprocess.run([sys.executable, "-c", BUILD, str(folder / "models" / "tiny")], check=True, timeout=300)
    for file in (folder / "models" / "tiny").iterdir():
        file.chmod(0o644)  # safetensors writes 0600, and the pod is another user
    for name in with_dependencies(SERVING):
        copy_distribution(name, folder / "serving")
    document = copy.deepcopy(CYCLE)
    spec = document["spec"]
    spec["workspace"] = {"persistentVolumeClaim": {"claimName": "models"}}
    spec["generator"] = {
        "vllm": {"model": "models/tiny", "image": stage_image, "args": ["--host", "0.0.0.0", "--device", "cpu"]},
        "candidates": CANDIDATES,
        "questionsPerImage": 2,
        "sampling": {"temperature": 1.0, "topP": 1.0, "maxTokens": 24},
    }
    container = "/spec/template/spec/initContainers/0"
    patches = [
        {"op": "replace", "path": f"{container}/command", "value": ["transformers", "serve"]},
        {"op": "add", "path": f"{container}/env/-", "value": {"name": "PYTHONPATH", "value": "/workspace/serving"}},
    ]
    small = {"requests": {"cpu": "100m", "memory": "512Mi"}}
    spec["stages"] = [
        {"name": "generate", "resources": small, "patches": patches},
        *({"name": name, "resources": small} for name in ("prepare", "reward", "evaluate")),
    ]
    lab.kubectl.apply(document)

    lab.until_stage("loop", "generate", "Succeeded", 600)
    (pod,) = [name for name in lab.pods() if "-generate-" in name]
    status = lab.kubectl.get("pod", pod)["status"]
    (server,), (main,) = status["initContainerStatuses"], status["containerStatuses"]
    assert server["restartCount"] == 0
    assert server["state"]["terminated"], "it ends after the stage, and does not keep the pod"
    assert server["state"]["terminated"]["startedAt"] <= main["state"]["terminated"]["startedAt"]
    assert main["state"]["terminated"]["exitCode"] == 0
    assert "POST /v1/chat/completions" in lab.kubectl("logs", pod, "-c", "vllm")
    counters = lab.manifest_in(folder, "loop", "generate")["counters"]
    assert counters["candidates"] == CANDIDATES
    eventually(lambda: lab.stage("loop", "generate")["state"] == "Succeeded", "the record stays")


def with_dependencies(names: Iterable[str]) -> set[str]:
    """These distributions, as they are installed here, and all that they need."""
    found: set[str] = set()
    left = [canonicalize_name(name) for name in names]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            wanted = map(Requirement, importlib.metadata.requires(name) or ())
            left += [canonicalize_name(r.name) for r in wanted if not r.marker or r.marker.evaluate({"extra": ""})]
    return found


def copy_distribution(name: str, target: Path) -> None:
    """The files of a distribution, without its commands and bytecode."""
    for file in importlib.metadata.files(name) or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), target / file)
