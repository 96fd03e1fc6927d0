"""Small prepared workspaces for tests: built once per session and settings, then copied.

from tests.support.fixtures import prepared_workspace, stage_request
request, prepare = prepared_workspace(tmp_path)                     # an ArtifactRef of stage prepare
request = stage_request("generate", 1, parameters, {"prepare": prepare})
assert execute(request, tmp_path) == 0
"""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from medgr2_api import paths, stages
from medgr2_api.hashing import canonical_json
from medgr2_api.presets import resolve
from medgr2_api.stage_contract import ArtifactRef, CycleRef, Progress, StageRequest
from medgr2_api.stages import StageParameters, input_hash
from tests.support.cycle_documents import spec_with

#: A tiny model that has seen almost nothing: loads and runs like any other, answers nonsense.
BASE = "builtin://tiny-qwen2.5-vl?steps=4&images=32&batch=8"

_PREPARED: dict[str, tuple[Path, StageRequest, ArtifactRef]] = {}


def prepare_parameters(**overrides: Any) -> dict[str, Any]:
    """Parameters of stage prepare, wire names: 40 seed phantoms, 30 more images, a benchmark of 10; tiny model.

    Args:
        overrides: by wire name (`mismatchesPerItem=2`); `data` is merged one level deep, and resolved.
    """
    data: dict[str, Any] = {
        "sources": [
            {"name": "seed", "format": "Phantom", "phantom": {"images": 40}},
            {"name": "pool", "format": "Phantom", "role": "Images", "phantom": {"images": 30, "questionsPerImage": 0}},
        ],
        "split": {"validationFraction": 0.2},
        "benchmarks": [{"name": "bench", "format": "Phantom", "phantom": {"images": 10}}],
    }
    parameters: dict[str, Any] = {
        "seed": 17,
        "data": resolve(spec_with({"data": {**data, **overrides.pop("data", {})}})).data.dump(),
        "policyBaseModel": BASE,
        "rewardBaseModel": BASE,
        "rewardCheckpoint": None,
        "answerFormat": "OptionText",
        "grades": {},
        "mismatchesPerItem": 1,
    }
    return {**parameters, **overrides}


def stage_request(
    stage: str,
    iteration: int,
    parameters: dict[str, Any] | StageParameters,
    inputs: dict[str, ArtifactRef] | None = None,
    **fields: Any,
) -> StageRequest:
    """A request as the planner would make it: parameters checked and in normal form, the real input hash.

    Args:
        stage: which stage.
        iteration: which iteration.
        parameters: wire names, or the model.
        inputs: by role.
        fields: further fields of StageRequest, such as `attempt=2`.
    """
    checked = (
        stages.definition(stage).parameters.model_validate(parameters) if isinstance(parameters, dict) else parameters
    )
    inputs = inputs or {}
    token = fields.get("token", "")
    return StageRequest(
        cycle=fields.pop("cycle", CycleRef(name="test", uid="0000-test")),
        iteration=iteration,
        stage=stage,
        input_hash=input_hash(stage, checked, {role: ref.output_digest for role, ref in inputs.items()}, token),
        parameters=checked.dump(),
        inputs=inputs,
        **fields,
    )


def artifact_ref(root: Path, request: StageRequest) -> ArtifactRef:
    """The reference to what a finished (unsharded) stage published."""
    from medgr2_jobs.store import manifest

    path = paths.artifact(request.stage, request.input_hash)
    published = manifest.load(root / path)
    assert published is not None, f"{request.stage} has not published"
    return ArtifactRef(
        stage=request.stage, iteration=request.iteration, path=str(path), output_digest=published.output_digest
    )


def run_stage(root: Path, request: StageRequest) -> ArtifactRef:
    """Runs an unsharded stage in this process; it must succeed."""
    from medgr2_jobs.runner.main import execute

    code = execute(request, root)
    assert code == 0, f"{request.stage}@{request.iteration} ended with {code}"
    return artifact_ref(root, request)


def prepared_workspace(root: Path, **overrides: Any) -> tuple[StageRequest, ArtifactRef]:
    """Makes `root` a workspace in which prepare has run; see `prepare_parameters` for the overrides."""
    parameters = prepare_parameters(**overrides)
    key = canonical_json(parameters)
    if key not in _PREPARED:
        template = Path(_session_folder().name) / str(len(_PREPARED))
        template.mkdir()
        request = stage_request("prepare", 0, parameters)
        _PREPARED[key] = (template, request, run_stage(template, request))
    template, request, ref = _PREPARED[key]
    shutil.copytree(template, root, symlinks=True, dirs_exist_ok=True)
    return request, ref


@cache
def _session_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="medgr2-tests-")


def last_said(root: Path, request: StageRequest) -> Progress:
    """What is in a stage's progress file."""
    name = paths.attempt_name(request.iteration, request.stage, request.token, request.attempt, 0)
    return Progress.model_validate_json((root / paths.progress(request.cycle.name, name)).read_text())
