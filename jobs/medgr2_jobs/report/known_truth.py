"""What is right where it is known: of drawn pictures (phantoms). No stage sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..data.synthetic_images import KINDS
from ..prompts.answers import normalise
from ..store.rows import TableView
from ..store.rows.candidates import AnswerPosterior, Candidate
from ..store.rows.prepared import PhantomRow
from .cycle_frame import CycleFrame


@dataclass(frozen=True, slots=True)
class QuestionColumns(TableView):
    """What a candidate asks, about which image."""

    TABLE = Candidate.TABLE
    VERSION = Candidate.VERSION

    triplet_id: str
    image_sha256: str
    question_type: str
    options: tuple[str, ...] | None


def right_options(frame: CycleFrame, iteration: int) -> dict[str, int]:
    """Index of the right option by triplet id, -1: none of them is; only of candidates whose truth is known."""
    shown = _phantoms(frame)
    if not shown or not frame.has("generate", iteration):
        return {}
    right: dict[str, int] = {}
    for row in frame.artifact("generate", iteration).rows(QuestionColumns):
        phantom = shown.get(row.image_sha256)
        if row.options and phantom is not None and row.question_type in KINDS:
            texts = [normalise(option) for option in row.options]
            truth = normalise(getattr(phantom, row.question_type))
            right[row.triplet_id] = texts.index(truth) if truth in texts else -1
    return right


def share_right(answers: Mapping[str, int], right: Mapping[str, int]) -> float | None:
    """Share of right ones among the answers (index of an option by triplet id) whose truth is known; None: of none."""
    known = [index == right[name] for name, index in answers.items() if name in right]
    return sum(known) / len(known) if known else None


def settled_precision(frame: CycleFrame, iteration: int) -> float | None:
    """Share of right answers among those that were settled in iterations 1 to `iteration`; None where nobody knows."""
    settled: dict[str, int] = {}
    right: dict[str, int] = {}
    for t in range(1, iteration + 1):
        if not frame.has("relabel", t):
            continue
        right |= right_options(frame, t)
        rows = frame.artifact("relabel", t).rows(AnswerPosterior)
        settled |= {row.triplet_id: row.answer_index for row in rows if row.answer_index is not None}
    return share_right(settled, right)


def _phantoms(frame: CycleFrame) -> dict[str, PhantomRow]:
    if not frame.artifacts.has_input("prepare"):
        return {}
    prepared = frame.artifacts.input("prepare")
    rows = prepared.rows(PhantomRow) if prepared.has_table(PhantomRow) else []
    return {row.image_sha256: row for row in rows}
