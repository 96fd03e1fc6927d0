"""GRPO's completions by a vLLM against transformers: how many a second, and whether the policy learns the same.

python -m bench.rollouts [speed | learning]

speed: a random model of 58 M parameters in Qwen2.5-VL-3B's proportions with adapters of rank 8, 256 tokens an image,
one thread, float32. 64 prompts with an image of its own each, 8 completions of 32 tokens a prompt. The server is
asked for all of them at once, as GRPO asks; transformers generates a group at a time, as GRPO does in its own
process, for the first prompts only, so that it ends in minutes. Completions for each second on the clock and of
processor time. And the exchange of weights: adapters written, loaded and those before them unloaded.

learning: the tiny model after SFT, then GRPO by new adapters on three seeds, each once with either engine: mean reward
(1 where the answer matches) over the first and the last fifth of the steps, and accuracy on the validation questions.

It needs the CPU build (`medgr2 vllm install --build cpu`); a server takes a minute to start.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
import torch
from peft import get_peft_model
from PIL import Image
from tests.support import policy_fixtures, servable
from tests.support.policy_fixtures import DATA, PolicyWorkspace

from bench import _models as models
from medgr2_api.stage_contract import ArtifactRef, StageRequest
from medgr2_api.training_spec import Adapters
from medgr2_jobs.engine.in_process import InProcessSampler
from medgr2_jobs.engine.served_adapters import ServedAdapters
from medgr2_jobs.engine.vllm_engine import ChildServers
from medgr2_jobs.engine.vllm_sampler import VLLMSampler
from medgr2_jobs.models import checkpoint, vlm
from medgr2_jobs.models.checkpoint import Checkpoint
from medgr2_jobs.models.generation import Decoding
from medgr2_jobs.models.tiny import model as tiny_model
from medgr2_jobs.models.vlm import Encoder, PromptResponse
from medgr2_jobs.store.images import ImageStore
from medgr2_jobs.training.trainer import lora_config

PROMPTS, GROUP, TOKENS, EXCHANGES = 64, 8, 32, 5
#: That transformers is asked: the rate is all that counts.
IN_PROCESS = 4
SERVER = ("--max-num-seqs=128", "--max-model-len=1024", "--no-enable-chunked-prefill")
DECODING = Decoding(1.0, 1.0)
SEEDS, STEPS, IMAGES = (1, 2, 3), 12, 64
#: Counters of stage grpo that are compared.
FIGURES = ("reward_first", "reward_last", "match", "grpo_validation_accuracy")
SFT = {"max_steps": 200, "per_device_train_batch_size": 16, "lr_scheduler_type": "cosine", "warmup_steps": 10}


class Clock:
    """Seconds on the clock, and of the processor in some processes."""

    def __init__(self, processes: Callable[[], list[psutil.Process]]) -> None:
        self._processes = processes
        self._begun, self._used = time.monotonic(), self._cpu()

    def _cpu(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes())

    def rates(self, completions: int) -> dict[str, float]:
        """Completions for each second of either."""
        seconds, used = time.monotonic() - self._begun, self._cpu() - self._used
        return {"a second": round(completions / seconds, 2), "a CPU second": round(completions / used, 2)}


def speed(root: Path) -> dict[str, Any]:
    """What the server does in the time that transformers takes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base, store, noise = root / "base", ImageStore(root), np.random.default_rng(0)
    models.build(base, models.MID)
    shown = [
        store.add(Image.fromarray(noise.integers(0, 255, (448, 448, 3), np.uint8)), 10**6).sha256
        for _ in range(PROMPTS)
    ]
    turns = [PromptResponse(sha256, f"Finding {at}? cyst, mass or plaque") for at, sha256 in enumerate(shown)]
    config = lora_config(Adapters(rank=8, alpha=16))
    assert config is not None
    policy = get_peft_model(vlm.load_model(base), config)
    encoder = Encoder(vlm.load_processor(base), store)
    servers = ChildServers(root / "vllm.log", [*SERVER, "--logprobs-mode=processed_logprobs"])
    try:
        served = servers.serving(Checkpoint(base), 8, lambda: None)
        running = servers.running
        assert running is not None

        def server() -> list[psutil.Process]:
            first = psutil.Process(running.pid)
            return [first, *first.children(recursive=True)]

        adapters, exchanged = ServedAdapters(served, root / "adapters", "bench", 1), []
        for _ in range(EXCHANGES):
            begun = time.monotonic()
            newest = adapters.exchange(lambda folder: checkpoint.write_adapter(policy, folder, torch.float32))
            exchanged.append(time.monotonic() - begun)
        there = VLLMSampler(Checkpoint(base), lambda _: newest)
        there.samples(encoder, [(turns[0], 2)], TOKENS, DECODING, 0)  # what is compiled once
        clock = Clock(server)
        there.samples(encoder, [(turn, GROUP) for turn in turns], TOKENS, DECODING, 1)
        found: dict[str, Any] = {"server": clock.rates(PROMPTS * GROUP)}
    finally:
        servers.close()
    here = InProcessSampler(model=policy.eval())
    clock = Clock(lambda: [psutil.Process()])
    for turn in turns[:IN_PROCESS]:
        here.answers(encoder, [turn] * GROUP, max_new_tokens=TOKENS, decoding=DECODING)
    found["transformers"] = clock.rates(IN_PROCESS * GROUP)
    times = {name: round(found["server"][name] / found["transformers"][name], 2) for name in found["server"]}
    return {**found, "times as many": times, "seconds to exchange weights": round(statistics.median(exchanged), 3)}


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
    """The command line."""
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {"speed": speed, "learning": learning}
    for name in sys.argv[1:] or list(parts):
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({name: parts[name](Path(folder))}, indent=1), flush=True)


if __name__ == "__main__":
    main()
