"""What every record must be, whatever reader brings it: a picture that shows something, in a shape that models take,
and texts that are nothing but text to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..prompts.answers import CHAT_MARKS
from ..store.images import StoredImage
from .record import BadField, BadRecord, Place, Record

#: Longer side over shorter one: image processors of the Qwen family raise an error above it.
MOST_STRETCHED = 200
#: Pixels of a side. A picture of one or three rows is ambiguous besides: they look like channels.
LEAST_SIDE = 4
#: Characters of the name of a modality or of a type of question.
LONGEST_NAME = 100


def checked(records: Iterator[Record | BadRecord], place: Place) -> Iterator[Record | BadRecord]:
    """The records; those that no model can take are bad ones."""
    tokens = _pattern(place.special_tokens)
    for record in records:
        if isinstance(record, Record):
            place.named_images |= {record.image.sha256, *record.image.parts}  # of a reader of another package, too
            try:
                _check_image(record.image)
                _check_texts(record, tokens)
            except BadField as bad:
                record = BadRecord(record.where or record.question_id, bad.field, bad.reason, bad.kind)
        yield record


def _check_image(image: StoredImage) -> None:
    short, long = sorted((image.width, image.height))
    if image.one_colour:
        raise BadField("image", "has one colour only, and so shows nothing")
    if short < LEAST_SIDE:
        raise BadField("image", f"is {image.width} x {image.height} pixels; a side has at least {LEAST_SIDE}")
    if long > MOST_STRETCHED * short:
        raise BadField(
            "image",
            f"is {image.width} x {image.height} pixels; a side may be {MOST_STRETCHED} times the other, or no model "
            "takes it. Cut it into parts",
        )


def _pattern(special_tokens: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted(special_tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join([CHAT_MARKS, *map(re.escape, longest_first)]))


def _check_texts(record: Record, tokens: re.Pattern[str]) -> None:
    texts = {
        "question": record.question,
        **{f"options[{number}]": option for number, option in enumerate(record.options)},
        "rationale": record.rationale,
        "modality": record.modality,  # it goes into prompts
        "question_type": record.question_type,
    }
    for field, text in texts.items():
        if found := tokens.search(text):
            raise BadField(field, f"has {found[0]!r} in it, which a model takes for a mark of its own and not for text")
    for field in ("modality", "question_type"):
        if len(texts[field]) > LONGEST_NAME or not texts[field].isprintable():
            raise BadField(field, f"must be a name: one line of at most {LONGEST_NAME} printable characters")
    texts |= {"id": record.question_id, "image": record.image_path, "dataset": record.dataset}
    for field, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadField(field, f"is no text: character {error.start} is half of a surrogate pair") from None
