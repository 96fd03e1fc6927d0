"""Arms of a benchmark as ordinary cycles: the quickstart with a few fields changed, run by `medgr2 run`."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "examples" / "quickstart.yaml"
BENCHMARK = "phantoms"


class Cycle:
    """One arm's cycle: a copy of the quickstart with a few fields changed; None takes a field out."""

    def __init__(self, workspace: Path, seed: int, arm: str, **changes: Any) -> None:
        document = yaml.safe_load(QUICKSTART.read_text())
        document["metadata"]["name"] = f"{arm}-{seed}"
        document["spec"]["seed"] = seed
        document["spec"]["evaluation"] = {"controls": []}
        merge(document["spec"], changes)
        self.name = document["metadata"]["name"]
        self.workspace = workspace
        self.file = workspace / f"{self.name}.yaml"
        workspace.mkdir(parents=True, exist_ok=True)
        self.file.write_text(yaml.safe_dump(document, sort_keys=False))

    def run(self) -> Cycle:
        """Runs it to its end."""
        command = [sys.executable, "-m", "medgr2_operator.cli.app", "run", str(self.file), "--workspace"]
        done = subprocess.run([*command, str(self.workspace), "--plain"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(
                f"{self.name} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            )
        return self

    def manifest(self, stage: str, iteration: int) -> dict[str, Any]:
        """The manifest of a stage that this cycle used."""
        link = self.workspace / "cycles" / self.name / "iterations" / f"i{iteration:03d}" / stage
        found: dict[str, Any] = json.loads((link / "manifest.json").read_text())
        found["folder"] = str(link.resolve())
        return found

    def part(self, stage: str, iteration: int, name: str) -> Path:
        """Where a published file of a stage lies."""
        found = self.manifest(stage, iteration)
        return Path(found["folder"]) / next(part["path"] for part in found["parts"] if part["name"] == name)

    def seconds(self, stage: str, iteration: int) -> float:
        """CPU seconds that a stage took: on an idle machine wall time, on a busy one what that would have been."""
        return float(self.manifest(stage, iteration)["usage"]["cpuSeconds"])

    def released(self, iteration: int) -> str:
        """The checkpoint that goes on: GRPO's, unless it was skipped or not promoted."""
        return "sft" if self.manifest("grpo", iteration).get("promoted") is False else "grpo"

    def correct(self, iteration: int, checkpoint: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Right or wrong on each benchmark item (option log-probabilities, real image), and the item's image.

        Args:
            iteration: whose evaluation.
            checkpoint: base, sft or grpo; empty: the released one.
        """
        import pyarrow.parquet as pq

        table = pq.read_table(self.part("measure", iteration, "predictions.parquet")).to_pylist()
        wanted = checkpoint or self.released(iteration)
        rows = sorted(
            (row["item_id"], row["correct"], row["image_sha256"])
            for row in table
            if row["checkpoint"] == wanted
            and row["benchmark"] == BENCHMARK
            and row["condition"] == "real"
            and row["scoring"] == "option_logprob"
        )
        return np.array([row[1] for row in rows], dtype=float), np.array([row[2] for row in rows])


def merge(target: dict[str, Any], changes: dict[str, Any]) -> None:
    """Writes changes into a spec, object by object; None takes a field out."""
    for key, value in changes.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            merge(target[key], value)
        else:
            target[key] = copy.deepcopy(value)


def nested(table: dict[str, Any]) -> dict[str, Any]:
    """A preset's table, from paths to values, as the part of a spec that says the same."""
    document: dict[str, Any] = {}
    for path, value in table.items():
        *parents, leaf = path.split(".")
        target = document
        for name in parents:
            target = target.setdefault(name, {})
        target[leaf] = copy.deepcopy(value)
    return document
