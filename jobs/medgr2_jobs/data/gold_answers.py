"""Which option of a record is right, and what a file's records say it by: text, letter, or place.

One row may be read in two ways: with the options A, C, B the answer "B" is the third by its text and the second by its
letter; of the options 1, 2, 3 the number 2 is the second by its text and the third counted from 0. A file has one way,
so all of its rows are looked at first: what fits every row decides. What is left with two results is set aside.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medgr2_api.data import AnswerKey

from ..errors import DataError
from ..prompts.answers import LETTERS, normalise
from .record import BadField, Place, as_text, is_nan, json_type

#: What a JSON text and a JSON number are by a format's description.
TEXTS = frozenset({AnswerKey.TEXT, AnswerKey.LETTER})
NUMBERS = frozenset({AnswerKey.TEXT, AnswerKey.INDEX_FROM_0})
#: Fields of a record that say how they are to be read.
DECLARED = {
    "answer_text": AnswerKey.TEXT,
    "answer_letter": AnswerKey.LETTER,
    "answer_index": AnswerKey.INDEX_FROM_0,
}
_WAYS = (AnswerKey.TEXT, AnswerKey.LETTER, AnswerKey.INDEX_FROM_0, AnswerKey.INDEX_FROM_1)
_LETTER = re.compile(r"(?:option|choice|answer)?\s*[(\[]?\s*([A-Za-z])\s*[)\]]?\s*[.:)]?", re.IGNORECASE)
_LETTERED = re.compile(r"[(（\[【]?([A-Za-zＡ-Ｚａ-ｚ])(?:\s*[.:)\]]\s+|\s*[．：）】、。]\s*)(?=\S)")
_INTEGER = re.compile(r"[+-]?\d{1,9}")

Readings = Mapping[AnswerKey, int]
"""Ways in which an answer can be read, each with the option that it then is."""


def options_of(values: Sequence[Any], field: str) -> tuple[str, ...]:
    """The options of a record, without "A. " and "B) " in front where each has its own letter.

    Empty cells at the end are none: a table has as many columns as its longest row.

    Raises:
        BadField: fewer than two, more than there are letters, or one in between is empty.
    """
    options = [as_text(value, field) for value in values]
    while options and not options[-1]:
        options.pop()
    if len(options) < 2 or not all(options):
        gap = "; one of them is empty" if len(options) < len(values) or not all(options) else ""
        least = "at least 2 are needed, none of which may be empty" if gap else "at least 2 are needed"
        raise BadField(field, f"{len(options)} option(s){gap}; {least}")
    if len(options) > len(LETTERS):
        raise BadField(field, f"{len(options)} options; there are letters for {len(LETTERS)}")
    return tuple(_without_letters(options))


def readings(answer: Any, options: Sequence[str], field: str, letters: str = LETTERS) -> Readings:
    """Every way in which an answer can be read.

    Args:
        answer: the value as it stands in the record.
        options: what it is to be one of.
        field: its name.
        letters: those of the options, in their order.

    Raises:
        BadField: it is missing, or no text and no number.
    """
    if answer is None or is_nan(answer):
        raise BadField(field, "is missing")
    written = as_text(answer, field)
    if not written:
        raise BadField(field, "is empty")
    found: dict[AnswerKey, int] = {}
    if len(same := equal_to(written, options)) == 1:
        found[AnswerKey.TEXT] = same[0]
    plain = _plain(written)
    if (one := _LETTER.fullmatch(plain)) and 0 <= (place := letters.find(one[1].upper())) < len(options):
        found[AnswerKey.LETTER] = place
    elif (both := _LETTERED.match(written)) and not same:
        place = letters.find(_plain(both[1]).upper())
        if equal_to(written[both.end() :], options) == [place]:
            found |= {AnswerKey.TEXT: place, AnswerKey.LETTER: place}
    if _INTEGER.fullmatch(plain):
        for way, first in ((AnswerKey.INDEX_FROM_0, 0), (AnswerKey.INDEX_FROM_1, 1)):
            if 0 <= int(plain) - first < len(options):
                found[way] = int(plain) - first
    return found


def equal_to(written: str, options: Sequence[str]) -> list[int]:
    """The options that a text is: exactly, else but for case, spacing and punctuation around it."""
    exact = [index for index, option in enumerate(options) if option == written]
    return exact or [index for index, option in enumerate(options) if normalise(option) == normalise(written)]


class AnswerReader:
    """Reads the right answers of one file."""

    def __init__(
        self,
        place: Place,
        rows: Iterable[Mapping[str, Any]],
        *,
        field: str,
        texts: frozenset[AnswerKey] = TEXTS,
        numbers: frozenset[AnswerKey] = NUMBERS,
    ) -> None:
        """
        Args:
            place: says whether the spec declares the way, and counts which was taken.
            rows: the options and the answer of every row of the file, under `options` and `field`; what cannot be read
                tells nothing. Not looked at where the way is declared.
            field: name of the answer.
            texts: what a JSON text may be by the format's description.
            numbers: what a JSON number may be by it.
        """
        self._place, self._field = place, field
        self._described = {str: texts, int: numbers, float: numbers}
        self._only: set[AnswerKey] = set()
        declared = place.source.answer_key
        self._ways: frozenset[AnswerKey] = frozenset() if declared is AnswerKey.INFER else frozenset({declared})
        if not self._ways:
            self._look_over(rows)

    def _look_over(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Which ways fit every row: of those that the format describes, else of all."""
        described: set[AnswerKey] = set(_WAYS)
        possible = described.copy()
        seen = False
        try:
            for row in rows:
                try:
                    answer = row.get(self._field)
                    found = readings(answer, row["options"], self._field, row.get("letters", LETTERS))
                except BadField:
                    continue
                if not found:
                    continue
                seen = True
                possible &= found.keys()
                described &= found.keys() & self._described[type(answer)]
                if len(found) == 1:
                    self._only |= found.keys()
        except DataError:
            pass  # a file that breaks off is told of when its records are read
        if seen:
            self._ways = frozenset(described or possible)

    def index(self, row: Mapping[str, Any], options: Sequence[str], letters: str = LETTERS) -> int:
        """The right option of a row.

        Raises:
            BadField: none, or more than one by ways of which nothing says which is meant.
        """
        declared = {name: way for name, way in DECLARED.items() if as_text(row.get(name), name)}
        if declared:
            index = self._declared(row, declared, options, letters)
        else:
            index = self._read(row.get(self._field), options, letters)
        if options.count(options[index]) > 1:
            raise BadField(self._field, f"{options[index]!r} is {options.count(options[index])} of the options")
        return index

    def _declared(
        self, row: Mapping[str, Any], declared: Mapping[str, AnswerKey], options: Sequence[str], letters: str
    ) -> int:
        said: dict[str, int] = {}
        for name, way in declared.items():
            found = readings(row[name], options, name, letters)
            if way not in found:
                raise BadField(name, self._wrong(row[name], options, {way}, letters))
            said[name] = found[way]
        if (answer := row.get(self._field)) is not None and as_text(answer, self._field):
            found = readings(answer, options, self._field, letters)
            first = next(iter(said.values()))
            said[self._field] = first if first in found.values() else next(iter(found.values()), -1)
        if len(set(said.values())) > 1:
            raise BadField(next(iter(said)), f"contradicts: {' and '.join(said)} name different options")
        self._place.read_as.update([next(iter(declared.values()))])
        return next(iter(said.values()))

    def _read(self, answer: Any, options: Sequence[str], letters: str) -> int:
        found = readings(answer, options, self._field, letters)
        ways = self._ways or self._described[type(answer)]
        fitting = {way: found[way] for way in _WAYS if way in ways and way in found}
        if not fitting:
            raise BadField(self._field, self._wrong(answer, options, ways, letters))
        if not self._ways:  # the file has no one way: nor may a row be taken by one that others contradict
            fitting |= {way: found[way] for way in _WAYS if way in self._only and way in found}
        if len(set(fitting.values())) > 1:
            means = " and ".join(f"{options[index]!r} as {_NAMES[way]}" for way, index in fitting.items())
            raise BadField(
                self._field,
                f"{answer!r} is {means}, and nothing in the file says which is meant: name it in "
                f"{', '.join(DECLARED)}, or set the source's answerKey",
            )
        way, index = next(iter(fitting.items()))
        self._place.read_as.update([way])
        return index

    @staticmethod
    def _wrong(answer: Any, options: Sequence[str], ways: Iterable[AnswerKey], letters: str) -> str:
        """Why an answer is none of the options."""
        offered = f"{answer!r} is not among the options {', '.join(map(repr, options))}"
        if isinstance(answer, str) and len(same := equal_to(answer.strip(), options)) > 1:
            return f"{answer!r} is {len(same)} of the options"
        wanted = set(ways)
        if wanted <= {AnswerKey.INDEX_FROM_0, AnswerKey.INDEX_FROM_1} or not isinstance(answer, str):
            first = 1 if AnswerKey.INDEX_FROM_1 in wanted else 0
            index = f"{answer!r} is no index of {len(options)} options, which count from {first}"
            return index if wanted & {AnswerKey.INDEX_FROM_0, AnswerKey.INDEX_FROM_1} else offered
        if wanted == {AnswerKey.LETTER}:
            return f"{answer!r} is no letter of {len(options)} options ({', '.join(letters[: len(options)])})"
        return offered


_NAMES = {
    AnswerKey.TEXT: "text",
    AnswerKey.LETTER: "a letter",
    AnswerKey.INDEX_FROM_0: "an index from 0",
    AnswerKey.INDEX_FROM_1: "an index from 1",
}


def _without_letters(options: list[str]) -> list[str]:
    matches = [_LETTERED.match(option) for option in options]
    if not all(match and _plain(match[1]).upper() == letter for match, letter in zip(matches, LETTERS, strict=False)):
        return options
    bare = [option[match.end() :] for option, match in zip(options, matches, strict=True) if match]
    return bare if len(set(bare)) == len(bare) else options


def _plain(written: str) -> str:
    return unicodedata.normalize("NFKC", written)


def list_of(value: Any, field: str) -> Sequence[Any]:
    """The JSON list of a field.

    Raises:
        BadField: it is missing, or of another type.
    """
    if value is None or is_nan(value):
        raise BadField(field, "is missing")
    if not isinstance(value, list):
        raise BadField(field, f"must be a list, but is a JSON {json_type(value)}")
    return value
