"""What a generator must answer, and how its answer is parsed: one outcome per row, none is lost."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..prompts.answers import CHAT_MARKS, LETTERS, TAG, normalise
from ..store.rows.candidates import CandidateOutcome
from . import lenient_json

#: Options of a generated question: as in OmniMedVQA.
OPTION_COUNT = 4


@dataclass(frozen=True)
class OutcomeRule:
    """What one outcome means, and what follows from it."""

    meaning: str
    """For people; docs/generation.md has the same words."""
    repair: str = ""
    """The reason sent to a model that may correct its answer; empty: nothing to correct."""
    remedy: str = "use another model (`medgr2 prompt` shows what it is asked)"
    """What to change when most answers end so."""
    asked_again: bool = False
    """Whether the next attempt of the stage asks again, should this one not finish."""


OUTCOMES: dict[CandidateOutcome, OutcomeRule] = {
    CandidateOutcome.OK: OutcomeRule("a triplet"),
    CandidateOutcome.INVALID_JSON: OutcomeRule("the answer has no JSON object in it", "It is not one JSON object."),
    CandidateOutcome.SCHEMA: OutcomeRule(
        "a field is missing, empty, too long or of another type, or has our own tags in it",
        "A field is missing, empty, too long or of the wrong type.",
    ),
    CandidateOutcome.WRONG_OPTION_COUNT: OutcomeRule(
        f"not {OPTION_COUNT} options", f'"options" must have exactly {OPTION_COUNT} strings in it.'
    ),
    CandidateOutcome.DUPLICATE_OPTIONS: OutcomeRule("two options say the same", "Two options say the same."),
    CandidateOutcome.ANSWER_NOT_IN_OPTIONS: OutcomeRule(
        "the answer is none of the options",
        '"answer_text" must be one of the options, word for word, and "answer_letter" its letter.',
    ),
    CandidateOutcome.ANSWER_CONTRADICTS: OutcomeRule(
        "letter and text of the answer are two options", '"answer_letter" and "answer_text" name different options.'
    ),
    CandidateOutcome.EMPTY: OutcomeRule(
        "the provider sent no text, and no reason",
        remedy="use another model, or raise generator.sampling.maxTokens: it may have spent them all on thinking",
    ),
    CandidateOutcome.REFUSED: OutcomeRule(
        "the provider or the model refused: a safety block, a content filter",
        remedy="use another model, or loosen the provider's filters for medical images",
    ),
    CandidateOutcome.TRUNCATED: OutcomeRule(
        "the answer reached `sampling.maxTokens`",
        remedy="raise generator.sampling.maxTokens, or bound its thinking: generator.sampling.thinkingTokens, "
        "generator.openAI.reasoningEffort, chatTemplateKwargs: {enable_thinking: false}",
    ),
    CandidateOutcome.REJECTED: OutcomeRule(
        "the provider does not take this request (HTTP 400, 413, 422)", asked_again=True
    ),
    CandidateOutcome.UNREADABLE: OutcomeRule("HTTP 200 whose body is not the provider's protocol", asked_again=True),
    CandidateOutcome.HTTP_ERROR: OutcomeRule("no answer, however often it was asked", asked_again=True),
}
"""All outcomes. What was answered is final; what was not is asked again by the next attempt, if there is one."""

#: Fields by which the answer is told from other objects in a text.
_ESSENTIAL = frozenset({"question", "options"})
_MARKUP = re.compile(rf"{TAG.pattern}|{CHAT_MARKS}", re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-Z])\)?[.:)]?", re.IGNORECASE)
_LETTERED = re.compile(r"\(?([A-Z])[.:)]\s+(?=\S)", re.IGNORECASE)


def _options(value: Any) -> Any:
    """Options as a list of texts, where they have another form that can be read in one way only: `{"A": …, "B": …}`,
    `[{"letter": "A", "text": …}, …]`, `[{"A": …}, …]`, with the letters in their order."""
    if isinstance(value, dict):
        value = [{letter: text} for letter, text in sorted(value.items())]
    if not isinstance(value, list) or not all(isinstance(option, dict) for option in value):
        return value
    texts = []
    for at, option in enumerate(value):
        words = next(iter(option.items())) if len(option) == 1 else [*option.values()]
        letters = [word for word in words if isinstance(word, str) and word.strip(" .:()").upper() == LETTERS[at]]
        if len(words) != 2 or not letters:
            return value
        texts.append(words[1] if words[0] == letters[0] else words[0])
    return texts


class GeneratedTriplet(BaseModel):
    """The output schema of all paradigms. Limits are checked in `parse_answer`: few servers know more than types."""

    model_config = ConfigDict(
        extra="ignore",
        str_strip_whitespace=True,
    )

    question: str = Field(min_length=1, max_length=2000, description="the question")
    question_type: str = Field(max_length=200, description="the type that was asked for")
    options: Annotated[list[str], BeforeValidator(_options)] = Field(
        description=f"{OPTION_COUNT} strings, without letters in front"
    )
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
    model_schema = GeneratedTriplet.model_json_schema()
    fields = {
        name: {key: value for key, value in field.items() if key in ("type", "items", "description")}
        for name, field in model_schema["properties"].items()
    }
    return {"type": "object", "properties": fields, "required": model_schema["required"]}


@cache
def response_format() -> dict[str, Any]:
    """OpenAI's `response_format` for this schema; a server that does not know it may ignore it."""
    schema = {**json_schema(), "additionalProperties": False}  # which strict mode wants
    return {"type": "json_schema", "json_schema": {"name": "triplet", "schema": schema, "strict": True}}


