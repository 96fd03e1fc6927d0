"""From generated to kept, by paradigm, modality and question type: where the candidates of a cycle go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..store.rows.candidates import CandidateOutcome
from .cycle_frame import CycleFrame

#: The steps, in order; each candidate of one is also in those before it.
STEPS = ("generated", "parsed", "scored", "kept")
#: What candidates are grouped by, with its name for people.
DIMENSIONS = {"paradigm": "paradigm", "modality": "modality", "question_type": "question type"}
_SHOWN = 12  # groups of a dimension; the rest are one
OTHERS = "all others"


@dataclass(frozen=True, slots=True)
class FunnelRow:
    """Candidates of an iteration that were asked for in the same way, at each step."""

    iteration: int
    paradigm: str
    modality: str
    question_type: str
    generated: int
    """Asked for, and paid."""
    parsed: int
    """The answer is a triplet."""
    scored: int
    """R gave it a score. Without stage score none is scored, and what is kept was not."""
    kept: int
    """Curate let it into D_gen."""


def rows(frame: CycleFrame) -> list[FunnelRow]:
    """A row per iteration and combination that occurs; empty where generation is off."""
    funnel_rows: list[FunnelRow] = []
    curated = set(frame.iterations("curate"))
    for iteration in [t for t in frame.iterations("generate") if t in curated]:
        scores = frame.scores(iteration)
        kept = {row.triplet_id for row in frame.decisions(iteration) if row.keep}
        counts: dict[tuple[str, str, str], Counter[str]] = {}
        for row in frame.candidates(iteration):
            parsed = row.outcome is CandidateOutcome.OK
            passed = {
                "generated": True,
                "parsed": parsed,
                "scored": parsed and row.triplet_id in scores,
                "kept": row.triplet_id in kept,
            }
            key = (row.paradigm or "unknown", row.modality or "unknown", row.question_type or "unknown")
            counts.setdefault(key, Counter()).update(step for step in STEPS if passed[step])
        funnel_rows += [
            FunnelRow(iteration, *key, count["generated"], count["parsed"], count["scored"], count["kept"])
            for key, count in sorted(counts.items())
        ]
    return funnel_rows


def totals(funnel_rows: Sequence[FunnelRow]) -> dict[str, int]:
    """All candidates at each step."""
    return {step: sum(getattr(row, step) for row in funnel_rows) for step in STEPS}


def marginals(funnel_rows: Sequence[FunnelRow]) -> list[tuple[str, str, dict[str, int]]]:
    """(dimension, group, candidates at each step), all iterations together; the largest groups first.

    A dimension with one group says nothing and is left out.
    """
    result = []
    for dimension in DIMENSIONS:
        groups: dict[str, Counter[str]] = {}
        for row in funnel_rows:
            group = groups.setdefault(getattr(row, dimension), Counter())
            group.update({step: getattr(row, step) for step in STEPS})
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
