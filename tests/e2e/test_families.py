"""A whole iteration of the loop with models that are not of Qwen's families."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import family_fixtures
from tests.support.cycle_documents import tiny_cycle
from tests.support.loop_fixtures import Loop

_FEW = {"max_steps": 2, "per_device_train_batch_size": 4}


@pytest.mark.parametrize("family", ["gemma3", "idefics3", "smolvlm"])
def test_a_whole_iteration(family: str, tmp_path: Path) -> None:
    phantom = {"format": "Phantom", "phantom": {"images": 6, "questionsPerImage": 2}}
    document = tiny_cycle(
        data={
            "sources": [{"name": "seed", **phantom}, {"name": "pool", "role": "Images", **phantom}],
            "split": {"validationFraction": 0.34},
            "benchmarks": [{"name": "phantoms", "format": "Phantom", "phantom": {"images": 2}}],
        },
        generator={"scripted": {}, "candidates": 12, "questionsPerImage": 2},
        curation={"selection": {"strategy": "TopK", "k": 6}},
        evaluation={"controls": ["BlankImage"]},
        rewardModel={"baseModel": f"models/{family}", "training": {"trainer": _FEW}},
        policy={
            "baseModel": f"models/{family}",
            "sft": {"trainer": _FEW},
            "grpo": {
                "whenPolicyBeatsReward": "Train",
                "numGenerations": 4,
                "trainer": {"max_steps": 1, "per_device_train_batch_size": 4, "max_completion_length": 16},
            },
        },
    )
    loop = Loop(tmp_path, document)
    family_fixtures.write(family, loop.workspace / "models" / family)
    code, output = loop.run()
    assert code == 0, output
    done = loop.digests()
    assert {"reward@0", "evaluate@0", "score@1", "curate@1", "sft@1", "grpo@1", "evaluate@1", "evaluategrpo@1"} <= set(
        done
    )
    assert all(done.values())
