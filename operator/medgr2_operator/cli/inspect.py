"""`medgr2 validate`, `medgr2 plan` and `medgr2 compare`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from medgr2_api import workspace as names
from medgr2_api.presets import resolve_with_origins
from rich.console import Console
from rich.table import Table

from ..local.state import StateError, StateFile
from ..plan.resolved import resolved
from ..plan.model import StageKey
from .loading import load
from .reuse import Forecast, forecast


def validate_file(file: Path) -> int:
    """Says whether the cycle is sound; `load` ends the command with the problems when it is not."""
    cycle = load(file)
    print(f"{file}: {cycle.metadata.name} is valid")
    return 0


def show_plan(file: Path, workspace: Path) -> int:
    """Parameters with their origin, then each stage: what it reads, and whether it would run."""
    cycle = load(file)
    console = Console()
    _, origins = resolve_with_origins(cycle.spec)
    parameters = Table(title="parameters", title_justify="left", title_style="bold")
    for column in ("parameter", "value", "from"):
        parameters.add_column(column, overflow="fold")
    for path, origin in sorted(origins.items()):
        parameters.add_row(path, str(origin.value), "spec" if origin.source == "spec" else f"preset {origin.source}")
    console.print(parameters)

    try:
        stored = StateFile(workspace, cycle.metadata.name).load()
    except StateError as error:
        print(error, file=sys.stderr)
        return 2
    status = stored.status if stored else cycle.status
    graph = resolved(cycle.metadata.name, cycle.spec).graph(cycle.spec.iterations)
    stages = Table(title=f"stages ({len(graph.nodes)})", title_justify="left", title_style="bold")
    for column in ("stage", "reads", "what would happen", "artifact"):
        stages.add_column(column, overflow="fold")
    digests: dict[StageKey, Forecast] = forecast(cycle, status, graph, workspace)
    for node in graph:
        reads = ", ".join(f"{item.role}: {item.sources[0]}" for item in node.inputs)
        seen = digests[node.key]
        stages.add_row(str(node.key), reads, seen.what, seen.input_hash[:12])
    console.print(stages)
    reused = sum(seen.reused for seen in digests.values())
    console.print(f"{len(graph.nodes) - reused} stages would run, {reused} are already there in {workspace}")
    return 0


def compare_cycles(cycles: list[str], workspace: Path, as_json: bool) -> int:
    """The table is the jobs' business (it reads parquet): a process of its own makes it."""
    missing = [name for name in cycles if not (workspace / names.report(name)).exists()]
    if missing:
        known = sorted(path.parent.name for path in workspace.glob("cycles/*/report"))
        print(
            f"no report of {', '.join(missing)} in {workspace}; finished cycles there: {', '.join(known) or 'none'}",
            file=sys.stderr,
        )
        return 2
    command = [sys.executable, "-m", "medgr2_jobs.report.compare", str(workspace), *cycles]
    return subprocess.run([*command, "--json"] if as_json else command, check=False).returncode
