"""What a run would do in a workspace: input hashes chained through the manifests that are already there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from medgr2_api import paths as names
from medgr2_api.cycle import Cycle
from medgr2_api.hashing import combined_digest
from medgr2_api.status import AttemptState, CycleStatus

from ..plan.graph import Graph, Node
from ..plan.spec_cache import resolved
from ..plan.types import StageKey


@dataclass(frozen=True)
class Forecast:
    """One stage's future."""

    what: str
    """For people: would run and why, or reused."""
    input_hash: str = ""
    """Known once all inputs are."""
    output_digest: str = ""
    """Known when the artifact is there."""
    promoted: bool | None = None

    @property
    def reused(self) -> bool:
        return bool(self.output_digest)


def forecast(cycle: Cycle, status: CycleStatus, graph: Graph, workspace: Path) -> dict[StageKey, Forecast]:
    """What would happen to each stage, in the graph's order."""
    finished = {
        StageKey(stage.iteration, stage.name): stage for stage in status.stages if stage.state is AttemptState.SUCCEEDED
    }
    seen: dict[StageKey, Forecast] = {}
    for node in graph:
        stage = finished.get(node.key)
        if stage is not None:
            seen[node.key] = Forecast("done in this cycle", stage.input_hash, stage.output_digest, stage.promoted)
        else:
            seen[node.key] = _look_up(cycle, node, seen, workspace)
    return seen


def _look_up(cycle: Cycle, node: Node, seen: dict[StageKey, Forecast], workspace: Path) -> Forecast:
    inputs: dict[str, str] = {}
    for item in node.inputs:
        effective = next((seen[source] for source in item.sources if seen[source].promoted is not False), None)
        if effective is None or not effective.reused:
            return Forecast(f"runs: its input {item.role} ({item.sources[0]}) is not there yet")
        inputs[item.role] = effective.output_digest
    input_hash = resolved(cycle.metadata.name, cycle.spec).input_hash(node.key.name, node.key.iteration, inputs, "")
    folder = workspace / names.artifact(node.key.name, input_hash)
    manifests = _manifests(folder, max(1, cycle.spec.stage(node.key.name).shards))
    if not manifests:
        return Forecast("runs: nothing with these parameters and inputs is in the workspace", input_hash)
    first = manifests[0]
    maker = f"{first['cycle']}, iteration {first['iteration']}"
    return Forecast(
        f"reused: made by {maker}",
        input_hash,
        combined_digest([str(manifest["outputDigest"]) for manifest in manifests]),
        first.get("promoted"),  # type: ignore[arg-type]
    )


def _manifests(folder: Path, shards: int) -> list[dict[str, object]]:
    """The manifests of all shards; empty unless all are there."""
    folders = [folder] if shards == 1 else [folder / names.shard(index) for index in range(shards)]
    found = []
    for path in folders:
        try:
            found.append(json.loads((path / names.MANIFEST).read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            return []
    return found
