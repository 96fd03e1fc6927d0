"""Dealing the options anew, so that every letter is right about equally often."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from medgr2_api.training_spec import AnswerFormat

from ..prompts import answers
from ..store.rows.candidates import Triplet

_OPTION = r"(?i:options?|choices?|answers?|alternatives?|letters?)"
#: What a text says that depends on the options' order. Rather too much than too little: such a row stays as it is.
_ORDER = re.compile(
    rf"\b{_OPTION}\W{{1,3}}[A-Z]\b"  # option B, answer: (C)
    rf"|\b(?i:first|second|third|fourth|fifth|last|former|latter)\s+(?:\w+\s+)?{_OPTION}\b"
    rf"|\b{_OPTION}\s+(?i:above|below|before|after)\b"
    r"|(?<![\w'-])[B-H](?![\w'-])"  # a lone capital: "B is wrong", "(C)"; not X-ray, T2, B-mode
    r"|(?<![\w'-])A(?=[).:;,*\]]|\s(?i:is|was|and|or|can|cannot|would|fits|because)\b)"  # but "A nodule"
)
_ABOVE = re.compile(r"\b(?:above|previous|preceding)\b", re.IGNORECASE)


def option_order(triplet: Triplet, answer_format: AnswerFormat, seed: int) -> tuple[int, ...] | None:
    """A new order of a triplet's options, as `Decision.option_order` has it; None: they stay as they are.

    It depends on seed and triplet id alone. They stay when the triplet's words depend on their order ("option B", "all
    of the above"), or when its response is not rationale and answer in the usual form.
    """
    usual = answers.response(triplet.rationale, triplet.answer_index, triplet.options, answer_format)
    if triplet.response != usual or speaks_of_order(triplet.question, triplet.rationale, triplet.options):
        return None
    return tuple(sorted(range(len(triplet.options)), key=lambda place: _lot(seed, triplet.triplet_id, place)))


def speaks_of_order(question: str, rationale: str, options: Sequence[str]) -> bool:
    """Whether a triplet's words would be wrong in another order of the options."""
    texts = [question, rationale, *options]
    return any(_ORDER.search(text) for text in texts) or any(_ABOVE.search(option) for option in options)


def _lot(seed: int, name: str, place: int) -> bytes:
    return hashlib.sha256(f"letters/{seed}/{name}/{place}".encode()).digest()
