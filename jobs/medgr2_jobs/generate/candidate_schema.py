"""What a generator must answer, and how an answer is judged: one outcome per row, none is lost."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..prompts.answers import LETTERS, normalise

#: Options of a generated question: as in OmniMedVQA.
OPTION_COUNT = 4

OK = "ok"
INVALID_JSON = "invalid_json"
SCHEMA = "schema"
WRONG_OPTION_COUNT = "wrong_option_count"
DUPLICATE_OPTIONS = "duplicate_options"
ANSWER_NOT_IN_OPTIONS = "answer_not_in_options"
ANSWER_CONTRADICTS = "answer_contradicts"
EMPTY = "empty"
REFUSED = "refused"
TRUNCATED = "truncated"
REJECTED = "rejected"
UNREADABLE = "unreadable"
HTTP_ERROR = "http_error"


@dataclass(frozen=True)
class Outcome:
    """How a question can end."""

    meaning: str
    """For people; docs/generation.md has the same words."""
    repair: str = ""
    """What a model that may correct itself is told; empty: nothing to correct."""
    asked_again: bool = False
    """Whether another attempt of the stage asks again, should this one not get to its end."""


OUTCOMES: dict[str, Outcome] = {
    OK: Outcome("a triplet"),
    INVALID_JSON: Outcome("the answer has no JSON object in it", "It is not one JSON object."),
    SCHEMA: Outcome(
        "a field is missing, empty, too long or of another type, or has our own tags in it",
        "A field is missing, empty, too long or of the wrong type.",
    ),
    WRONG_OPTION_COUNT: Outcome(
        f"not {OPTION_COUNT} options", f'"options" must have exactly {OPTION_COUNT} strings in it.'
    ),
    DUPLICATE_OPTIONS: Outcome("two options say the same", "Two options say the same."),
    ANSWER_NOT_IN_OPTIONS: Outcome(
        "the answer is none of the options",
        '"answer_text" must be one of the options, word for word, and "answer_letter" its letter.',
    ),
    ANSWER_CONTRADICTS: Outcome(
        "letter and text of the answer are two options", '"answer_letter" and "answer_text" name different options.'
    ),
    EMPTY: Outcome("the provider sent no text, and no reason"),
    REFUSED: Outcome("the provider or the model refused: a safety block, a content filter"),
    TRUNCATED: Outcome("the answer reached `sampling.maxTokens`"),
    REJECTED: Outcome("the provider does not take this request (HTTP 400, 413, 422)", asked_again=True),
    UNREADABLE: Outcome("HTTP 200 whose body is not the provider's protocol", asked_again=True),
    HTTP_ERROR: Outcome("no answer, however often it was asked", asked_again=True),
}
"""All outcomes. What was answered is final; what was not is asked again by the next attempt, if there is one."""

_MARKUP = re.compile(r"</?(think|answer)>", re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-Z])\)?[.:)]?", re.IGNORECASE)
_LETTERED = re.compile(r"\(?([A-Z])[.:)]\s+(?=\S)", re.IGNORECASE)


class Triplet(BaseModel):
    """The output schema of all paradigms. Limits are checked in `judge`: few servers know more than types."""

    model_config = ConfigDict(
        extra="ignore",
        str_strip_whitespace=True,
    )

    question: str = Field(min_length=1, max_length=2000, description="the question")
    question_type: str = Field(max_length=200, description="the type that was asked for")
    options: list[str] = Field(description=f"{OPTION_COUNT} strings, without letters in front")
    answer_letter: str = Field(description="A, B, C … : the position of the right option")
    answer_text: str = Field(description="the right option, word for word")
    rationale: str = Field(
        min_length=1, max_length=8000, description="two to four sentences from what is seen to the answer"
    )
    image_findings: list[str] = Field(description="what is visible in the image and used in the rationale")
    self_check: str = Field(description="one sentence: why the other options are wrong for this image")


@cache
def json_schema() -> dict[str, Any]:
    """The schema as JSON Schema, in the few words that every provider knows: types, names, descriptions."""
    made = Triplet.model_json_schema()
    fields = {
        name: {key: value for key, value in field.items() if key in ("type", "items", "description")}
        for name, field in made["properties"].items()
    }
    return {"type": "object", "properties": fields, "required": made["required"]}


@cache
def response_format() -> dict[str, Any]:
    """OpenAI's `response_format` for this schema; a server that does not know it may ignore it."""
    schema = {**json_schema(), "additionalProperties": False}  # which strict mode wants
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
