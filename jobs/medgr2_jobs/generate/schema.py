"""What a generator must answer, and how an answer is judged: one outcome per row, none is lost."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..answers import LETTERS, normalise

#: Options of a generated question: as in OmniMedVQA.
OPTION_COUNT = 4

OK = "ok"
INVALID_JSON = "invalid_json"
SCHEMA = "schema"
WRONG_OPTION_COUNT = "wrong_option_count"
DUPLICATE_OPTIONS = "duplicate_options"
ANSWER_NOT_IN_OPTIONS = "answer_not_in_options"
ANSWER_CONTRADICTS = "answer_contradicts"
REFUSED = "refused"
TRUNCATED = "truncated"
HTTP_ERROR = "http_error"

_MARKUP = re.compile(r"</?(think|answer)>", re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-Z])\)?[.:)]?", re.IGNORECASE)
_LETTERED = re.compile(r"\(?([A-Z])[.:)]\s+(?=\S)", re.IGNORECASE)


class Triplet(BaseModel):
    """The output schema of all paradigms. Limits are checked in `judge`: few servers know more than types."""

    model_config = ConfigDict(
        extra="ignore",
        str_strip_whitespace=True,
        json_schema_extra={"additionalProperties": False},
    )

    question: str = Field(min_length=1, max_length=2000)
    question_type: str = Field(max_length=200)
    options: list[str]
    answer_letter: str
    answer_text: str
    rationale: str = Field(min_length=1, max_length=8000)
    image_findings: list[str]
    self_check: str


def response_format() -> dict[str, Any]:
    """OpenAI's `response_format` for this schema; a server that does not know it may ignore it."""
    schema = Triplet.model_json_schema()
    for field in schema["properties"].values():  # strict mode takes no lengths
        field.pop("minLength", None)
        field.pop("maxLength", None)
    return {"type": "json_schema", "json_schema": {"name": "triplet", "schema": schema, "strict": True}}


def judge(text: str) -> tuple[str, dict[str, Any] | None]:
    """Reads a generator's answer.

    Args:
        text: the whole answer; prose or a code fence around the object is forgiven.

    Returns:
        Its outcome, and for `ok` the question's columns: question, question_type, options, answer_index, rationale.
    """
    document = _object(text)
    if document is None:
        return INVALID_JSON, None
    try:
        found = Triplet.model_validate(document)
    except ValidationError:
        return SCHEMA, None
    options = _without_letters([option.strip() for option in found.options])
    if len(options) != OPTION_COUNT:
        return WRONG_OPTION_COUNT, None
    offered = [normalise(option) for option in options]
    # our own tags inside a rationale would be read as the answer later
    if not all(offered) or _MARKUP.search(" ".join([found.question, found.rationale, *options])):
        return SCHEMA, None
    if len(set(offered)) < len(offered):
        return DUPLICATE_OPTIONS, None
    letter = _LETTER.fullmatch(found.answer_letter.strip())
    named = LETTERS.index(letter[1].upper()) if letter else len(options)
    said = normalise(_without_letters([found.answer_text])[0])
    if named >= len(options) or said not in offered:
        return ANSWER_NOT_IN_OPTIONS, None
    if offered[named] != said:
        return ANSWER_CONTRADICTS, None
    return OK, {
        "question": found.question,
        "question_type": found.question_type,
        "options": options,
        "answer_index": named,
        "rationale": found.rationale,
    }


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object in a text: the whole of it, or what lies between the outermost braces."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return None
    try:
        document = json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _without_letters(options: list[str]) -> list[str]:
    """The options without "A. ", "B) " in front, where each has its own letter; a lone text may have any."""
    found = [_LETTERED.match(option) for option in options]
    ours = [
        match is not None and (len(options) == 1 or match[1].upper() == LETTERS[at]) for at, match in enumerate(found)
    ]
    if not all(ours):
        return options
    return [option[match.end() :] for option, match in zip(options, found, strict=True) if match]
