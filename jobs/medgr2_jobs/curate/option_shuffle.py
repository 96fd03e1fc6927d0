"""Dealing the options anew, so that every letter is right about equally often."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from medgr2_api.training_spec import AnswerFormat

from ..prompts import answers

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


def deal(row: Mapping[str, Any], answer_format: AnswerFormat, seed: int) -> dict[str, Any]:
    """The columns that follow from a new order of the options: options, answer_index, response.

    The order depends on seed and triplet id alone. A row stays as it is when its words depend on the order ("option B",
    "all of the above"), or when its response is not rationale and answer in the usual form.
    """
    options, index = list(row["options"]), row["answer_index"]
    old = {"options": options, "answer_index": index, "response": row["response"]}
    usual = answers.response(row["rationale"] or "", index, options, answer_format)
    if row["response"] != usual or speaks_of_order(row["question"], row["rationale"] or "", options):
        return old
    order = sorted(range(len(options)), key=lambda place: _lot(seed, row["triplet_id"], place))
    dealt, right = [options[place] for place in order], order.index(index)
    response = answers.response(row["rationale"] or "", right, dealt, answer_format)
    return {"options": dealt, "answer_index": right, "response": response}


def speaks_of_order(question: str, rationale: str, options: Sequence[str]) -> bool:
    """Whether a triplet's words would be wrong in another order of the options."""
    texts = [question, rationale, *options]
    return any(_ORDER.search(text) for text in texts) or any(_ABOVE.search(option) for option in options)


def _lot(seed: int, name: str, place: int) -> bytes:
    return hashlib.sha256(f"letters/{seed}/{name}/{place}".encode()).digest()
