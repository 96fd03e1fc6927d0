"""How a question is put to the policy, how an answer is written, and `extract()`: how it is read.

One place, used by seed and candidate rows, by reward and preference labels and by the evaluation, so that training
and measuring can never differ in template (a common bug of public code).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from medgr2_api.training_spec import AnswerFormat

from . import answer_forms
from .answer_forms import LETTERS as LETTERS
from .answer_forms import normalise as normalise

#: What chat templates put around turns and pictures, whatever the model: `<|im_end|>`, `<|image_pad|>`, and so on.
CHAT_MARKS = r"<\|[^<>|\s]{1,64}\|>|<(?:image|video|audio)>"
#: The tags that mark the parts of an answer. No text that is taught or asked may have them in it.
TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)
#: The innermost block: an <answer> that is mentioned and never closed does not swallow the one that follows.
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
_NO_TAG = r"(?:(?!</?(?:think|answer)>).)"
_FORMAT = re.compile(rf"<think>{_NO_TAG}*</think>\s*<answer>{_NO_TAG}+</answer>", re.DOTALL)


class Askable(Protocol):
    """What a prompt is made of: every row that asks something about an image has it."""

    @property
    def image_sha256(self) -> str: ...

    @property
    def question(self) -> str: ...

    @property
    def options(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the policy is asked."""

    image_sha256: str
    text: str
    """The user turn, without the image."""

    @property
    def prompt_id(self) -> str:
        """Names the prompt by its content: 16 hex digits, equal exactly for the same image and the same text."""
        return hashlib.sha256(f"{self.image_sha256}\n{self.text}".encode()).hexdigest()[:16]


def prompt_of(row: Askable, answer_format: AnswerFormat) -> Prompt:
    """How a row's question is put to the policy."""
    return Prompt(row.image_sha256, prompt_text(row.question, row.options, answer_format))


def prompt_text(question: str, options: Sequence[str], answer_format: AnswerFormat) -> str:
    """The user turn, without the image.

    `Letter` spells the task out for an instruction-tuned model. `OptionText` is bare: it is for small models that
    learn the format from examples.
    """
    if answer_format is AnswerFormat.OPTION_TEXT:
        return f"{question} {', '.join(options)}"
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return (
        f"{question}\n{listed}\n"
        "Think about what the image shows inside <think> </think>, "
        "then give the letter of the right option inside <answer> </answer>."
    )


def answer_text(index: int, options: Sequence[str], answer_format: AnswerFormat) -> str:
    """What stands between <answer> and </answer> for option `index`."""
    return LETTERS[index] if answer_format is AnswerFormat.LETTER else options[index]


def response(rationale: str, index: int, options: Sequence[str], answer_format: AnswerFormat) -> str:
    """The assistant turn: rationale, then answer."""
    return f"<think>{rationale}</think><answer>{answer_text(index, options, answer_format)}</answer>"


def extract(text: str, options: Sequence[str], answer_format: AnswerFormat) -> int | None:
    """The option an answer names: its index, or None.

    The last <answer> block, in the forms of docs/answers.md: a letter before a text where letters were asked for, else
    a text before a letter. Never random, never fuzzy (docs/decisions.md, 5).
    """
    blocks = _ANSWER.findall(text)
    if not blocks:
        return None
    return answer_forms.read(blocks[-1], options, letters_first=answer_format is AnswerFormat.LETTER)


def well_formed(text: str) -> bool:
    """Whether an answer is exactly one <think> block followed by one <answer> block."""
    return _FORMAT.fullmatch(text.strip()) is not None
