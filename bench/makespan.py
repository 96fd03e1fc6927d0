"""What running independent stages side by side is worth: the quickstart's loop against the same stages one by one.

    make bench NAME=makespan        # about ten minutes on two cores

Two fresh workspaces, the same cycle and seed, one after the other: once as the graph allows, once with
`maxParallelStages: 1`. Start-up of the forkserver counts in both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

QUICKSTART = Path(__file__).resolve().parents[1] / "examples" / "quickstart.yaml"


def run(root: Path, parallel: int) -> tuple[float, float]:
    """Runs the cycle; returns its wall seconds, and the sum of its stages' own."""
    document: dict[str, Any] = yaml.safe_load(QUICKSTART.read_text())
    document["spec"]["maxParallelStages"] = parallel
    file = root / f"parallel-{parallel}.yaml"
    file.write_text(yaml.safe_dump(document))
    workspace = root / f"ws-{parallel}"
    command = [sys.executable, "-m", "medgr2_operator.cli.app", "run", str(file), "--workspace", str(workspace)]
    started = time.monotonic()
    subprocess.run([*command, "--plain"], check=True, stdout=subprocess.DEVNULL)
    wall = time.monotonic() - started
    links = (workspace / "cycles" / document["metadata"]["name"] / "iterations").glob("*/*/manifest.json")
    return wall, sum(json.loads(path.read_text())["usage"]["wallSeconds"] for path in links)


def main() -> int:
    """Runs both and prints the line of JSON."""
    with tempfile.TemporaryDirectory() as folder:
        graph, stages = run(Path(folder), 4)
        one_by_one, _ = run(Path(folder), 1)
    figures = {
        "graph_seconds": round(graph, 1),
        "one_by_one_seconds": round(one_by_one, 1),
        "one_by_one / graph": round(one_by_one / graph, 3),
        "sum of stage seconds / graph, in the graph's run": round(stages / graph, 3),
    }
    print(json.dumps({"name": "makespan", "figures": figures, "n": 1, "cores": os.cpu_count()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
