"""Stage curate: from scored candidates to D_gen, with every reason written down."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from medgr2_api.curation import ResolvedCuration
from medgr2_api.stages.curate import CurateParameters
from medgr2_api.training_spec import AnswerFormat

from ..curate import option_shuffle, rejection_rules
from ..curate.rejection_rules import Facts, Reasons, Rows
from ..curate.selection import WITHOUT_SCORES, Batch, Chosen, choose
from ..data import graded_dataset
from ..errors import ConfigError
from ..prompts import answers
from ..review import import_review
from ..runner.context import Outcome, StageContext
from ..store.rows import Split

SEED, GENERATED = "seed", "generated"
VETOED = "vetoed"
_QUESTION = ("image_sha256", "modality", "question_type", "question", "options", "answer_index")


def run(ctx: StageContext[CurateParameters]) -> Outcome:
    """Writes `decisions` (a row per candidate), `training` (D_gen) and `lineage` (all candidates so far)."""
    facts = _facts(ctx)
    reviewed = import_review.load(ctx.root, ctx.parameters.review, facts.candidates) if ctx.parameters.review else []
    reasons = rejection_rules.ruled_out(facts)
    by_name = {row["triplet_id"]: row for row in facts.candidates}
    chosen = choose(facts.curation, _batch(ctx, facts), {name for name, found in reasons.items() if not found}, by_name)
    for name, found in chosen.reasons.items():
        reasons[name] += found
    for verdict in reviewed:
        reasons[verdict.triplet_id] += [VETOED] * verdict.veto
    kept = [row for row in facts.candidates if not reasons[row["triplet_id"]]]
    decisions = [_decision(row["triplet_id"], facts, reasons) for row in facts.candidates]
    fresh = [_training_row(row, facts) for row in kept]
    counters = _counters(facts, reasons, chosen, len(kept))
    if facts.curation.reject_guessable:
        counters |= _deal(ctx, fresh, kept)
    if reviewed:
        counters["reviewed"] = len(reviewed)
    ctx.writer.table("decisions", decisions)
    ctx.writer.table("training", facts.known + fresh)
    ctx.writer.table("lineage", _lineage(ctx, facts.candidates, decisions))
    return Outcome(counters=counters)


def _facts(ctx: StageContext[CurateParameters]) -> Facts:
    curation = ctx.parameters.curation
    items = ctx.input("prepare").rows("items")
    return Facts(
        candidates=ctx.input("candidates").rows("candidates") if ctx.has_input("candidates") else [],
        scores=_scores(ctx, curation),
        known=_known(ctx, items),
        images=ctx.input("prepare").rows("images"),
        items=items,
        curation=curation,
    )


def _scores(ctx: StageContext[CurateParameters], curation: ResolvedCuration) -> dict[str, float]:
    """R's score by triplet id; empty where there is no scoring.

    Raises:
        ConfigError: the strategy needs scores and there are none.
    """
    if ctx.has_input("scores"):
        rows = ctx.input("scores").rows("scores")
        return {row["triplet_id"]: row["score"] for row in rows if _finite(row["score"])}
    if ctx.has_input("candidates") and curation.selection.strategy not in WITHOUT_SCORES:
        raise ConfigError(
            f"curation.selection.strategy {curation.selection.strategy} chooses by score, and stage score is disabled"
        )
    return {}


def _finite(score: float | None) -> bool:
    return score is not None and math.isfinite(score)


def _known(ctx: StageContext[CurateParameters], items: Rows) -> Rows:
    """D_gen before this iteration: the seed at first, then what the iteration before published."""
    if ctx.has_input("previous"):
        return ctx.input("previous").rows("training")
    if ctx.request.iteration > 1:
        raise ConfigError(f"curate of iteration {ctx.request.iteration} was given no input 'previous'")
    answer_format = _answer_format(ctx)
    return [
        {
            "row_id": item["item_id"],
            "origin": SEED,
            "iteration": 0,
            **{name: item[name] for name in _QUESTION},
            "response": answers.response(
                item["rationale"] or graded_dataset.neutral(item["options"][item["answer_index"]]),
                item["answer_index"],
                item["options"],
                answer_format,
            ),
        }
        for item in items
        if item["split"] == Split.TRAIN
    ]


def _answer_format(ctx: StageContext[CurateParameters]) -> AnswerFormat:
    return AnswerFormat(ctx.input("prepare").manifest.parameters.get("answerFormat", AnswerFormat.LETTER))


def _batch(ctx: StageContext[CurateParameters], facts: Facts) -> Batch:
    return Batch(
        ids=[row["triplet_id"] for row in facts.usable],
        scores=facts.scores,
        calibration=ctx.input("reward").rows("calibration") if ctx.has_input("reward") else None,
        seed=ctx.parameters.seed,
    )


def _decision(name: str, facts: Facts, reasons: Reasons) -> dict[str, Any]:
    return {"triplet_id": name, "keep": not reasons[name], "score": facts.scores.get(name), "reasons": reasons[name]}


def _training_row(row: dict[str, Any], facts: Facts) -> dict[str, Any]:
    return {
        "row_id": row["triplet_id"],
        "origin": GENERATED,
        "iteration": row["iteration"],
        **{name: row[name] for name in _QUESTION},
        "response": row["response"],
        "score": facts.scores.get(row["triplet_id"]),
    }


def _deal(ctx: StageContext[CurateParameters], fresh: Rows, kept: Rows) -> dict[str, float]:
    """Deals the options of what was kept anew, in place; returns counters."""
    moved = 0
    for training, row in zip(fresh, kept, strict=True):
        training |= option_shuffle.deal(row, _answer_format(ctx), ctx.parameters.seed)
        moved += training["options"] != row["options"]
    return {"letters_dealt": moved}


def _lineage(ctx: StageContext[CurateParameters], candidates: Rows, decisions: Rows) -> Rows:
    """Where every candidate so far came from and what became of it."""
    before = ctx.input("previous").rows("lineage") if ctx.has_input("previous") else []
    # the model that scored; FittedPrecision's input is the same one
    reward = ctx.input("scores").manifest.inputs.get("reward", "") if ctx.has_input("scores") else ""
    copied = ("triplet_id", "iteration", "image_sha256", "question", "paradigm", "template_sha256", "generator")
    return before + [
        {**{name: row[name] for name in copied}, **decision, "reward_digest": reward}
        for row, decision in zip(candidates, decisions, strict=True)
    ]


def _counters(facts: Facts, reasons: Reasons, chosen: Chosen, kept: int) -> dict[str, float]:
    """Headline figures. A candidate with several reasons counts under each; what stands behind a colon is detail."""
    dropped = Counter(reason.partition(":")[0] for found in reasons.values() for reason in found)
    return {
        "candidates": len(facts.candidates),
        "ok": len(facts.usable),
        "kept": kept,
        "training_rows": len(facts.known) + kept,
        **chosen.counters,
        **{f"dropped_{reason}": count for reason, count in sorted(dropped.items())},
    }
