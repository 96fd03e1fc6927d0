"""Stage curate: from scored candidates to D_gen, with every reason written down."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from medgr2_api.curation import Curation
from medgr2_api.cycle import AnswerFormat
from medgr2_api.parameters import CurateParameters

from .. import answers
from ..context import Outcome, StageContext
from ..data import grades
from ..data.splits import TRAIN
from ..errors import ConfigError
from ..generate.schema import OK
from . import overlap
from .select import NOT_SCORED, WITHOUT_SCORES, Batch, Selected, select

Rows = list[dict[str, Any]]
SEED, GENERATED = "seed", "generated"
_QUESTION = ("image_sha256", "modality", "question_type", "question", "options", "answer_index")


def run(ctx: StageContext[CurateParameters]) -> Outcome:
    """Writes `decisions` (a row per candidate), `training` (D_gen) and `lineage` (all candidates so far)."""
    curation = ctx.parameters.curation
    _check(curation)
    candidates = ctx.input("candidates").rows("candidates") if ctx.has_input("candidates") else []
    scores = _scores(ctx, curation)
    images, items = ctx.input("prepare").rows("images"), ctx.input("prepare").rows("items")
    known = _known(ctx, items)
    taken = set() if curation.allow_overlap else {overlap.key(row) for row in known}

    reasons = _hard_reasons(candidates, scores, overlap.held_out(images, items), taken)
    chosen = select(curation.selection, _batch(ctx, candidates, scores, reasons))
    for row in candidates:
        name = row["triplet_id"]
        if row["outcome"] != OK:
            continue
        if curation.selection.strategy not in WITHOUT_SCORES and name not in scores:
            reasons[name].append(NOT_SCORED)
        elif name not in chosen.passed:
            reasons[name].append(chosen.reason)
    kept = [row for row in candidates if not reasons[row["triplet_id"]]]
    decisions = [_decision(row["triplet_id"], scores, reasons) for row in candidates]
    training = known + [_training_row(row, scores) for row in kept]
    ctx.writer.table("decisions", decisions)
    ctx.writer.table("training", training)
    ctx.writer.table("lineage", _lineage(ctx, candidates, decisions))
    return Outcome(counters=_counters(candidates, kept, training, reasons, chosen))


def _check(curation: Curation) -> None:
    """Refuses what this version does not do: ignoring it would keep what the user wants dropped."""
    asked = {
        "nearDuplicates": curation.near_duplicates is not None,
        "rejectGuessable": bool(curation.reject_guessable),
        "balance": curation.balance is not None,
    }
    for name, wanted in asked.items():
        if wanted:
            raise ConfigError(f"curation.{name}: not in this version; remove it")


def _scores(ctx: StageContext[CurateParameters], curation: Curation) -> dict[str, float]:
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
    written = ctx.input("prepare").manifest.parameters.get("answerFormat", AnswerFormat.LETTER)
    answer_format = AnswerFormat(written)
    return [
        {
            "row_id": item["item_id"],
            "origin": SEED,
            "iteration": 0,
            **{name: item[name] for name in _QUESTION},
            "response": answers.response(
                grades.rationale_for(item), item["answer_index"], item["options"], answer_format
            ),
        }
        for item in items
        if item["split"] == TRAIN
    ]


def _hard_reasons(
    candidates: Rows, scores: dict[str, float], held_out: dict[str, set[str]], taken: set[overlap.Key]
) -> dict[str, list[str]]:
    """What rules a candidate out whatever the strategy, by triplet id."""
    doubles = overlap.duplicates((row for row in candidates if row["outcome"] == OK), scores)
    reasons: dict[str, list[str]] = {}
    for row in candidates:
        found = reasons[row["triplet_id"]] = []
        if row["outcome"] != OK:
            found.append(f"outcome:{row['outcome']}")
        found += [reason for reason, images in held_out.items() if row["image_sha256"] in images]
        if row["outcome"] == OK:
            found += [overlap.DUPLICATE] * (row["triplet_id"] in doubles)
            found += [overlap.OVERLAP] * (overlap.key(row) in taken)
    return reasons


def _batch(
    ctx: StageContext[CurateParameters], candidates: Rows, scores: dict[str, float], reasons: dict[str, list[str]]
) -> Batch:
    return Batch(
        ids=[row["triplet_id"] for row in candidates if row["outcome"] == OK],
        eligible={name for name, found in reasons.items() if not found},
        scores=scores,
        calibration=ctx.input("reward").rows("calibration") if ctx.has_input("reward") else None,
        seed=ctx.parameters.seed,
    )


def _decision(name: str, scores: dict[str, float], reasons: dict[str, list[str]]) -> dict[str, Any]:
    return {"triplet_id": name, "keep": not reasons[name], "score": scores.get(name), "reasons": reasons[name]}


def _training_row(row: dict[str, Any], scores: dict[str, float]) -> dict[str, Any]:
    return {
        "row_id": row["triplet_id"],
        "origin": GENERATED,
        "iteration": row["iteration"],
        **{name: row[name] for name in _QUESTION},
        "response": row["response"],
        "score": scores.get(row["triplet_id"]),
    }


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


def _counters(
    candidates: Rows, kept: Rows, training: Rows, reasons: dict[str, list[str]], chosen: Selected
) -> dict[str, float]:
    """Headline figures. A candidate with several reasons counts under each."""
    usable = sum(row["outcome"] == OK for row in candidates)
    dropped = Counter(
        "outcome" if reason.startswith("outcome:") else reason for row in reasons.values() for reason in row
    )
    return {
        "candidates": len(candidates),
        "ok": usable,
        "kept": len(kept),
        "training_rows": len(training),
        **chosen.counters,
        **{f"dropped_{reason}": count for reason, count in sorted(dropped.items())},
    }
