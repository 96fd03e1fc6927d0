"""The stages of Algorithm 1. Everything that has to know which stages there are asks here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from medgr2_api.hashing import meaning, sha256_of

from .curate import CURATE
from .definition import Of, Source, StageDefinition, StageParameters
from .distill import DISTILL
from .evaluate import EVALUATE, EVALUATE_GRPO
from .generate import GENERATE
from .grpo import GRPO
from .measure import MEASURE
from .preferences import PREFERENCES
from .prepare import PREPARE
from .relabel import RELABEL
from .report import REPORT
from .reward import REWARD
from .score import SCORE
from .sft import SFT

if TYPE_CHECKING:
    from medgr2_api.cycle import ResolvedSpec

__all__ = [
    "CURATE",
    "DISTILL",
    "EVALUATE",
    "EVALUATE_GRPO",
    "GENERATE",
    "GRPO",
    "MEASURE",
    "PREFERENCES",
    "PREPARE",
    "RELABEL",
    "REPORT",
    "REWARD",
    "SCORE",
    "SFT",
    "StageDefinition",
    "StageName",
    "StageParameters",
    "definition",
    "input_hash",
    "listed",
    "register",
    "stage_names",
    "stage_parameters",
    "stage_seed",
]


_STAGES: dict[str, StageDefinition] = {}
_NAME = re.compile(r"[a-z]{1,16}")  # becomes part of the names of Jobs, Services and folders


def register(stage: StageDefinition) -> None:
    """Makes a stage known. What it reads of its own iteration has to be known already.

    Raises:
        ValueError: the name is taken or no name for a stage, or it reads what no known stage makes, or what the last
            iteration does not have.
    """
    if not _NAME.fullmatch(stage.name):
        raise ValueError(f"stage {stage.name!r}: a name has at most 16 letters a-z")
    if stage.name in _STAGES:
        raise ValueError(f"stage {stage.name}: there is one of this name already")
    for read in stage.reads:
        before = read.of in (Of.PREVIOUS, Of.EARLIER, Of.NEWEST)
        unknown = [name for name in read.makers if not before and name not in _STAGES and name != stage.name]
        if unknown:
            raise ValueError(
                f"stage {stage.name} reads {read.role!r} of {', '.join(unknown)}: register that one before"
            )
        late = [name for name in read.makers if name in _STAGES and _STAGES[name].for_next_round]
        if read.of in (Of.SAME, Of.EVERY) and late and not stage.for_next_round:
            raise ValueError(
                f"stage {stage.name} reads {read.role!r} of {', '.join(late)} of its own iteration, which the last one"
                " does not have: read those of earlier iterations, or be for_next_round too"
            )
    _STAGES[stage.name] = stage


def definition(name: str) -> StageDefinition:
    """The definition of a stage. Raises KeyError: there is none of that name."""
    return _STAGES[name]


def stage_names() -> tuple[str, ...]:
    """All stages, in the order of one iteration: makers before readers, what is for the next one last."""
    return tuple(sorted(_STAGES, key=lambda name: _STAGES[name].for_next_round))


def listed(which: Callable[[StageDefinition], bool]) -> str:
    """The stages of which this holds, for a sentence: `sft, grpo and reward`."""
    *most, last = (name for name, stage in _STAGES.items() if which(stage))
    return f"{', '.join(most)} and {last}" if most else last


def _known(name: str) -> str:
    if name not in _STAGES:  # as pydantic says it of an enum
        expected = ", ".join(map(repr, stage_names()))
        raise PydanticCustomError("enum", "Input should be {expected}", {"expected": expected})
    return name


class _Enum:
    """The names in the CRD."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core), "enum": list(_STAGES)}


StageName = Annotated[str, AfterValidator(_known), _Enum()]
"""A registered stage."""


def stage_seed(seed: int, stage: str, iteration: int) -> int:
    """A stage's own seed in [0, 2^31), independent of the other stages'."""
    digest = hashlib.sha256(f"{seed}/{stage}/{iteration}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def stage_parameters(spec: ResolvedSpec, cycle: str, stage: str, iteration: int) -> StageParameters:
    """The parameters of a stage.

    Args:
        spec: the cycle's.
        cycle: `metadata.name`; only the report depends on it.
        stage: which stage.
        iteration: which iteration.

    Raises:
        KeyError: there is no such stage.
    """
    chosen = definition(stage)
    return chosen.build(Source(spec, cycle, iteration, stage_seed(spec.seed, stage, iteration)))


def input_hash(stage: str, parameters: StageParameters, inputs: dict[str, str], token: str = "") -> str:
    """Where a stage publishes: sha256 over code version, what its parameters mean, input digests and restart token.

    Args:
        stage: which stage.
        parameters: its parameters.
        inputs: output digest of each input, by role.
        token: the restartFrom token under which the stage runs; empty at first.

    Returns:
        64 hex digits.
    """
    return sha256_of(
        {
            "stage": stage,
            "code": definition(stage).code_version,
            "parameters": meaning(parameters),
            "inputs": inputs,
            "token": token,
        }
    )


for _stage in (
    *(PREPARE, GENERATE, SCORE, CURATE, SFT, GRPO, RELABEL, PREFERENCES, REWARD, DISTILL),
    *(EVALUATE, EVALUATE_GRPO, MEASURE, REPORT),
):
    register(_stage)
for _entry in entry_points(group="medgr2.stages"):  # other packages' stages
    register(_entry.load())
