"""How many of the settled answers are right, where the truth is known: of phantoms. No stage sees it."""

from __future__ import annotations

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


def settled_precision(frame: CycleFrame, iteration: int) -> float | None:
    """Share of right answers among those that were settled in iterations 1 to `iteration`; None where nobody knows."""
    shown = _phantoms(frame)
    if not shown:
        return None
    right: list[bool] = []
    for t in range(1, iteration + 1):
        if not (frame.has("relabel", t) and frame.has("generate", t)):
            continue
        settled = {row.triplet_id: row.answer_index for row in frame.artifact("relabel", t).rows(AnswerPosterior)}
        for row in frame.artifact("generate", t).rows(QuestionColumns):
            answer, phantom = settled.get(row.triplet_id), shown.get(row.image_sha256)
            if answer is not None and row.options and phantom is not None and row.question_type in KINDS:
                truth: str = getattr(phantom, row.question_type)
                right.append(normalise(row.options[answer]) == normalise(truth))
    return sum(right) / len(right) if right else None


def _phantoms(frame: CycleFrame) -> dict[str, PhantomRow]:
    if not frame.artifacts.has_input("prepare"):
        return {}
    prepared = frame.artifacts.input("prepare")
    rows = prepared.rows(PhantomRow) if prepared.has_table(PhantomRow) else []
    return {row.image_sha256: row for row in rows}
