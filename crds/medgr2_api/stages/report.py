"""Stage report: tables and figures of the cycle so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgr2_api.data import Benchmark, Data, DataSource, OptionSpelling
from medgr2_api.types import FreeForm

from .definition import Iterations, Of, Read, Source, StageDefinition, StageParameters

if TYPE_CHECKING:
    pass


class ReportParameters(StageParameters):
    """Tables and figures of one cycle."""

    cycle: str
    """Name of the cycle."""
    iteration: int
    """Newest iteration in the report."""
    settings: FreeForm
    """The resolved spec's headline choices, for the report's table."""


def _build(source: Source) -> ReportParameters:
    return ReportParameters(
        seed=source.seed,
        cycle=source.cycle,
        iteration=source.iteration,
        settings={"preset": str(source.spec.preset), "seed": source.spec.seed} | _spelling(source.spec.data),
    )


def _spelling(data: Data) -> dict[str, str]:
    """Whose options are not as their authors wrote them."""
    inputs: list[DataSource | Benchmark] = [*data.sources, *data.benchmarks]
    changed = [one.name for one in inputs if one.option_spelling is OptionSpelling.UNIFORM]
    return {"options spelled uniformly": f"in {' and '.join(changed)}"} if changed else {}


_TOLD = ("measure", "evaluate", "evaluategrpo", "generate", "curate", "score", "sft", "grpo")
_FOR_NEXT_ROUND = ("relabel", "reward", "preferences", "distill")

REPORT = StageDefinition(
    name="report",
    sentence="Makes tables and figures of the cycle so far.",
    parameters=ReportParameters,
    build=_build,
    iterations=Iterations.LOOP,
    reads=(
        Read("prepare", "prepare", Of.FIRST, required=False),
        *(Read(name, name, Of.EVERY, required=False) for name in _TOLD),
        *(Read(name, name, Of.EARLIER, required=False) for name in _FOR_NEXT_ROUND),
    ),
    publishes=("results.json", "report.md", "figures/"),
    may_publish=("tables/", "funnel.json", "releases.json", "corrections.json", "students.json"),
    code_version=8,  # says what became of the training data when its questions were asked again
)
