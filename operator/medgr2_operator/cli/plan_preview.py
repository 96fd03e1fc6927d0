"""What a run would do in a workspace: input hashes chained through the manifests that are already there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medgr2_api import paths
from medgr2_api.cycle import Cycle
from medgr2_api.hashing import combined_digest
from medgr2_api.model import EARLIER
from medgr2_api.stages import StageParameters, definition, input_hash
from medgr2_api.status import AttemptState, CycleStatus, StageStatus

from ..plan.graph import Graph, Input, Node
from ..plan.parameter_changes import parameter_changes, shown
from ..plan.spec_cache import cached_spec
from ..plan.spec_edits import edits_of
from ..plan.types import StageKey

_NEEDED = {"stage", "codeVersion", "cycle", "iteration", "parameters", "inputs", "outputDigest"}


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
    reads: tuple[StageKey, ...] = ()

    @property
    def reused(self) -> bool:
        return bool(self.output_digest)


def forecast(cycle: Cycle, status: CycleStatus, graph: Graph, workspace: Path) -> dict[StageKey, Forecast]:
    """What would happen to each stage, in the graph's order."""
    records = {StageKey(record.iteration, record.name): record for record in status.stages}
    edits = edits_of(cycle.model_copy(update={"status": status}))
    forecasts: dict[StageKey, Forecast] = {}
    for node in graph:
        seen = _look_up(cycle, node, records.get(node.key), forecasts, workspace)
        if seen.reused and (why := edits.why.get(node.key)):  # as `medgr2 run` and `status` say it
            root = next(key for key in edits.restart if node.key in graph.reach(key))
            seen = replace(seen, what=f"{why}; --restart-from {root} applies it")
        chosen = (_chosen(item, forecasts) for item in node.inputs)
        forecasts[node.key] = replace(seen, reads=tuple(dict.fromkeys(source for source in chosen if source)))
    return forecasts


def _chosen(item: Input, forecasts: dict[StageKey, Forecast]) -> StageKey | None:
    """Whose artifact is read, as far as is known: what has not run is expected to be promoted."""
    return item.chosen(lambda source: forecasts[source].promoted is not False)


def _look_up(
    cycle: Cycle, node: Node, record: StageStatus | None, forecasts: dict[StageKey, Forecast], workspace: Path
) -> Forecast:
    done = record if record is not None and record.state is AttemptState.SUCCEEDED else None
    inputs: dict[str, str] = {}
    for item in node.inputs:
        chosen = _chosen(item, forecasts)
        if chosen is not None and forecasts[chosen].reused:
            inputs[item.role] = forecasts[chosen].output_digest
        elif done is None and chosen is not None:
            return Forecast(f"runs: its input {item.role} ({chosen}) is not there yet")
    known, (iteration, name) = cached_spec(cycle.metadata.name, cycle.spec), node.key
    parameters, token = known.parameters(name, iteration), record.token if record is not None else ""
    now = input_hash(name, parameters, inputs, token)
    linked = _manifests(workspace / paths.iteration_link(cycle.metadata.name, iteration, name))
    why = "; ".join(_differences(linked[0], parameters, inputs)) if linked else ""
    if done is not None:
        what = "done in this cycle"
        if why and done.input_hash != now:
            what = f"done with other parameters: {why}; --restart-from {node.key} applies it"
        return Forecast(what, done.input_hash, done.output_digest, done.promoted)
    if record is not None and record.input_hash and record.asked == known.asked:
        now = record.input_hash  # work that was begun goes on where it lies
    manifests = _manifests(workspace / paths.artifact(name, now))
    if len(manifests) < max(1, cycle.spec.stage(name).shards):
        if token:
            return Forecast(f"runs: restarted (token {token})", now)
        return Forecast(
            f"runs again: {why}" if why else "runs: nothing with these parameters and inputs is in the workspace", now
        )
    first = manifests[0]
    return Forecast(
        f"reused: made by {first['cycle']}, iteration {first['iteration']}",
        now,
        combined_digest([str(manifest["outputDigest"]) for manifest in manifests]),
        first.get("promoted"),
    )


def _manifests(folder: Path) -> list[dict[str, Any]]:
    """The manifest of an artifact, or those of its shards in order; what cannot be read is not there."""
    shards = sorted(folder.glob("shard-*"))
    found = []
    for path in shards or [folder]:
        try:
            document = json.loads((path / paths.MANIFEST).read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(document, dict) and document.keys() >= _NEEDED:
            found.append(document)
    return found


def _differences(made: dict[str, Any], parameters: StageParameters, inputs: dict[str, str]) -> Iterator[str]:
    """Why an artifact is not what its stage would make now, by field of the spec: `policy.sft.numEpochs: 1 → 2`."""
    stage = definition(made["stage"])
    if made["codeVersion"] != stage.code_version:
        yield f"the stage's code: version {made['codeVersion']} → {stage.code_version}"
    try:  # the model fills in what is newer than the artifact
        before = stage.parameters.model_validate(made["parameters"], context=EARLIER)
    except ValidationError:
        before = made["parameters"]
    yield from parameter_changes(made["stage"], before, parameters)
    for role in sorted({*made["inputs"], *inputs}):
        old, new = made["inputs"].get(role), inputs.get(role)
        if old != new:
            yield f"input {role}: {shown(old and old[:12])} → {shown(new and new[:12])}"
