"""Damage for fuzzing: bytes, and JSON documents, changed a little by a seeded generator."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

#: What parsers stumble over, as text.
TOKENS: tuple[str, ...] = (
    "null", "NaN", "Infinity", "-1", "1e999", "9" * 40, "true", '""', "[]", "{}", "[[]]", '{"":{}}', "\ud800",
    "\\ud800", "\0", "\r\n", "\t", "&a *a", "<<: *a", "!!python/object:os.system {}", "!!binary x", "%s%n",
    "../../etc/passwd", "<think>{</think>", "\u202e", "🫀", "é", "'", '"', "`", "#", "|", ">", "---", "...", "? :",
    "0x", "1_0", "12:30:00", "2026-13-45", "{" * 300, "[" * 300, "a" * 5000,
)  # fmt: skip
#: What stands where another kind of value is expected.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**40, -(10**40), 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", " ", "x", "0", "-1", "NaN", "null", "two", "1Gi", "\n", "\0", "\u202e", "🫀", "a" * 5000, "../x", "/dev/zero",
    "é", [], [[]], [None], ["x", "x"], [1, "x", None], {}, {"": None}, {"x": {"x": {}}}, {"bytes": "x"},
)  # fmt: skip


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """The bytes with one to four changes: flipped, cut off, left out, doubled, overwritten, or another's put in."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.choice((1, 1, 2, 4, 16, 256)))
        match rng.randrange(7):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at:end]
            case 2:
                changed[at:at] = changed[at:end] * rng.choice((1, 2, 50))
            case 3:
                del changed[at:]
            case 4:
                changed[at:end] = rng.randbytes(end - at)
            case 5:
                changed[at:end] = rng.choice((b"\xff", b"\0", b"\x7f")) * (end - at)
            case _:
                changed[at:at] = rng.choice(TOKENS).encode("utf-8", "surrogatepass")
    return bytes(changed)


def damaged_text(rng: random.Random, text: str) -> str:
    """As `damaged_bytes`, for text: lines are moved and doubled, too."""
    if rng.random() < 0.5:
        return damaged_bytes(rng, text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogateescape")
    lines = text.splitlines(keepends=True) or [""]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        match rng.randrange(5):
            case 0:
                lines.insert(at, rng.choice(lines))
            case 1:
                lines[at] = rng.choice((" ", "  ", "\t", "- ")) + lines[at]
            case 2:
                lines[at] = lines[at].lstrip()
            case 3:
                head, colon, _ = lines[at].partition(":")
                lines[at] = f"{head}{colon or ':'} {rng.choice(TOKENS)}\n"
            case _ if len(lines) > 1:
                del lines[at]
            case _:
                lines[at] = rng.choice(TOKENS)
    return "".join(lines)


def damaged_document(rng: random.Random, document: Any) -> Any:
    """A copy of a JSON document in which one to three values are others, missing, doubled, or of another's place."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(document))
        if not places:
            return rng.choice(VALUES)
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.extend(copy.deepcopy(holder[key : key + 1]) * rng.choice((1, 3, 40)))
            case 1:
                holder[rng.choice(("", "x", "__proto__", "$ref", str(key).upper(), str(key) + " "))] = holder[key]
            case 2:
                other, there = rng.choice(places)
                holder[key] = copy.deepcopy(other[there]) if there in _keys(other) else None
            case 3 if isinstance(holder[key], str):
                holder[key] = damaged_text(rng, holder[key])
            case 4:
                holder[key] = [holder[key]] if rng.random() < 0.5 else {"x": holder[key]}
            case _:
                holder[key] = copy.deepcopy(rng.choice(VALUES))
    return document


def json_text(document: Any) -> str:
    """A document as JSON text, with NaN and lone surrogates where it has them."""
    return json.dumps(document, default=repr)


def damaged_json(rng: random.Random, document: Any) -> bytes:
    """JSON text of the document, of which the values or the text are damaged."""
    if rng.random() < 0.7:
        return json_text(damaged_document(rng, document)).encode("utf-8", "surrogatepass")
    return damaged_bytes(rng, json_text(document).encode("utf-8", "surrogatepass"))


def one_of(rng: random.Random, *ways: Callable[[], bytes]) -> bytes:
    """What one of the ways makes."""
    return rng.choice(ways)()


def _keys(holder: Any) -> Any:
    return holder.keys() if isinstance(holder, dict) else range(len(holder))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(_keys(value)) if isinstance(value, dict | list) else ():
        yield value, key
        yield from _places(value[key])
