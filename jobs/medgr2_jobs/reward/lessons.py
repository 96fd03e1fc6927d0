"""What a retrained R learns from, beside D_grade (docs/grades.md, "Retraining")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from medgr2_api.reward_model import Grades
from medgr2_api.training_spec import AnswerFormat

from ..curate.settled import SettledQuestion
from ..data import graded_dataset
from ..data.wordnet import Lexicon
from ..store.rows import Split
from ..store.rows.candidates import AnswerPosterior
from ..store.rows.prepared import GradedRow, Item
from ..store.rows.training import Preference


@dataclass(frozen=True)
class Lessons:
    """Rows with targets, and figures about them."""

    rows: Sequence[GradedRow] | Sequence[Preference]
    counters: dict[str, float] = field(default_factory=dict)


def graded(
    settled: Sequence[SettledQuestion],
    *,
    grades: Grades,
    mismatches: int,
    answer_format: AnswerFormat,
    seed: int,
    lexicon: Lexicon | None,
) -> list[GradedRow]:
    """Settled questions in the grades of D_grade, all of them to train on. The settled answer is taken for right; other
    images and other rationales come from the settled questions.

    Args: as of `graded_dataset.rows`.
    """
    items = [_item(row) for row in settled]
    return list(
        graded_dataset.rows(
            items,
            pool=items,
            grades=grades,
            mismatches=mismatches,
            answer_format=answer_format,
            seed=seed,
            lexicon=lexicon,
        )
    )


def against_reward(asked: Sequence[AnswerPosterior]) -> int:
    """How many settled answers are not R's own: where there are none, R would only hear what it says."""
    return sum(
        row.answer_index is not None and row.reward_scores[row.answer_index] < max(row.reward_scores) for row in asked
    )


def _item(row: SettledQuestion) -> Item:
    asked = row.triplet
    return Item(
        item_id=asked.triplet_id,
        source="",  # of no source: nobody has labelled it
        split=Split.TRAIN,
        benchmark="",
        image_sha256=asked.image_sha256,
        modality=asked.modality,
        question_type=asked.question_type,
        question=asked.question,
        options=asked.options,
        answer_index=row.answer_index,
        rationale=row.rationale,
    )
