"""A cycle with trained checkpoints on the tiny model, as `medgr2 export` and `ask` find it: artifacts with links."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from medgr2_api import paths
from medgr2_api.cycle import CycleSpec
from medgr2_api.presets import resolve
from medgr2_api.stage_contract import ArtifactRef, StageRequest
from medgr2_api.stages import PREPARE
from medgr2_api.stages.definition import Source
from medgr2_jobs.prompts import answers
from medgr2_jobs.store.manifest import Manifest, Part
from medgr2_jobs.store.rows.prepared import Item
from tests.support.policy_fixtures import FORMAT, PolicyWorkspace

CYCLE = "loop"
SPEC = {
    "workspace": {"persistentVolumeClaim": {"claimName": "x"}},
    "preset": "Tiny",
    "data": {
        "sources": [{"name": "ward", "format": "Phantom", "phantom": {"images": 8, "questionsPerImage": 1}}],
        "split": {"validationFraction": 0.5},
    },
    "generator": {"scripted": {}},
    "rewardModel": {"baseModel": "builtin://tiny-qwen2.5-vl"},
    "policy": {"baseModel": "builtin://tiny-qwen2.5-vl"},
}


def prepared(
    workspace: PolicyWorkspace, *, base_model: str = "builtin://tiny-qwen2.5-vl", pins: Sequence[dict[str, Any]] = ()
) -> None:
    """Gives the workspace's `prepare` parameters, and links it and `curate` into the cycle.

    Args:
        workspace: changed.
        base_model: as the spec names the policy's.
        pins: of `inputs.json`; none: it has no such part.
    """
    spec = resolve(CycleSpec.model_validate({**SPEC, "policy": {"baseModel": base_model}}))
    assert spec.answer_format is FORMAT
    parameters = PREPARE.build(Source(spec, CYCLE, 0, 1))
    file = workspace.root / workspace.refs["prepare"].path / paths.MANIFEST
    document = json.loads(file.read_text())
    if pins:
        data = json.dumps(list(pins)).encode()
        name = f"{document['parts'][0]['path'].partition('/')[0]}/inputs.json"
        (file.parent / name).write_bytes(data)
        part = Part(name="inputs.json", path=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        document["parts"].append(part.dump())
    made = Manifest.model_validate({**document, "parameters": parameters.dump()})
    file.write_text(json.dumps(made.model_copy(update={"output_digest": made.digest()}).dump()))
    workspace.refs["prepare"] = workspace.refs["prepare"].model_copy(update={"output_digest": made.digest()})
    link(workspace, workspace.refs["prepare"].path, "prepare", 0)
    link(workspace, workspace.refs["curate-1"].path, "curate", 1)


def link(workspace: PolicyWorkspace, artifact: str, stage: str, iteration: int) -> None:
    """Names an artifact in the cycle's folder."""
    place = workspace.root / paths.iteration_link(CYCLE, iteration, stage)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(workspace.root / artifact)


def stock(folder: Path, workspace: PolicyWorkspace, items: list[Item], adapter: Path | None = None) -> list[str]:
    """What transformers (and peft) alone make of an exported folder, in float32: nothing of ours takes part."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    said = []
    for item in items:
        prompt = answers.prompt_of(item, FORMAT)
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt.text}]}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = processor(text=[text], images=[workspace.images.load(item.image_sha256)], return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=32)
        said.append(processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])
    return said


def run(workspace: PolicyWorkspace, request: StageRequest, iteration: int = 1) -> ArtifactRef:
    """Runs a stage and links what it publishes."""
    found = workspace.run(request)
    assert found is not None
    link(workspace, found.ref.path, request.stage, iteration)
    return found.ref.model_copy(update={"output_digest": found.digest})


def evaluated(workspace: PolicyWorkspace, iteration: int, roles: list[str]) -> ArtifactRef:
    """Asks the base model (iteration 0) or the checkpoints of these roles, and measures what they say."""
    measured = replace(workspace, refs=dict(workspace.refs))
    asking = {"evaluategrpo" if role == "grpo" else "evaluate": [role] for role in roles} or {"evaluate": []}
    for stage, inputs in asking.items():
        parameters = {"iteration": iteration, "controls": ["BlankImage", "OptionPrior"]}
        request = workspace.request(stage, parameters, ["prepare", *inputs])
        measured.refs[stage] = run(workspace, request.model_copy(update={"iteration": iteration}), iteration)
    request = measured.request("measure", {"iteration": iteration}, ["prepare", *asking])
    return run(workspace, request.model_copy(update={"iteration": iteration}), iteration)
