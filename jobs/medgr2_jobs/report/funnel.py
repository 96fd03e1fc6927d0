"""From generated to kept, by paradigm, modality and question type: where the candidates of a cycle go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..runner.context import StageContext
from ..store.rows import CandidateOutcome

Row = dict[str, Any]

#: The steps, in order; each candidate of one is also in those before it.
STEPS = ("generated", "parsed", "scored", "kept")
DIMENSIONS = ("paradigm", "modality", "question_type")
NAMES = {"paradigm": "paradigm", "modality": "modality", "question_type": "question type"}
_SHOWN = 12  # groups of a dimension; the rest are one
OTHERS = "all others"


def rows(ctx: StageContext[Any], iterations: Iterable[int]) -> list[Row]:
    """A row per iteration and combination that occurs, with the number of candidates at each step.

    generated: asked for, and paid; parsed: the answer is a triplet; scored: R gave it a score; kept: curate let it
    into D_gen. Without stage score nothing is scored, and what is kept was not. Empty where generation is off.
    """
    found: list[Row] = []
    for iteration in iterations:
        roles = (f"generate-{iteration}", f"curate-{iteration}")
        if not all(ctx.has_input(role) for role in roles):
            continue
        columns = ["triplet_id", "outcome", *DIMENSIONS]
        candidates = ctx.input(roles[0]).table("candidates").select(columns).to_pylist()
        decisions = {row["triplet_id"]: row for row in ctx.input(roles[1]).rows("decisions")}
        counts: dict[tuple[str, ...], Counter[str]] = {}
        for row in candidates:
            decision = decisions.get(row["triplet_id"], {})
            passed = {
                "generated": True,
                "parsed": row["outcome"] == CandidateOutcome.OK,
                "scored": row["outcome"] == CandidateOutcome.OK and decision.get("score") is not None,
                "kept": bool(decision.get("keep")),
            }
            group = counts.setdefault(tuple(row[name] or "unknown" for name in DIMENSIONS), Counter())
            group.update(step for step in STEPS if passed[step])
        for key, count in sorted(counts.items()):
            groups = dict(zip(DIMENSIONS, key, strict=True))
            found.append({"iteration": iteration, **groups, **{step: count[step] for step in STEPS}})
    return found


def totals(found: Sequence[Row]) -> dict[str, int]:
    """All candidates at each step."""
    return {step: sum(row[step] for row in found) for step in STEPS}


def marginals(found: Sequence[Row]) -> list[tuple[str, str, dict[str, int]]]:
    """(dimension, group, candidates at each step), all iterations together; the largest groups first.

    A dimension with one group says nothing and is left out.
    """
    result = []
    for dimension in DIMENSIONS:
        groups: dict[str, Counter[str]] = {}
        for row in found:
            groups.setdefault(row[dimension], Counter()).update({step: row[step] for step in STEPS})
        order = sorted(groups, key=lambda name: (-groups[name]["generated"], name))
        if len(order) < 2:
            continue
        if len(order) > _SHOWN:
            rest: Counter[str] = Counter()
            for name in order[_SHOWN - 1 :]:
                rest.update(groups.pop(name))
            order = [*order[: _SHOWN - 1], OTHERS]
            groups[OTHERS] = rest
        result += [(dimension, name, {step: groups[name][step] for step in STEPS}) for name in order]
    return result
