"""The attempts whose manifests are written out in golden/."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from medgr2_api.cycle import Cycle, Metadata
from medgr2_api.stage_contract import ArtifactRef, CycleRef, StageRequest
from medgr2_operator.plan.scheduling import job_name
from medgr2_operator.plan.spec_cache import cached_spec
from medgr2_operator.plan.types import AttemptKey, JobCreate
from medgr2_operator.render.render_context import RenderSettings
from tests.support.cycle_specs import make_spec

UID = "5d0c1a52-7c3b-4d0e-9f5a-0d6f0a1b2c3d"
SETTINGS = RenderSettings(image="medgr2/jobs:test")
GPU = {"limits": {"nvidia.com/gpu": 8, "cpu": 32, "memory": "400Gi"}}


@dataclass(frozen=True)
class Case:
    """One attempt of one cycle."""

    stage: str
    spec: dict[str, Any] = field(default_factory=dict)
    """Changes to the smallest spec."""
    request: dict[str, Any] = field(default_factory=dict)
    """Further fields of the request."""
    name: str = "omnimed"
    iteration: int = 2
    token: str = ""
    attempt: int = 1
    resumes: bool = False
    single_node: bool = False

    def cycle(self) -> Cycle:
        """The cycle."""
        metadata = Metadata(name=self.name, namespace="ml", uid=UID)
        return Cycle(metadata=metadata, spec=make_spec(**self.spec))

    def create(self) -> JobCreate:
        """What the planner asks for."""
        cycle = self.cycle()
        key = AttemptKey(self.iteration, self.stage, self.token, self.attempt)
        # of the parameters only who is asked matters here: changed presets must not change every golden manifest
        known = cached_spec(cycle.metadata.name, cycle.spec).parameters(self.stage, self.iteration).dump()
        parameters = {"seed": 7, **{name: known[name] for name in ("provider", "engine") if name in known}}
        request = StageRequest(
            cycle=CycleRef(name=self.name, namespace="ml", uid=UID),
            iteration=self.iteration,
            stage=self.stage,
            token=self.token,
            attempt=self.attempt,
            input_hash="1f" * 32,
            inputs={
                "prepare": ArtifactRef(
                    stage="prepare",
                    iteration=0,
                    path=f"artifacts/prepare/{'2e' * 32}",
                    output_digest="3d" * 32,
                )
            },
            **{"parameters": parameters, **self.request},
        )
        name = job_name(self.name, UID, key)
        return JobCreate(key, name, request, cycle.spec.stage(self.stage).shards, self.resumes)


_TWO_NODES = {"name": "grpo", "numNodes": 2, "numProcPerNode": 8, "deepspeed": "Zero3", "resources": GPU}
_QUEUEING = {
    "queueName": "gpu",
    "workloadPriorityClassName": "research",
    "inFlightPriorityClassName": "research-high",
}

FETCH = {
    "sources": [{"name": "seed", "format": "OmniMedVQA", "uri": "s3://bucket/seed"}],
    "fetch": {
        "hubTokenSecretRef": {"name": "hub", "key": "token"},
        "s3": {
            "endpointURL": "https://s3.example",
            "accessKeyIDSecretRef": {"name": "store", "key": "id"},
            "secretAccessKeySecretRef": {"name": "store", "key": "secret"},
        },
    },
}

CASES: dict[str, Case] = {
    "plain": Case("curate"),
    "gpu-kueue": Case(
        "sft",
        {
            "queueing": _QUEUEING,
            "template": {
                "image": "registry.example/medgr2:1",
                "imagePullSecrets": [{"name": "registry"}],
                "serviceAccountName": "trainer",
                "env": [
                    {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
                    {"name": "HF_HUB_OFFLINE", "value": "0"},
                    {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}},
                ],
                "envFrom": [{"configMapRef": {"name": "nccl"}}],
                "nodeSelector": {"pool": "cpu"},
                "securityContext": {"fsGroup": 2000, "runAsUser": 2000, "runAsGroup": None},
                "terminationGracePeriodSeconds": 600,
            },
            "stages": [
                {
                    "name": "sft",
                    "numProcPerNode": 8,
                    "deepspeed": "Zero2",
                    "resources": GPU,
                    "timeoutSeconds": 43200,
                    "nodeSelector": {"pool": "h100"},
                    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                }
            ],
        },
        attempt=3,
        token="again",
        resumes=True,
    ),
    "shards": Case(
        "generate",
        {
            "generator": {
                "openAI": {
                    "model": "Qwen/Qwen2.5-VL-72B-Instruct",
                    "baseURL": "https://api.example/v1",
                    "apiKeySecretRef": {"name": "provider", "key": "api-key"},
                },
                "questionTypes": ["Costs $(HOME) or $$5?"],
            },
            "queueing": _QUEUEING,
            "stages": [
                {"name": "generate", "shards": 8, "queueName": "cpu", "resources": {"limits": {"cpu": "2500m"}}}
            ],
        },
        {
            "parameters": {
                "provider": {"kind": "openAI", "model": "m", "apiKeySecretRef": {"name": "provider", "key": "api-key"}},
                "questionTypes": ["Costs $(HOME) or $$5?"],
            }
        },
    ),
    "fetch": Case(
        "prepare",
        {"data": FETCH},
        {"parameters": {"seed": 7, "data": FETCH}},
        iteration=0,
    ),
    "two-nodes": Case("grpo", {"stages": [_TWO_NODES]}),
    "vllm": Case(
        "generate",
        {
            "generator": {"vllm": {"model": "Qwen/Qwen2.5-VL-32B-Instruct", "args": ["--max-model-len", "8192"]}},
            "template": {"env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}]},
            "stages": [{"name": "generate", "resources": {"limits": {"nvidia.com/gpu": 2, "memory": "96Gi"}}}],
        },
    ),
    "policy-server": Case(
        "evaluate",
        {
            "policy": {"engine": {"vllm": {"image": "registry.lan/vllm:1", "args": ["--max-num-seqs=128"]}}},
            "stages": [{"name": "evaluate", "resources": {"limits": {"nvidia.com/gpu": 2, "memory": "96Gi"}}}],
        },
    ),
    "rollouts": Case(
        "grpo",
        {
            "policy": {"engine": {"vllm": {"args": ["--max-num-seqs=128"]}}},
            "stages": [{"name": "grpo", "resources": {"limits": {"nvidia.com/gpu": 8, "cpu": 94, "memory": "1000Gi"}}}],
        },
    ),
    "policy-on-site": Case(
        "preferences",
        {
            "rewardModel": {"baseModel": "models/r", "retrainOn": "PolicyAnswers"},
            "policy": {
                "engine": {
                    "server": {
                        "baseURL": "http://vllm.models.svc:8000",
                        "apiKeySecretRef": {"name": "vllm", "key": "api-key"},
                    }
                }
            },
        },
    ),
    "collect": Case(
        "grpo",
        {
            "template": {"patches": [{"op": "add", "path": "/metadata/annotations", "value": {"team": "imaging"}}]},
            "stages": [
                {
                    **_TWO_NODES,
                    "nodeSelector": {"pool": "h100"},
                    "patches": [{"op": "replace", "path": "/spec/template/spec/hostIPC", "value": True}],
                }
            ],
        },
        {"collect": True},
        attempt=2,
    ),
    "patches": Case(
        "score",
        {
            "template": {
                "patches": [
                    {"op": "add", "path": "/spec/template/metadata/labels/team", "value": "imaging"},
                    {"op": "add", "path": "/spec/template/spec/priorityClassName", "value": "low"},
                ]
            },
            "stages": [
                {
                    "name": "score",
                    "patches": [
                        {"op": "test", "path": "/spec/template/spec/containers/0/name", "value": "main"},
                        {"op": "replace", "path": "/spec/template/spec/priorityClassName", "value": "high"},
                        {"op": "remove", "path": "/spec/template/spec/containers/0/ports"},
                    ],
                }
            ],
        },
    ),
    "volume-claim-template": Case(
        "prepare",
        {
            "workspace": {
                "volumeClaimTemplate": {
                    "metadata": {"labels": {"backup": "daily"}, "annotations": {"note": "scratch"}, "name": "ignored"},
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "500Gi"}}},
                },
                "subPath": "medgr2/omnimed",
                "retention": {"whenDeleted": "Delete"},
            },
            "template": {
                "affinity": {
                    "podAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": [
                            {"labelSelector": {"matchLabels": {"app": "cache"}}, "topologyKey": "zone"}
                        ]
                    }
                }
            },
        },
        iteration=0,
        single_node=True,
    ),
}
