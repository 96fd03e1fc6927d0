"""GRPO's completions by a vLLM against transformers: whether the policy learns the same.

python -m bench.rollouts

The tiny model after SFT, then GRPO by new adapters on three seeds, each once with either engine: mean reward
(1 where the answer matches) over the first and the last fifth of the steps, and accuracy on the validation questions.

It needs the CPU build (`medgr2 vllm install --build cpu`); a server takes a minute to start.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.support import policy_fixtures, servable
from tests.support.policy_fixtures import DATA, PolicyWorkspace

from medgr2_api.stage_contract import ArtifactRef, StageRequest
from medgr2_jobs.models.tiny import model as tiny_model

SERVER = ("--max-num-seqs=128", "--max-model-len=1024", "--max-num-batched-tokens=2048")
SEEDS, STEPS, IMAGES = (1, 2, 3), 12, 64
#: Counters of stage grpo that are compared.
FIGURES = ("reward_first", "reward_last", "match", "grpo_validation_accuracy")
SFT = {"max_steps": 200, "per_device_train_batch_size": 16, "lr_scheduler_type": "cosine", "warmup_steps": 10}


def learning(root: Path) -> dict[str, Any]:
    """What the policy learns from either's completions."""
    with mock.patch.object(tiny_model, "HEADS", servable.HEADS):
        workspace = policy_fixtures.build(root, IMAGES)
    reader = workspace.run(workspace.sft(SFT))
    assert reader is not None
    path = str(reader.folder.relative_to(root))
    workspace.refs["sft"] = ArtifactRef(stage="sft", iteration=1, path=path, output_digest=reader.digest)
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in SEEDS:
        for engine in ({"transformers": {}}, {"vllm": {"args": list(SERVER)}}):
            found = workspace.run(_grpo(workspace, seed, engine))
            assert found is not None
            runs.setdefault(next(iter(engine)), []).append(
                {name: value for name, value in found.manifest.counters.items() if name in FIGURES}
            )
    pairs = list(zip(*runs.values(), strict=True))
    differences = {
        name: [round(theirs[name] - ours[name], 4) for ours, theirs in pairs] for name in FIGURES if name in pairs[0][0]
    }
    return {**runs, "vllm less transformers, by seed": differences}


def _grpo(workspace: PolicyWorkspace, seed: int, engine: dict[str, Any]) -> StageRequest:
    trainer = {"max_steps": STEPS, "per_device_train_batch_size": 16, "max_completion_length": 40}
    request = workspace.grpo(
        trainer, roles=(*DATA, "sft"), name=f"{seed} {engine}", engine=engine, promptsPerStep=16, release="Best",
        rewards=[{"type": "AnswerMatch", "weight": 1.0}], lora={"rank": 8, "alpha": 16}, learningRate=2e-3,
    )  # fmt: skip
    return request.model_copy(update={"parameters": {**request.parameters, "seed": seed}})


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(learning(Path(folder)), indent=1))


if __name__ == "__main__":
    main()
