"""A whole real cycle, small enough for a test: every stage through the real libraries, a few steps each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from tests.support.cycle_documents import tiny_cycle

_STEPS = {"per_device_train_batch_size": 8, "save_steps": 2}

CYCLE = tiny_cycle(
    iterations=2,
    data={
        "sources": [
            {"name": "seed", "format": "Phantom", "phantom": {"images": 16}},
            {"name": "pool", "format": "Phantom", "role": "Images", "phantom": {"images": 16}},
        ],
        "split": {"validationFraction": 0.5},
        "benchmarks": [{"name": "phantoms", "format": "Phantom", "phantom": {"images": 8}}],
    },
    generator={"scripted": {}, "candidates": 48, "questionsPerImage": 3},
    curation={"selection": {"strategy": "TopK", "k": 24}},
    rewardModel={
        "baseModel": "builtin://tiny-qwen2.5-vl?captions=answers&steps=12&images=32",
        "training": {"trainer": {"max_steps": 8, **_STEPS}, "retrainTrainer": {"max_steps": 4}},
    },
    policy={
        "baseModel": "builtin://tiny-qwen2.5-vl?steps=12&images=32",
        "sft": {"trainer": {"max_steps": 8, **_STEPS}},
        "grpo": {
            "numGenerations": 4,
            "trainer": {"max_steps": 4, "per_device_train_batch_size": 16, "save_steps": 1},
        },
        "preferences": {"prompts": 16, "samplesPerPrompt": 2},
    },
    failurePolicy={"maxRetries": 20, "backoffSeconds": 0.05, "maxBackoffSeconds": 0.1},
    stages=[{"name": "generate", "shards": 2}, {"name": "score", "shards": 2}],
)


class Loop:
    """A workspace with the small cycle in it."""

    def __init__(self, root: Path, document: dict[str, Any] | None = None) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.workspace = root / "ws"
        self.file = root / "cycle.yaml"
        self.write(document or CYCLE)

    def write(self, document: dict[str, Any]) -> None:
        """The cycle to run next."""
        self.name = document["metadata"]["name"]
        self.file.write_text(yaml.safe_dump(document))

    def command(self, *arguments: str) -> str:
        """What another command says of the workspace."""
        command = [sys.executable, "-m", "medgr2_operator.cli.app", *arguments, "--workspace", str(self.workspace)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts `medgr2 run`."""
        command = [sys.executable, "-m", "medgr2_operator.cli.app", "run", str(self.file), "--plain"]
        return subprocess.Popen(
            [*command, "--workspace", str(self.workspace), *arguments],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        """Runs it to its end."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=1800)
        return process.returncode, output

    def status(self) -> dict[str, Any]:
        """The stored status."""
        path = self.workspace / "cycles" / self.name / "state.json"
        status: dict[str, Any] = json.loads(path.read_text())["status"]
        return status

    def digests(self) -> dict[str, str]:
        """Output digest of every stage."""
        return {f"{s['name']}@{s['iteration']}": s["outputDigest"] for s in self.status()["stages"]}


def running_stages(run: int) -> list[tuple[int, str, float]]:
    """(pid, stage, age in seconds) of the stages below a run: children of its forkserver, named by their log."""
    stages = []
    for forkserver in _children(run):
        for pid in _children(forkserver):
            try:
                log = Path(os.readlink(f"/proc/{pid}/fd/1")).stem
                started = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
            except (OSError, IndexError):
                continue
            age = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
            iteration, name = log.split("-")[:2] if log.startswith("i0") else ("", "")
            if name:
                stages.append((pid, f"{name}@{int(iteration[1:])}", age))
    return stages


def _children(pid: int) -> list[int]:
    children = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += [int(word) for word in task.read_text().split()]
        except OSError:
            continue
    return children
