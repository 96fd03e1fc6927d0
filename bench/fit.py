"""What `medgr2 plan --fit` predicts against what stages take: memory of reward, SFT and GRPO, and disk.

    make bench NAME=fit             # some minutes on two idle cores

A random model of 58 M parameters in Qwen2.5-VL-3B's proportions, 64 tokens a picture, float32 on the CPU; two cycles
by `medgr2 run`, one that trains all weights and one that trains adapters of rank 16, a few steps each. Measured is the
most memory that each stage's process held (`peakMemoryBytes` of its result), libraries included, and the most that lay
in the workspace (files counted once, looked at every half second). Predicted is what the formulas say of the same
shape, batch and lengths. Goals: memory within 20 %, disk within 10 %.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from bench import _models as models
from medgr2_api.fit import model_files
from medgr2_api.fit.assumptions import Assumptions
from medgr2_api.fit.counts import data_of
from medgr2_api.fit.cycle import CycleFit, fit
from medgr2_api.fit.disk import BaseFiles
from medgr2_api.fit.result import Hardware, ModelShapes
from medgr2_api.presets import resolve
from medgr2_api.yaml_loader import load_cycle

IMAGE_TOKENS, ROWS, GROUP, COMPLETION, STEPS, RANK = 64, 4, 4, 24, 3, 16
ARMS = {"all weights": 0, "adapters": RANK}
MEMORY_GOAL, DISK_GOAL = 0.20, 0.10


def cycle(root: Path, name: str, rank: int) -> Path:
    """The file of a cycle that trains three stages for a few steps."""
    trainer: dict[str, Any] = {
        "per_device_train_batch_size": ROWS,
        "max_steps": STEPS,
        "warmup_steps": 0,
        "save_steps": 1,
    }
    lora = {"rank": rank}
    grpo = {**trainer, "per_device_train_batch_size": 2 * GROUP, "max_completion_length": COMPLETION}
    phantoms = {"format": "Phantom"}
    spec = {
        "preset": "Tiny",
        "iterations": 1,
        "workspace": {"persistentVolumeClaim": {"claimName": "bench"}},
        "data": {
            "sources": [
                {"name": "seed", **phantoms, "phantom": {"images": 8, "questionsPerImage": 2}},
                {"name": "pool", **phantoms, "role": "Images", "phantom": {"images": 4, "questionsPerImage": 0}},
            ],
            "split": {"validationFraction": 0.25},
        },
        "generator": {"scripted": {}, "candidates": 12},
        "rewardModel": {
            "baseModel": "models/mid",
            "mismatchesPerItem": 1,
            "training": {"lora": lora, "trainer": trainer},
        },
        "curation": {"selection": {"strategy": "All"}, "correct": False},
        "policy": {
            "baseModel": "models/mid",
            "release": "Last",
            "sft": {"lora": lora, "trainer": trainer},
            "grpo": {
                "lora": lora,
                "numGenerations": GROUP,
                "klCoefficient": 0.04,
                "whenPolicyBeatsReward": "Train",
                "trainer": grpo,
            },
        },
        "evaluation": {"controls": []},
    }
    document = {"apiVersion": "medgr2.io/v1alpha1", "kind": "MedGR2Cycle", "metadata": {"name": name}, "spec": spec}
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


class DiskWatch(threading.Thread):
    """The most bytes that lay below a folder."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True)
        self.root, self.most, self.ended = root, 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.5):
            self.most = max(self.most, used(self.root))


def used(root: Path) -> int:
    """Bytes of the files below a folder, those with several names once."""
    sizes: dict[int, int] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                status = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:  # a checkpoint that was taken away meanwhile
                continue
            sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


def manifest(root: Path, name: str, iteration: int, stage: str) -> tuple[dict[str, Any], Path]:
    """Of a stage's artifact, and the artifact's folder."""
    folder = (root / f"cycles/{name}/iterations/i{iteration:03d}/{stage}").resolve()
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found, folder


def tokens_a_row(root: Path, name: str, stage: str, rows: int) -> float:
    """Mean tokens of a row, the picture's included, by the trainer's own count of a step."""
    found, folder = manifest(root, name, 1, stage)
    log = json.loads((folder / next(part["path"] for part in found["parts"] if part["name"] == "log.json")).read_text())
    counts = [entry["num_tokens"] for entry in log if "num_tokens" in entry]
    return float(counts[-1]) / (len(counts) * rows)


def predicted(file: Path, root: Path, prompt: float) -> CycleFit:
    """What the formulas say, for prompts of this many tokens beside the picture's."""
    spec = resolve(load_cycle(file).spec)
    files = model_files.read(root / "models/mid")
    known = Assumptions()
    known = replace(
        known,
        prompt_tokens=replace(known.prompt_tokens, value=prompt),
        answer_tokens=replace(known.answer_tokens, value=0.0),
        kept=replace(known.kept, value=1.0),
    )
    shapes = ModelShapes(files.shape, files.shape)
    return fit(spec, shapes, data_of(spec), Hardware(), known=known, files=BaseFiles(files.bytes, files.bytes))


def main() -> None:
    figures: dict[str, float] = {}
    missed = 0
    for arm, rank in ARMS.items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            shape = {**models.MID, "image_tokens": IMAGE_TOKENS, "least_image_tokens": IMAGE_TOKENS}
            models.build(root / "models/mid", shape)
            name = arm.replace(" ", "-")
            file, watch = cycle(root, name, rank), DiskWatch(root)
            watch.start()
            command = [sys.executable, "-m", "medgr2_operator.cli.app", "run", str(file), "--workspace", str(root)]
            done = subprocess.run(
                [*command, "--plain", "--parallelism", "1"], capture_output=True, text=True, check=False
            )
            watch.ended.set()
            watch.join()
            if done.returncode:
                raise RuntimeError(
                    f"{arm}: ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
                )
            learnt = tokens_a_row(root, name, "sft", ROWS) - IMAGE_TOKENS
            sampled = tokens_a_row(root, name, "grpo", 2 * GROUP) - IMAGE_TOKENS - COMPLETION
            print(f"{arm}: {learnt:.0f} tokens a row beside the picture's in SFT, {sampled:.0f} in GRPO's prompts")
            rows = []
            for stage, iteration, prompt in (("reward", 0, learnt), ("sft", 1, learnt), ("grpo", 1, sampled)):
                need = next(found.need for found in predicted(file, root, prompt).stages if found.name == stage)
                measured = manifest(root, name, iteration, stage)[0]["usage"]["peakMemoryBytes"]
                rows.append((f"{stage}, memory", need.total, measured, MEMORY_GOAL))
            disk = predicted(file, root, learnt).disk
            lasting = disk.total - next(part.bytes for part in disk.parts if part.name == "checkpoints")
            rows += [
                ("disk, at most", disk.total, watch.most, DISK_GOAL),
                ("disk, at the end", lasting, used(root), DISK_GOAL),
            ]
        for what, told, measured, goal in rows:
            ratio = told / measured
            missed += abs(ratio - 1) > goal
            print(
                f"{arm}, {what}: predicted {told / 2**20:,.0f} MiB, measured {measured / 2**20:,.0f}: {ratio:.2f}"
                f"{'' if abs(ratio - 1) <= goal else f', more than {goal:.0%} off'}"
            )
            figures[f"{arm}, {what}, predicted / measured"] = round(ratio, 3)
    print(f"{missed} of {len(figures)} outside of the goal")
    print(json.dumps({"name": "fit", "figures": figures, "n": 1, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
