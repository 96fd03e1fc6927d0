"""A policy that vLLM can serve: the tiny model with heads of 32 dimensions, as its CPU kernels want, and adapters.

Random weights, so that what transformers and vLLM say agrees because they compute the same, not because a trained model
is sure of itself. The base model is what `medgr2 export` made of another cycle's adapters: a server of it serves an
export, and no test needs one of its own for that.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import get_peft_model

from medgr2_api.stage_contract import ArtifactRef
from medgr2_api.training_spec import Adapters
from medgr2_jobs.export import __main__ as exporting
from medgr2_jobs.export.published_policy import find
from medgr2_jobs.models import checkpoint
from medgr2_jobs.models.checkpoint import Checkpoint
from medgr2_jobs.models.tiny import model as tiny_model
from medgr2_jobs.models.tiny import tokenizer as tiny_tokenizer
from medgr2_jobs.training.trainer import lora_config
from tests.support import export_fixtures, policy_fixtures
from tests.support.jobs_fixtures import Artifacts
from tests.support.policy_fixtures import PolicyWorkspace

#: 96 / 3 = 32 dimensions each.
HEADS = 3
RANK = 4
#: As trainings make them, so that GRPO goes on with those of SFT.
LORA = {"rank": RANK, "alpha": 2 * RANK}


def model(seed: int = 1) -> Any:
    """A random one."""
    with mock.patch.object(tiny_model, "HEADS", HEADS):
        return tiny_model.build(tiny_tokenizer.processor().tokenizer, seed)


def adapted(seed: int) -> Any:
    """The model with random adapters, strong enough to change what it says."""
    torch.manual_seed(seed)
    config = lora_config(Adapters.model_validate(LORA))
    assert config is not None
    found = get_peft_model(model(), config)
    for name, weight in found.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return found


def build(root: Path) -> PolicyWorkspace:
    """A workspace whose policy, of `sft` and of `policy`, is adapters on prepare's base model, an export."""
    with mock.patch.object(tiny_model, "HEADS", HEADS):
        first = _cycle(policy_fixtures.build(root / "first", images=3))
    folder = exported(first, root / "export")
    return _cycle(policy_fixtures.build(root, write_model=lambda target, seed: shutil.copytree(folder, target)))


def exported(workspace: PolicyWorkspace, folder: Path) -> Path:
    """`sft@1` as a folder that any loader reads."""
    return exporting.export(find(workspace.root, export_fixtures.CYCLE, "sft@1"), folder)


def _cycle(workspace: PolicyWorkspace) -> PolicyWorkspace:
    """Adds the adapters, and the links by which an export finds `sft@1`."""
    export_fixtures.prepared(workspace)
    for role, stage, seed in (("sft", "sft", 5), ("policy", "grpo", 6)):
        workspace.refs[role] = _adapters(workspace, role, stage, seed)
    export_fixtures.link(workspace, workspace.refs["sft"].path, "sft", 1)
    return workspace


def base(workspace: PolicyWorkspace) -> Checkpoint:
    """The model that the policy starts from."""
    return checkpoint.base(Artifacts(workspace.root, workspace.refs))


def policy(workspace: PolicyWorkspace) -> Checkpoint:
    """The newest checkpoint."""
    return checkpoint.published(Artifacts(workspace.root, workspace.refs), "policy")


def _adapters(workspace: PolicyWorkspace, role: str, stage: str, seed: int) -> ArtifactRef:
    stands_on = base(workspace).stands_on
    assert stands_on is not None

    def write(writer: Any) -> None:
        checkpoint.save_adapter(adapted(seed), writer.path("model"), stands_on)

    return policy_fixtures.published(workspace.root, f"adapters/{role}", stage, write)
