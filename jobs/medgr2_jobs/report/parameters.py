"""With which parameters each stage of a cycle was made, by its manifest: a spec may be edited while its cycle runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from medgr2_api import printable
from medgr2_api.hashing import canonical_json
from medgr2_api.stages import PREPARE, REPORT, definition, stage_names, stage_seed

from .cycle_frame import CycleFrame

_OF_THE_STAGE = ("iteration", "seed")  # differ from one iteration to the next by what they are


@dataclass(frozen=True, slots=True)
class ParameterRow:
    """One parameter of one stage."""

    stage: str
    iteration: int
    parameter: str
    """By its path in the spec; `seed` is the stage's own, which follows from the spec's."""
    value: str
    """Text as it is, anything else as JSON."""


def parameter_rows(frame: CycleFrame) -> list[ParameterRow]:
    """The parameters of every stage whose artifact the report was given."""
    roles = [(PREPARE.name, 0, PREPARE.name)] if frame.artifacts.has_input(PREPARE.name) else []
    others = (name for name in stage_names() if name not in (PREPARE.name, REPORT.name))
    roles += [(name, t, f"{name}-{t}") for name in others for t in frame.iterations(name)]
    rows = []
    for stage, iteration, role in roles:
        places = definition(stage).spec_paths
        for path, value in _leaves(frame.artifacts.input(role).manifest.parameters, ""):
            field, dot, rest = path.partition(".")
            text = value if isinstance(value, str) else canonical_json(value)
            rows.append(ParameterRow(stage, iteration, f"{places.get(field, field)}{dot}{rest}", text))
    return rows


def changed_on_the_way(rows: Sequence[ParameterRow], seed: int | None) -> list[str]:
    """What the loop's iterations were not all made with: one sentence for each parameter, with its values.

    Args:
        rows: of the whole cycle.
        seed: the spec's, when the report was made; None: not known.
    """
    values: dict[tuple[str, str], dict[int, str]] = {}
    others = []
    for row in rows:
        if row.parameter == "seed":
            if seed is not None and row.value != str(stage_seed(seed, row.stage, row.iteration)):
                others.append(f"{row.stage}@{row.iteration}")
        elif row.iteration and row.parameter not in _OF_THE_STAGE:
            values.setdefault((row.stage, row.parameter), {})[row.iteration] = row.value
    notes = [f"`seed`: other than {seed} in {', '.join(others)}"] if others else []
    for (stage, parameter), by_iteration in values.items():
        if len(set(by_iteration.values())) > 1:
            told = ", ".join(
                f"{printable.markdown(value) or 'none'} in {stage}@{t}" for t, value in sorted(by_iteration.items())
            )
            notes.append(f"`{parameter}`: {told}")
    return notes


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The values of a document with their paths; a list is one value."""
    if isinstance(value, dict) and value:
        for key, item in sorted(value.items()):
            yield from _leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path, value
