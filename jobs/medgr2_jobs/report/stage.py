"""Stage report: results.json, report.md, figures, tables and lineage of one cycle so far. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medgr2_api.cycle import AnswerFormat
from medgr2_api.parameters import ReportParameters

from .. import answers
from ..context import Outcome, StageContext
from ..errors import ConfigError
from . import figures, text
from .tables import Facts, Row, gather, sets, to_csv, truth_of


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
    }
    for name, rows in tables.items():
        if rows:
            ctx.writer.path(f"tables/{name}.csv").write_text(to_csv(rows))
    lineage = lineage_rows(ctx)
    if lineage:
        ctx.writer.table("lineage_report", lineage)
    drawn = _draw(ctx, facts)
    ctx.writer.path("report.md").write_text(text.report(facts, drawn))
    return Outcome(counters={"results": float(len(facts.results)), "figures": float(len(drawn))})


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
    if figures.rewards({row["iteration"]: _log(ctx, row["iteration"]) for row in facts.grpo}, place("grpo")):
        drawn.append(("figures/grpo.png", "Reward during GRPO"))
    return drawn


def _log(ctx: StageContext[ReportParameters], iteration: int) -> Sequence[Row]:
    """The trainer's log of a GRPO run; empty when it was not published."""
    reader = ctx.input(f"grpo-{iteration}")
    found: list[Row] = json.loads(reader.file("log.json").read_text()) if reader.has("log.json") else []
    return found


def lineage_rows(ctx: StageContext[ReportParameters]) -> list[dict[str, Any]]:
    """Every candidate so far, and which checkpoints learnt from it.

    `sft@t` has seen what is in D_gen of iteration t. `grpo@t` starts from it, and has also seen the candidates whose
    questions were prompts of its rollouts (of a rejected one the question and the image, not the answer).
    """
    newest: list[Row] = []
    seen: dict[str, list[str]] = {}
    for t in range(ctx.parameters.iteration + 1):
        if not ctx.has_input(f"curate-{t}"):
            continue
        curate = ctx.input(f"curate-{t}")
        newest = curate.rows("lineage")  # holds those of the iterations before
        learnt = set(curate.table("training").column("row_id").to_pylist())
        if ctx.has_input(f"sft-{t}"):
            for name in learnt:
                seen.setdefault(name, []).append(f"sft@{t}")
        if ctx.has_input(f"grpo-{t}"):
            for name in learnt | _prompted(ctx, t):
                seen.setdefault(name, []).append(f"grpo@{t}")
    return [{**row, "seen_by": seen.get(row["triplet_id"], [])} for row in newest]


def _prompted(ctx: StageContext[ReportParameters], iteration: int) -> set[str]:
    """Candidates of an iteration whose questions GRPO sampled from; empty when that cannot be known."""
    grpo = ctx.input(f"grpo-{iteration}")
    role = f"generate-{iteration}"
    if not ctx.has_input(role) or not grpo.has("rollouts.parquet"):
        return set()
    prompts = set(grpo.table("rollouts").column("prompt_id").to_pylist())
    answer_format = AnswerFormat(grpo.manifest.parameters["answerFormat"])
    return {
        row["triplet_id"]
        for row in ctx.input(role).rows("candidates")
        if answers.prompt_id(row["image_sha256"], answers.prompt(row["question"], row["options"], answer_format))
        in prompts
    }
