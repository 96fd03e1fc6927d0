"""Stage report: results.json, report.md, figures, tables and lineage of one cycle so far. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from medgr2_api.stages.report import ReportParameters

from ..errors import ConfigError
from ..report import figures, funnel, markdown
from ..report.lineage import lineage_rows
from ..report.tables import Facts, Row, gather, sets, to_csv, truth_of
from ..runner.context import Outcome, StageContext


def run(ctx: StageContext[ReportParameters]) -> Outcome:
    """Writes the report. All inputs but one evaluation are optional: a table whose stage is off is left out.

    Raises:
        ConfigError: no evaluation among the inputs.
    """
    if not any(ctx.has_input(f"evaluate-{t}") for t in range(ctx.parameters.iteration + 1)):
        raise ConfigError(f"report@{ctx.parameters.iteration}: no evaluation among the inputs")
    facts = gather(ctx)
    ctx.check_stop()
    ctx.writer.path("results.json").write_text(json.dumps(facts.results, indent=0, allow_nan=False) + "\n")
    tables = {
        "accuracy": facts.headline,
        "filter": facts.filters,
        "reward": facts.rewards,
        "grpo": facts.grpo,
        "seen_images": facts.seen,
        "funnel": facts.funnel,
    }
    for name, rows in tables.items():
        if rows:
            ctx.writer.path(f"tables/{name}.csv").write_text(to_csv(rows))
    counters: dict[str, float] = {"results": float(len(facts.results))}
    if facts.funnel:
        ctx.writer.path("funnel.json").write_text(json.dumps(facts.funnel, indent=0) + "\n")
        counters |= funnel.totals(facts.funnel)
    lineage = lineage_rows(ctx, ctx.parameters.iteration)
    if lineage:
        ctx.writer.table("lineage_report", lineage)
    drawn = _draw(ctx, facts)
    ctx.writer.path("report.md").write_text(markdown.report(facts, drawn))
    return Outcome(counters={**counters, "figures": float(len(drawn))})


def _draw(ctx: StageContext[ReportParameters], facts: Facts) -> list[tuple[str, str]]:
    """Draws what there is to draw; returns (file, what it shows) of each figure."""
    drawn: list[tuple[str, str]] = []

    def place(name: str) -> Path:
        return ctx.writer.path(f"figures/{name}.png", digested=False)

    figures.accuracy(facts.headline, place("accuracy"))
    drawn.append(("figures/accuracy.png", "Accuracy of each checkpoint with its controls"))
    for number, (split, benchmark) in enumerate(key for key in sets(facts.results) if key[0] == "test"):
        name = f"modality-{number}"
        if figures.modalities(facts.results, split, benchmark, place(name)):
            drawn.append((f"figures/{name}.png", f"Accuracy by modality, {benchmark}"))
    for row in facts.filters:
        decisions = ctx.input(f"curate-{row['iteration']}").rows("decisions")
        if any(decision["score"] is not None for decision in decisions):
            name = f"scores-{row['iteration']}"
            figures.scores(row["iteration"], decisions, row["threshold"], truth_of(ctx, row["iteration"]), place(name))
            drawn.append((f"figures/{name}.png", f"Scores of the candidates, iteration {row['iteration']}"))
    if facts.funnel:
        figures.funnel(funnel.marginals(facts.funnel), funnel.totals(facts.funnel), place("funnel"))
        drawn.append(("figures/funnel.png", "What became of the candidates, by what was asked"))
    if figures.rewards({row["iteration"]: _log(ctx, row["iteration"]) for row in facts.grpo}, place("grpo")):
        drawn.append(("figures/grpo.png", "Reward during GRPO"))
    return drawn


def _log(ctx: StageContext[ReportParameters], iteration: int) -> Sequence[Row]:
    """The trainer's log of a GRPO run; empty when it was not published."""
    reader = ctx.input(f"grpo-{iteration}")
    found: list[Row] = json.loads(reader.file("log.json").read_text()) if reader.has("log.json") else []
    return found