@dataclass(frozen=True)
class GeneratedQuestion:
    """What an answer that is right in form says: columns of table `candidates`."""

    question: str
    question_type: str
    options: tuple[str, ...]
    answer_index: int
    rationale: str


def parse_answer(text: str) -> tuple[CandidateOutcome, GeneratedQuestion | None]:
    """Reads a generator's answer.

    Args:
        text: the whole answer; thinking, prose or a code fence around the object is forgiven (`lenient_json`).

    Returns:
        Its outcome, and for `ok` what it says.
    """
    document = _json_object(text)
    return (CandidateOutcome.INVALID_JSON, None) if document is None else judge(document)


def judge(document: dict[str, Any]) -> tuple[CandidateOutcome, GeneratedQuestion | None]:
    """As `parse_answer`, of the answer's fields."""
    try:
        triplet = GeneratedTriplet.model_validate(document)
    except ValidationError:
        return CandidateOutcome.SCHEMA, None
    options = _without_letters([option.strip() for option in triplet.options])
    if len(options) != OPTION_COUNT:
        return CandidateOutcome.WRONG_OPTION_COUNT, None
    normalised = [normalise(option) for option in options]
    # our own tags inside a rationale would be read as the answer later, and a chat template's marks as its own
    if not all(normalised) or _MARKUP.search(" ".join([triplet.question, triplet.rationale, *options])):
        return CandidateOutcome.SCHEMA, None
    if len(set(normalised)) < len(normalised):
        return CandidateOutcome.DUPLICATE_OPTIONS, None
    letter = _LETTER.fullmatch(triplet.answer_letter.strip())
    answer_index = LETTERS.index(letter[1].upper()) if letter else len(options)
    answer_text = normalise(_without_letters([triplet.answer_text])[0])
    if answer_index >= len(options) or answer_text not in normalised:
        return CandidateOutcome.ANSWER_NOT_IN_OPTIONS, None
    if normalised[answer_index] != answer_text:
        return CandidateOutcome.ANSWER_CONTRADICTS, None
    return CandidateOutcome.OK, GeneratedQuestion(
        triplet.question, triplet.question_type, tuple(options), answer_index, triplet.rationale
    )


def _json_object(text: str) -> dict[str, Any] | None:
    """The one JSON object that a text gives as its answer; None: there is none, or there are several."""
    found = lenient_json.objects(text)
    answers = [value for value in found if value.keys() >= _ESSENTIAL] or found
    return answers[0] if answers and all(value == answers[0] for value in answers) else None


def _without_letters(options: list[str]) -> list[str]:
    """The options without "A. ", "B) " in front, where each has its own letter; a lone text may have any."""
    matches = [_LETTERED.match(option) for option in options]
    lettered = [
        match is not None and (len(options) == 1 or match[1].upper() == LETTERS[at]) for at, match in enumerate(matches)
    ]
    if not all(lettered):
        return options
    return [option[match.end() :] for option, match in zip(options, matches, strict=True) if match]
