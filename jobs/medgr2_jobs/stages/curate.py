"""Stage curate: from scored candidates to D_gen, with every reason written down."""

from __future__ import annotations

import math
from collections import Counter

from medgr2_api.curation import ResolvedCuration
from medgr2_api.stages.curate import CurateParameters

from ..curate import option_shuffle, rejection_rules
from ..curate.rejection_rules import Facts, Reasons
from ..curate.selection import VETOED, WITHOUT_SCORES, WRONG_ANSWER, CandidateBatch, SelectionResult, choose
from ..curate.training_set import training_set
from ..errors import ConfigError
from ..review import import_review
from ..runner.context import StageContext, StageOutcome
from ..store.rows.candidates import Candidate, Decision, Score, Triplet
from ..store.rows.prepared import Image, Item
from ..store.rows.training import CalibrationRow


def run(ctx: StageContext[CurateParameters]) -> StageOutcome:
    """Writes `decisions`: a row per candidate. D_gen is read from them (`training_set`)."""
    facts = _facts(ctx)
    reviews = import_review.load(ctx.root, ctx.parameters.review, facts.candidates) if ctx.parameters.review else []
    reasons = rejection_rules.ruled_out(facts)
    eligible = {name for name, against in reasons.items() if not against}
    chosen = choose(facts.curation, _batch(ctx, facts), eligible, {row.triplet_id: row for row in facts.usable})
    for name, against in chosen.reasons.items():
        reasons[name] += against
    counts = import_review.by_triplet(reviews)
    for name, review in counts.items():
        reasons[name] += [VETOED] * review.veto + [WRONG_ANSWER] * review.corrects
    kept = [row for row in facts.usable if not reasons[row.triplet_id]]
    counters = _counters(facts, reasons, chosen, len(kept))
    orders: dict[str, tuple[int, ...] | None] = {}
    if facts.curation.reject_guessable:
        orders = {row.triplet_id: _order(row, ctx.parameters) for row in kept}
        counters["letters_dealt"] = sum(
            order is not None and order != tuple(sorted(order)) for order in orders.values()
        )
    if reviews:
        counters["reviewed"] = len(counts)
    names = [row.triplet_id for row in facts.candidates]
    decisions = [Decision(name, not reasons[name], tuple(reasons[name]), orders.get(name)) for name in names]
    ctx.writer.table(Decision, decisions)
    return StageOutcome(counters=counters)


def _facts(ctx: StageContext[CurateParameters]) -> Facts:
    prepare, t = ctx.input("prepare"), ctx.request.iteration
    return Facts(
        candidates=ctx.input(f"generate-{t}").rows(Candidate) if ctx.has_input(f"generate-{t}") else [],
        scores=_scores(ctx, ctx.parameters.curation),
        training=training_set(ctx, t - 1, ctx.parameters.answer_format),
        images=prepare.rows(Image),
        items=prepare.rows(Item),
        curation=ctx.parameters.curation,
    )


def _scores(ctx: StageContext[CurateParameters], curation: ResolvedCuration) -> dict[str, float]:
    """R's score by triplet id; empty where there is no scoring.

    Raises:
        ConfigError: the strategy needs scores and there are none.
    """
    if ctx.has_input("scores"):
        return {row.triplet_id: row.score for row in ctx.input("scores").rows(Score) if math.isfinite(row.score)}
    if ctx.has_input(f"generate-{ctx.request.iteration}") and curation.selection.strategy not in WITHOUT_SCORES:
        raise ConfigError(
            f"curation.selection.strategy {curation.selection.strategy} chooses by score, and stage score is disabled"
        )
    return {}


def _order(triplet: Triplet, parameters: CurateParameters) -> tuple[int, ...] | None:
    return option_shuffle.option_order(triplet, parameters.answer_format, parameters.seed)


def _batch(ctx: StageContext[CurateParameters], facts: Facts) -> CandidateBatch:
    return CandidateBatch(
        ids=[row.triplet_id for row in facts.usable],
        scores=facts.scores,
        calibration=ctx.input("reward").rows(CalibrationRow) if ctx.has_input("reward") else None,
        seed=ctx.parameters.seed,
    )


def _counters(facts: Facts, reasons: Reasons, chosen: SelectionResult, kept: int) -> dict[str, float]:
    """Headline figures. A candidate with several reasons counts under each; what stands behind a colon is detail."""
    dropped = Counter(reason.partition(":")[0] for against in reasons.values() for reason in against)
    return {
        "candidates": len(facts.candidates),
        "ok": len(facts.usable),
        "kept": kept,
        "training_rows": len(facts.training) + kept,
        **chosen.counters,
        **{f"dropped_{reason}": count for reason, count in sorted(dropped.items())},
    }
