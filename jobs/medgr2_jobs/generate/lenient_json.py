"""JSON as language models write it: thinking and prose around it, code fences, comments, trailing commas, LaTeX.

Libraries that repair JSON complete what was cut off and guess what is missing, and always come back with something: a
question that nobody has written would be taught. This reader forgives what can be read in one way only; the rest is no
JSON, and is asked for once more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

#: Objects and lists within each other, at most: a triplet has two.
_MAX_DEPTH = 16
#: Characters of a text that is looked through.
_MAX_LENGTH = 200_000
#: How often each character may be read: what begins again and again and never ends is given up.
_MAX_READS = 8

_SPACE = re.compile(r"(?:\s+|//[^\n]*|/\*(?:(?!\*/).){0,300}\*/|\#[^\n]*)*", re.DOTALL)
_LITERAL = re.compile(r"[A-Za-z]+|-?[0-9][0-9.eE+-]{0,40}")
_LITERALS: dict[str, Any] = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
#: What opens a string → what closes it.
_QUOTES = {'"': '"', "“": "”", "„": "“", "'": "'", "‘": "’"}
_ENDS = re.compile(r"\s*[,:}\]]")
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
#: LaTeX commands that begin like an escape of a white character; \b and \f stand for nothing that a text has.
_LATEX = re.compile(
    r"(?:[bf][A-Za-z]"
    r"|(?:nabla|natural|nearrow|neq|newline|nexists|nleq|not|notin|nsim|nu"
    r"|rangle|rceil|rfloor|rho|right|rightarrow|rightleftharpoons|rm"
    r"|tan|tau|tbinom|text|textbf|textit|textrm|tfrac|theta|therefore|tilde|times|to|top|triangle)(?![A-Za-z]))"
)
_THINKING_ENDS = re.compile(r"</\s*(?:think|thinking|thought|reasoning)\s*>", re.IGNORECASE)
_THINKING_BEGINS = re.compile(r"<\s*(?:think|thinking|thought|reasoning)\s*>", re.IGNORECASE)


class _NoJSON(Exception):
    """It does not go on as JSON."""


@dataclass(frozen=True)
class FoundObject:
    """An object in a text."""

    start: int
    end: int
    value: dict[str, Any]


def objects(text: str) -> list[dict[str, Any]]:
    """The outermost JSON objects of a model's answer, in their order; none of those that it only thought of.

    Thinking ends with the last `</think>` outside of all objects; where it has begun and not ended, all is thinking.
    """
    found = _all_objects(text[:_MAX_LENGTH])
    ends = [match.end() for match in _THINKING_ENDS.finditer(text) if not _within(match.start(), found)]
    begins = [match.start() for match in _THINKING_BEGINS.finditer(text) if not _within(match.start(), found)]
    answer_starts = max(ends, default=0)
    if begins and begins[-1] >= answer_starts:
        return []
    return [one.value for one in found if one.start >= answer_starts]


def _within(position: int, found: list[FoundObject]) -> bool:
    return any(one.start < position < one.end for one in found)


def _all_objects(text: str) -> list[FoundObject]:
    found, reader = [], _Reader(text)
    at = text.find("{")
    while at >= 0 and reader.reads_left > 0:
        reader.at = at
        try:
            value = reader.object(0)
            found.append(FoundObject(at, reader.at, value))
        except _NoJSON:  # not within what was read already: it belongs to something broken
            reader.at = max(at + 1, reader.at)
        at = text.find("{", reader.at)
    return found


class _Reader:
    """Reads values of a text, each from `at` on."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.reads_left = _MAX_READS * len(text)

    def object(self, depth: int) -> dict[str, Any]:
        """From `{` to its `}`. The same name twice, with different values, can be read in two ways."""
        members: dict[str, Any] = {}
        self._expect("{")
        while not self._closes("}"):
            name = self._string()
            self._expect(":")
            value = self._value(depth + 1)
            if name in members and members[name] != value:
                raise _NoJSON
            members[name] = value
            if not self._closes(","):
                self._expect("}")
                break
        return members

    def _list(self, depth: int) -> list[Any]:
        values = []
        self._expect("[")
        while not self._closes("]"):
            values.append(self._value(depth + 1))
            if not self._closes(","):
                self._expect("]")
                break
        return values

    def _value(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise _NoJSON
        self._skip_space()
        begins = self.text[self.at : self.at + 1]
        if begins == "{":
            return self.object(depth)
        if begins == "[":
            return self._list(depth)
        if begins in _QUOTES:
            return self._string()
        literal = _LITERAL.match(self.text, self.at)
        if literal is None:
            raise _NoJSON
        self.at = literal.end()
        if literal[0] in _LITERALS:
            return _LITERALS[literal[0]]
        try:
            return float(literal[0])  # NaN and Infinity among them; no field of ours is a number
        except ValueError:
            raise _NoJSON from None

    def _string(self) -> str:
        self._skip_space()
        begins = self.text[self.at : self.at + 1]
        if begins not in _QUOTES:
            raise _NoJSON
        closing, at, made = _QUOTES[begins], self.at + 1, list[str]()
        while at < len(self.text) and self.reads_left > 0:
            self.reads_left -= 1
            character = self.text[at]
            if character == closing and (begins == '"' or _ENDS.match(self.text, at + 1)):
                self.at = at + 1
                return _joined("".join(made))
            if character == "\\":
                read, at = self._escape(at + 1, closing)
                made.append(read)
            else:
                made.append(character)
                at += 1
        raise _NoJSON

    def _escape(self, at: int, closing: str) -> tuple[str, int]:
        """What stands behind a backslash, and where it goes on. A backslash that escapes nothing is meant as one."""
        character = self.text[at : at + 1]
        if _LATEX.match(self.text, at):
            return "\\", at
        if character == "u" and (code := _HEX.match(self.text, at + 1)):
            return chr(int(code[0], 16)), code.end()
        if character and (character in _ESCAPES or character == closing):
            return _ESCAPES.get(character, character), at + 1
        return "\\", at

    def _skip_space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        assert match is not None  # it may be empty
        self.reads_left -= match.end() - self.at + 1
        self.at = match.end()

    def _closes(self, character: str) -> bool:
        self._skip_space()
        if not self.text.startswith(character, self.at):
            return False
        self.at += 1
        return True

    def _expect(self, character: str) -> None:
        if not self._closes(character):
            raise _NoJSON


def _joined(text: str) -> str:
    """With surrogates put together to the characters they stand for; a lone one stays, and no field takes it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
