"""DeepSpeed on CPUs. Not among the tests that always run: with DeepSpeed installed, accelerate imports it into every
training (two seconds each), so the development environment goes without.

    uv pip install -c constraints.txt --target DIR deepspeed
    PYTHONPATH=DIR python -m pytest tests/support/deepspeed_by_hand.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medgr2_api.stage_contract import DEEPSPEED_ENV, ExitCode
from medgr2_jobs.models import checkpoint as checkpoints
from medgr2_jobs.models import vlm
from medgr2_jobs.reward.model import RewardModel
from medgr2_jobs.store.artifact import ArtifactReader
from tests.integration.test_distributed import Cluster, checkpoint, cluster, first_reward, losses, sft, workspace
from tests.support.fixtures import artifact_ref
from tests.support.policy_fixtures import PolicyWorkspace

__all__ = ["cluster", "workspace"]  # fixtures
STEPS = {"max_steps": 12, "save_steps": 4}


@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
@pytest.mark.parametrize("zero", ["Zero2", "Zero3"])
def test_sft_learns_as_without(workspace: PolicyWorkspace, cluster: type[Cluster], zero: str, rank: int) -> None:
    plain = workspace.run(workspace.sft({**STEPS, "per_device_train_batch_size": 4}, rank=rank, name="plain"))
    assert plain is not None
    request = workspace.sft({**STEPS, "per_device_train_batch_size": 2}, rank=rank, name=zero)
    pod = cluster(request, nodes=1, processes=2, **{DEEPSPEED_ENV: zero})
    assert pod.ended() == [0], pod.logs()
    alone = workspace.sft({**STEPS, "per_device_train_batch_size": 4}, rank=rank, name="plain")
    assert losses(workspace, request) == pytest.approx(losses(workspace, alone), rel=1e-2)
    context = workspace.context(request)
    expected = checkpoints.at(context, plain.folder_of("model")).load().state_dict()
    weights = checkpoints.at(context, workspace.reader(request).folder_of("model")).load().state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.allclose(weights[name], expected[name], atol=2e-2) for name in expected)


@pytest.mark.parametrize("zero", ["Zero2", "Zero3"])
def test_sft_goes_on_from_a_checkpoint(workspace: PolicyWorkspace, cluster: type[Cluster], zero: str) -> None:
    name, options = f"stopped-{zero}", {"nodes": 1, "processes": 2, DEEPSPEED_ENV: zero}
    pod = cluster(sft(workspace, name), **options)
    pod.until(lambda: checkpoint(workspace, sft(workspace, name), f"2 {zero}") >= 4, "step 4")
    pod.nodes[0].process.terminate()
    assert pod.ended() == [ExitCode.CHECKPOINTED], pod.logs()
    again = sft(workspace, name, 2)
    resumed = cluster(again, **options)
    assert resumed.ended() == [0], resumed.logs()
    assert len(losses(workspace, again)) == 40


@pytest.mark.parametrize("zero", ["Zero2", "Zero3"])
def test_grpo(workspace: PolicyWorkspace, cluster: type[Cluster], zero: str) -> None:
    request = workspace.grpo({"max_steps": 2}, name=zero)
    pod = cluster(request, nodes=1, processes=2, **{DEEPSPEED_ENV: zero})
    assert pod.ended() == [0], pod.logs()
    vlm.load_model(workspace.reader(request).folder_of("model"))


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])  # what DeepSpeed makes of every weight
def test_the_reward_model(tmp_path: Path, cluster: type[Cluster], bf16: bool) -> None:
    request = first_reward(tmp_path, bf16=bf16)
    pod = cluster(request, tmp_path, nodes=1, processes=2, **{DEEPSPEED_ENV: "Zero2"})
    assert pod.ended() == [0], pod.logs()
    RewardModel.load(ArtifactReader(tmp_path, artifact_ref(tmp_path, request)).folder_of("model"))
