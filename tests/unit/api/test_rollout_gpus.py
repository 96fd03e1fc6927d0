"""How the GPUs of stage grpo are shared out between its training and the vLLM that samples for it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from tests.support.cycle_specs import make_spec

from medgr2_api.gpu_use import remarks
from medgr2_api.rollout_gpus import RolloutShare, share
from medgr2_api.unsupported import unsupported


def spec(gpus: int, vllm: dict[str, Any] | None, **stage: Any) -> Any:
    resources = {"limits": {"nvidia.com/gpu": gpus}} if gpus else {}
    engine = {"transformers": {}} if vllm is None else {"vllm": vllm}
    grpo = stage.pop("grpo", {})
    policy = {"engine": engine, "grpo": {"promptsPerStep": 0, **grpo}}
    return make_spec(policy=policy, stages=[{"name": "grpo", "resources": resources, **stage}])


@pytest.mark.parametrize(
    ("gpus", "vllm", "told", "expected"),
    [
        (8, None, None, (8, 0, False)),
        (8, {}, None, (4, 4, True)),
        (8, {"rolloutGPUs": 2}, None, (6, 2, True)),
        (8, {"rolloutGPUs": 0}, None, (8, 0, False)),
        (8, {}, 6, (6, 2, True)),
        (3, {}, None, (2, 1, True)),
        (2, {}, None, (1, 1, True)),
        (1, {}, None, (1, 0, False)),
        (1, {"rolloutGPUs": 1}, None, (1, 0, False)),
        (0, {}, None, (1, 0, True)),
    ],
)
def test_half_of_them_sample_unless_the_spec_says_more(
    gpus: int, vllm: dict[str, Any] | None, told: int | None, expected: tuple[int, int, bool]
) -> None:
    found = share(spec(gpus, vllm, **({"numProcPerNode": told} if told else {})), "grpo")
    assert (found.processes, found.server, found.served) == expected


def test_other_stages_keep_theirs() -> None:
    stages = [{"name": "sft", "resources": {"limits": {"nvidia.com/gpu": 8}}}]
    assert share(make_spec(policy={"engine": {"vllm": {}}}, stages=stages), "sft") == RolloutShare(8)
    assert share(spec(8, {}), "grpo").of_server == Fraction(1, 2)


def test_it_is_said_who_has_which() -> None:
    assert list(remarks(spec(8, {}))) == [
        "grpo: 4 processes, one for each GPU that trains; a vLLM has the other 4 and samples"
    ]


ADAPTERS = {"lora": {"rank": 64, "alpha": 128}}


@pytest.mark.parametrize(
    ("vllm", "stage", "path"),
    [
        ({}, {"grpo": {"lora": {"rank": 0}}}, "spec.policy.grpo.lora"),
        ({}, {"grpo": {"lora": {"rank": 8}}}, "spec.policy.grpo.lora"),
        ({}, {"deepspeed": "Zero3"}, "spec.stages"),
        ({}, {"numNodes": 2}, "spec.policy.engine.vllm"),
        ({"rolloutGPUs": 8}, {}, "spec.policy.engine.vllm.rolloutGPUs"),
        ({"rolloutGPUs": 4}, {"numProcPerNode": 5}, "spec.policy.engine.vllm.rolloutGPUs"),
        ({}, {"grpo": {"trainer": {"top_k": 5}}}, "spec.policy.grpo.trainer.top_k"),
        ({}, {"grpo": {"trainer": {"loss_type": "vespo"}}}, "spec.policy.grpo.trainer.loss_type"),
        ({"rolloutGPUs": 0}, {"grpo": {"resampleGroups": 2}}, "spec.policy.grpo.resampleGroups"),
        (None, {"grpo": {"resampleGroups": 2}}, "spec.policy.grpo.resampleGroups"),
    ],
)
def test_what_a_vllm_cannot_sample_for_is_refused(
    vllm: dict[str, Any] | None, stage: dict[str, Any], path: str
) -> None:
    assert [problem.path for problem in unsupported(spec(8, vllm, **stage))] == [path]


def test_what_it_can_passes_and_so_does_all_of_it_in_process() -> None:
    fine = {"grpo": {**ADAPTERS, "resampleGroups": 2, "trainer": {"top_p": 0.9}}}
    assert unsupported(spec(8, {}, **fine)) == []
    assert unsupported(spec(8, {"rolloutGPUs": 0}, grpo={"lora": {"rank": 0}}, deepspeed="Zero3")) == []
