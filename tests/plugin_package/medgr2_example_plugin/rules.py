"""A curation rule: a question of a few words asks for nothing in particular."""

from __future__ import annotations

from collections.abc import Iterator

from medgr2_jobs.curate.rejection_rules import Facts, Reasons


def short_questions(facts: Facts, reasons: Reasons, *, words: int = 4) -> Iterator[tuple[str, str]]:
    """Drops questions of fewer than `words` words."""
    for row in facts.usable:
        if len(row.question.split()) < words:
            yield row.triplet_id, f"fewer_than_{words}_words"
