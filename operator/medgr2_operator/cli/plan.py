"""`medgr2 plan`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from medgr2_api.cycle import CycleSpec
from medgr2_api.presets import resolve_with_origins

from ..local.state import StateError, StateFile
from ..plan.spec_cache import cached_spec
from ..plan.types import StageKey
from .cycle_file import read_cycle
from .plan_preview import Forecast, forecast

#: Parts of the spec whose values `medgr2 plan` lists; the rest says where and when stages run.
_LEARNING = (
    "answerFormat",
    "curation",
    "data",
    "evaluation",
    "generator",
    "iterations",
    "policy",
    "rewardModel",
    "seed",
)


def show_plan(file: Path, workspace: Path) -> int:
    """Parameters with their origin, then each stage: what it reads, and whether it would run."""
    cycle = read_cycle(file)
    console = Console()
    parameters = Table(title="parameters", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in ("parameter", "value", "from"):
        parameters.add_column(column, overflow="fold")
    for path, value, source in _parameters(cycle.spec):
        parameters.add_row(path, value, source)
    console.print(parameters)

    try:
        stored = StateFile(workspace, cycle.metadata.name).load()
    except StateError as error:
        print(error, file=sys.stderr)
        return 2
    status = stored.status if stored else cycle.status
    graph = cached_spec(cycle.metadata.name, cycle.spec).graph(cycle.spec.iterations)
    stages = Table(title=f"stages ({len(graph.nodes)})", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in ("stage", "reads", "what would happen", "artifact"):
        stages.add_column(column, overflow="fold")
    digests: dict[StageKey, Forecast] = forecast(cycle, status, graph, workspace)
    for node in graph:
        reads = ", ".join(dict.fromkeys(str(item.sources[0]) for item in node.inputs))
        seen = digests[node.key]
        stages.add_row(str(node.key), reads, seen.what, seen.input_hash[:12])
    console.print(stages)
    reused = sum(seen.reused for seen in digests.values())
    console.print(f"{len(graph.nodes) - reused} stages would run, {reused} are already there in {workspace}")
    return 0


def _parameters(spec: CycleSpec) -> Iterator[tuple[str, str, str]]:
    """(path, value, origin) of everything that decides what is learnt, and how."""
    known, origins = resolve_with_origins(spec)
    given = dict(_leaves(spec.model_dump(mode="json", by_alias=True, exclude_unset=True), ""))
    for path, value in _leaves(known.dump(), ""):
        if path.split(".")[0] not in _LEARNING:
            continue
        parts = path.split(".")  # a preset may own a whole object, such as policy.sft.lora
        owners = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        origin = next((origins[owner] for owner in owners if owner in origins), None)
        if origin is None:
            source = "spec" if path in given else "default"
        else:
            source = origin.source if origin.source in ("spec", "derived") else f"preset {origin.source}"
        yield path, str(value), source


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    """The values of a document with their paths; a list is one value."""
    if isinstance(value, dict) and value:
        for key, item in sorted(value.items()):
            yield from _leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path, value
