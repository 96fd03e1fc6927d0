"""`medgr2 plan`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medgr2_api import gpu_use
from medgr2_api.cycle import Cycle, CycleSpec
from medgr2_api.presets import resolve_with_origins
from medgr2_api.stage_contract import ExitCode

from ..local.state import StateFile
from ..plan.spec_cache import cached_spec
from ..plan.types import StageKey
from .cycle_file import read_cycle
from .plan_preview import Forecast, forecast
from .status_view import print_table

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


def show_plan(file: Path, workspace: Path, as_json: bool) -> int:
    """Parameters with their origin, then each stage: what it reads, and whether it would run."""
    cycle = read_cycle(file)
    stored = StateFile(workspace, cycle.metadata.name).load()
    status = stored.status if stored else cycle.status
    graph = cached_spec(cycle.metadata.name, cycle.spec).graph(cycle.spec.iterations)
    stages = forecast(cycle, status, graph, workspace)
    if as_json:
        print(json.dumps(_document(cycle, stages, workspace), indent=1, ensure_ascii=False))
        return ExitCode.OK
    rows = [(path, _text(value), source) for path, value, source in _parameters(cycle.spec)]
    print("parameters")
    print_table([("parameter", "value", "from"), *rows])
    print(f"\nstages ({len(stages)})")
    print_table([("stage", "artifact", "what would happen"), *_stage_rows(stages)])
    reused = sum(seen.reused for seen in stages.values())
    if remarks := list(gpu_use.remarks(cycle.spec)):
        print("\nGPUs", *remarks, sep="\n  ")
    print(f"\n{len(stages) - reused} stages would run, {reused} are already there in {workspace}")
    return ExitCode.OK


def _document(cycle: Cycle, stages: Mapping[StageKey, Forecast], workspace: Path) -> dict[str, Any]:
    """As JSON."""
    return {
        "cycle": cycle.metadata.name,
        "workspace": str(workspace),
        "parameters": [
            {"parameter": path, "value": value, "from": source} for path, value, source in _parameters(cycle.spec)
        ],
        "gpus": list(gpu_use.remarks(cycle.spec)),
        "stages": [
            {
                "stage": key.name,
                "iteration": key.iteration,
                "reads": [str(read) for read in seen.reads],
                "inputHash": seen.input_hash or None,
                "outputDigest": seen.output_digest or None,
                "runs": not seen.reused,
                "why": seen.what,
            }
            for key, seen in stages.items()
        ],
    }


def _stage_rows(stages: Mapping[StageKey, Forecast]) -> Iterator[tuple[str, ...]]:
    for key, seen in stages.items():
        yield str(key), seen.input_hash[:12], seen.what
        if seen.reads:
            yield "", "", f"  reads {', '.join(map(str, seen.reads))}"


def _parameters(spec: CycleSpec) -> Iterator[tuple[str, object, str]]:
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
        yield path, value, source


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    """The values of a document with their paths; a list is one value."""
    if isinstance(value, dict) and value:
        for key, item in sorted(value.items()):
            yield from _leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path, value
