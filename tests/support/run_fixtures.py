"""`medgr2 run` over fake stages, in a workspace where they keep a ledger of what they did."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.support import fake_run
from tests.support.cycle_documents import tiny_cycle
from tests.support.fork_runner import ForkedProgram

CYCLE = tiny_cycle(
    iterations=2,
    failurePolicy={"maxRetries": 50, "maxInfraRestarts": 200, "backoffSeconds": 0.01, "maxBackoffSeconds": 0.05},
)


class RunProcess(ForkedProgram):
    """A `medgr2 run`."""

    def output(self) -> str:
        return self.out.read_text()


class RunWorkspace:
    """A workspace with a cycle file, and the ledger the fake stages keep."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = 0
        self.file = root / "cycle.yaml"
        self.write(CYCLE)

    def write(self, document: dict[str, Any]) -> None:
        self.file.write_text(yaml.safe_dump(document))

    def start(self, *arguments: str, step: float = 0.01) -> RunProcess:
        command = ["run", str(self.file), "--workspace", str(self.root / "ws"), "--plain", *arguments]
        self.runs += 1
        return RunProcess(
            fake_run.main,
            command,
            environment={**os.environ, "FAKE_STEP_SECONDS": str(step)},
            out=self.root / f"run-{self.runs}.log",
        )

    def run(self, *arguments: str, step: float = 0.002) -> tuple[int, str]:
        process = self.start(*arguments, step=step)
        return process.wait(600), process.output()

    def kill_often(self, seed: int, *arguments: str) -> int:
        """Runs it again and again, each time until a kill -9 at a random moment; how many there were before its end."""
        rng = random.Random(seed)
        for kills in range(30):
            process = self.start(*arguments, step=0.03)  # long enough for several kills on any machine
            try:
                process.wait(timeout=0.2 + rng.random())
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            else:
                return kills
        return 30

    def ledger(self, what: str = "end") -> list[dict[str, Any]]:
        path = self.root / "ws" / "test" / "ledger.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [entry for entry in map(json.loads, lines) if entry["what"] == what]

    def state(self, name: str = "loop") -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.root / "ws" / "cycles" / name / "state.json").read_text())
        return document

    def digests(self, name: str = "loop") -> dict[str, str]:
        return {f"{s['name']}@{s['iteration']}": s["outputDigest"] for s in self.state(name)["status"]["stages"]}

    def logs(self) -> str:
        """What all stages said."""
        return "\n".join(path.read_text() for path in (self.root / "ws" / "cycles").glob("*/logs/*.log"))
