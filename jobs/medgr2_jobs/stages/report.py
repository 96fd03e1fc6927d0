"""Stage report: results.json, report.md, figures and tables of one cycle so far. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medgr2_api.stages.report import ReportParameters

from ..errors import ConfigError
from ..report import figures, funnel, markdown
from ..report.cycle_frame import CycleFrame
from ..report.tables import CycleTables, gather, sets, to_csv, to_json
from ..runner.context import StageContext, StageOutcome
from ..store.rows import Split

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def run(ctx: StageContext[ReportParameters]) -> StageOutcome:
    """Writes the report. All inputs but one evaluation are optional: a table whose stage is off is left out.

    Raises:
        ConfigError: no evaluation among the inputs.
    """
    frame = CycleFrame(ctx, ctx.parameters.iteration)
    if not frame.iterations("measure"):
        raise ConfigError(f"report@{ctx.parameters.iteration}: no evaluation among the inputs")
    cycle = gather(frame, ctx.parameters.cycle, ctx.parameters.settings)
    ctx.check_stop()
    ctx.writer.path("results.json").write_text(to_json(cycle.results, cycle=cycle.cycle))
    tables: dict[str, Sequence[DataclassInstance]] = {
        "accuracy": cycle.headline,
        "filter": cycle.filters,
        "reward": cycle.rewards,
        "grpo": cycle.grpo,
        "releases": cycle.releases,
        "corrections": cycle.corrections,
        "seen_images": cycle.seen,
        "funnel": cycle.funnel,
        "parameters": cycle.parameters,
        "quarantine": cycle.quarantine,
        "students": cycle.students.probe,
        "generators": cycle.students.generators,
        "taught": cycle.students.taught,
    }
    for name, rows in tables.items():
        if rows:
            ctx.writer.path(f"tables/{name}.csv").write_text(to_csv(rows))
    counters: dict[str, float] = {"results": float(len(cycle.results))}
    if cycle.funnel:
        ctx.writer.path("funnel.json").write_text(to_json(cycle.funnel))
        counters |= funnel.totals(cycle.funnel)
    told: dict[str, Sequence[DataclassInstance]] = {
        "releases": cycle.releases, "corrections": cycle.corrections, "students": cycle.students.probe,
    }  # fmt: skip
    for name, rows in told.items():
        if rows:
            ctx.writer.path(f"{name}.json").write_text(to_json(rows))
    figures = _draw(ctx, frame, cycle)
    ctx.writer.path("report.md").write_text(markdown.report(cycle, figures))
    return StageOutcome(counters={**counters, "figures": float(len(figures))})


def _draw(ctx: StageContext[ReportParameters], frame: CycleFrame, cycle: CycleTables) -> list[tuple[str, str]]:
    """Draws what there is to draw; returns (file, what it shows) of each figure."""
    files: list[tuple[str, str]] = []

    def place(name: str) -> Path:
        return ctx.writer.path(f"figures/{name}.png", digested=False)

    figures.accuracy(cycle.headline, place("accuracy"))
    files.append(("figures/accuracy.png", "Accuracy of each checkpoint with its controls"))
    tests = [questions for questions in sets(cycle.results) if questions.split is Split.TEST]
    for number, (split, benchmark) in enumerate(tests):
        name = f"modality-{number}"
        if figures.modalities(cycle.results, split, benchmark, place(name)):
            files.append((f"figures/{name}.png", f"Accuracy by modality, {benchmark}"))
    for row in cycle.filters:
        scores = frame.scores(row.iteration)
        if scores:
            name = f"scores-{row.iteration}"
            kept = {decision.triplet_id for decision in frame.decisions(row.iteration) if decision.keep}
            figures.scores(row.iteration, scores, kept, row.threshold, frame.truth(row.iteration), place(name))
            files.append((f"figures/{name}.png", f"Scores of the candidates, iteration {row.iteration}"))
    if cycle.funnel:
        figures.funnel(funnel.marginals(cycle.funnel), funnel.totals(cycle.funnel), place("funnel"))
        files.append(("figures/funnel.png", "What became of the candidates, by what was asked"))
    if figures.rewards({row.iteration: frame.reward_curve(row.iteration) for row in cycle.grpo}, place("grpo")):
        files.append(("figures/grpo.png", "Reward during GRPO"))
    return files
